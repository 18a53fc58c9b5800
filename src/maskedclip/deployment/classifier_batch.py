"""Many photographs through a classifier: read ahead by threads, answered in batches, written row by row."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from maskedclip.console import bar, say
from maskedclip.deployment.classifier import Answer, Classifier
from maskedclip.deployment.inputs import Inputs, Prepared, Rejected, open_inputs
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH

_NAMED = 20  # rejected photographs that are named; the others are counted


@dataclass(frozen=True)
class Row:
    """What is said of one photograph.

    answers: in the classifier's order.  label: the likeliest one, or the findings that are present, joined by "; ";
    empty where it abstains, or nothing is found.  undecided: labels that it abstains from.
    """

    id: str
    answers: dict[str, Answer]
    label: str
    undecided: tuple[str, ...]

    @property
    def abstained(self) -> bool:
        """Whether anything was left undecided."""
        return bool(self.undecided)

    def to_json(self, *, calibrated: bool) -> dict[str, Any]:
        """Plain values."""
        return {
            "image": self.id,
            "label": self.label,
            "probabilities": {name: answer.probability for name, answer in self.answers.items()},
            "abstained": self.abstained,
            "undecided": list(self.undecided),
            "calibrated": calibrated,
        }


@dataclass
class Tally:
    """What a batch run met: how often each label was given, and what was left out."""

    photographs: int = 0
    abstained: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a photograph."""
        self.photographs += 1
        self.abstained += row.abstained
        for name, answer in row.answers.items():
            self.labels[name] = self.labels.get(name, 0) + (answer.found and answer.certain)


def classify_inputs(classifier: Classifier, data: Sequence[str | Path], tally: Tally) -> Iterator[Row]:
    """Rows for all photographs in stores, folders, manifests, lists, archives and files, in their order.

    What cannot be read is named, counted in `tally` and left out.  Memory holds a few batches, however many there are.

    Raises:
        UserError: there is nothing of a name, or nothing at all can be read.
    """
    opened = [(str(entry), open_inputs(entry)) for entry in data]
    total = sum(len(inputs) for _, inputs in opened)
    with bar("classify", total) as shown:
        for name, inputs in opened:
            for note in inputs.notes:
                say(f"{name}: {note}")
            for entry in inputs.unlisted:
                _reject(tally, entry)
            named = _naming(name, inputs, len(opened))
            photographs = inputs.prepared(classifier.model.preprocessing)
            while part := list(islice(photographs, BATCH)):
                yield from _rows(classifier, part, named, tally)
                shown.advance(len(part))
    if len(tally.rejected) > _NAMED:
        say(f"{len(tally.rejected) - _NAMED:,} more left out")
    if tally.photographs == 0:
        first = tally.rejected[0]
        others = "" if len(tally.rejected) == 1 else f"; none of {len(tally.rejected):,} photographs can be read"
        raise UserError(f"{first.id}: {first.reason}{others}")


def _naming(name: str, inputs: Inputs, count: int) -> Callable[[str], str]:
    """How ids are told: of one image the path as it was given; else the input's own, after its name if need be."""
    if len(inputs) == 1 and inputs.ids[0] == Path(name).name:
        return lambda _: name
    return str if count == 1 else lambda own: f"{name}/{own}"


def _rows(classifier: Classifier, part: Sequence[Prepared], named: Callable[[str], str], tally: Tally) -> Iterator[Row]:
    images, ids = [], []
    for entry in part:
        name = named(entry.id)
        if entry.image is None:
            _reject(tally, Rejected(name, entry.reason))
            continue
        images.append(entry.image)
        ids.append(name)
    if not images:
        return
    for name, answers in zip(ids, classifier.classify(torch.stack(images)), strict=True):
        row = summarise(classifier, name, answers)
        tally.add(row)
        yield row


def summarise(classifier: Classifier, name: str, answers: Sequence[Answer]) -> Row:
    """One photograph's answers as a row."""
    by_label = {answer.label: answer for answer in answers}
    undecided = tuple(label for label in classifier.labels if not by_label[label].certain)
    found = [answer.label for answer in answers if answer.found and answer.certain]
    ordered = {label: by_label[label] for label in classifier.labels}
    return Row(id=name, answers=ordered, label="; ".join(found), undecided=undecided)


def _reject(tally: Tally, entry: Rejected) -> None:
    tally.rejected.append(entry)
    if len(tally.rejected) <= _NAMED:
        say(f"left out: {entry.id}: {entry.reason}")


class AnswerFile:
    """A CSV of rows as they come: id, label, a probability a label, abstained, undecided, calibrated.

    It has its name only once it is complete; an existing one is never touched.
    """

    def __init__(self, path: Path, classifier: Classifier) -> None:
        if path.suffix.lower() != ".csv":
            raise UserError(f"--out {path}: is written as CSV; give a name that ends in .csv")
        if path.exists():
            raise UserError(f"--out {path}: exists; choose another file")
        self.path, self.calibrated = path, classifier.calibrated
        self.columns = [_column(label) for label in classifier.labels]
        self._partial = partial_of(path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._csv.writerow(["id", "label", *self.columns, "abstained", "undecided", "calibrated"])
        return self

    def write(self, row: Row) -> None:
        """Add a row."""
        shares = [f"{answer.probability:.6g}" for answer in row.answers.values()]
        flags = (str(row.abstained).lower(), "; ".join(row.undecided), str(self.calibrated).lower())
        self._csv.writerow([row.id, row.label, *shares, *flags])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            publish(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


def _column(label: str) -> str:
    reserved = {"id", "label", "abstained", "undecided", "calibrated"}
    return f"probability.{label}" if label in reserved else label


def describe(row: Row, kind: str) -> str:
    """One line for a person."""
    ordered = sorted(row.answers.values(), key=lambda answer: -(answer.probability or 0.0))
    shares = ", ".join(f"{answer.label} {answer.probability:.2f}{_mark(answer, kind)}" for answer in ordered)
    if kind == "exclusive" and row.abstained:
        return f"{row.id}: abstains; {shares}"
    return f"{row.id}: {shares}"


def _mark(answer: Answer, kind: str) -> str:
    if kind == "exclusive":
        return ""
    return " (undecided)" if not answer.certain else " (present)" if answer.found else ""


def expected_accuracy(classifier: Classifier) -> str:
    """What abstention in use gave on the validation rows, in a line; empty where it is not in use."""
    head = classifier.head
    if head.abstention is None or head.abstain == 0:
        return ""
    table, column = head.abstention, head.step
    coverage = float(np.mean(table.coverages[:, column]))
    with_it, without = (float(np.nanmean(table.accuracies[:, place])) for place in (column, 0))
    what = "accuracy" if head.kind == "exclusive" else "mean balanced accuracy"
    return (
        f"abstention {head.abstain:.0%}: on the validation rows {coverage:.1%} answered, {what} {with_it:.3f} there, "
        f"{without:.3f} without abstention"
    )
