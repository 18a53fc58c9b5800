"""The models of a server: loaded once, with their labels, and with what is known of how they were made."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.console import say
from maskedclip.data.prompts import Overrides
from maskedclip.data.prompts_findings import FINDINGS
from maskedclip.data.store import Store
from maskedclip.deployment.classifier import Classifier, read_classifier, zero_shot_classifier
from maskedclip.deployment.heads import Kind
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.search import SearchIndex, open_index
from maskedclip.deployment.server.schema import ModelCard
from maskedclip.errors import UserError

_REMEMBERED = 4096
NOTICE = "research use; not a diagnosis"


class RememberingModel(Model):
    """A model that remembers the embeddings of its latest texts: the same findings are asked for again and again.

    For one thread.
    """

    def __init__(self, model: Model) -> None:
        self.__dict__.update(model.__dict__)
        self._remembered: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """As `Model.encode_text`."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        new = [text for text in dict.fromkeys(listed) if text not in self._remembered]
        if new:
            self._remembered.update(zip(new, super().encode_text(new), strict=True))
        found = [self._remembered[text] for text in listed]
        for text in listed:
            self._remembered.move_to_end(text)
        while len(self._remembered) > max(_REMEMBERED, len(listed)):
            self._remembered.popitem(last=False)
        return np.stack(found) if found else super().encode_text(listed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """One model of a server.

    name: of its run's folder.  folder: the run.  classifier: None where the model has no texts and no head was given.
    """

    name: str
    folder: Path
    model: RememberingModel
    classifier: Classifier | None
    card: ModelCard


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a model is asked for.

    names: None for the findings that `maskedclip.data.prompts` knows.  head: a saved one instead, for the first model.
    kind: None for independent shipped findings, and exclusive labels of the user's.  prompts: sentences for some of the
    labels.  calibration: a store whose validation rows calibrate the probabilities.  abstain: share that is left
    undecided; None for what the head says, else 0.
    """

    names: tuple[str, ...] | None = None
    head: Path | None = None
    kind: Kind | None = None
    prompts: Overrides | None = None
    calibration: Store | None = None
    abstain: float | None = None


def shipped_findings() -> tuple[str, ...]:
    """The labels that are asked for where the user names none."""
    return tuple((entry.names or entry.aliases)[0] for entry in FINDINGS)


def serve_models(runs: Sequence[Path], labels: Labels, *, device: str = "auto") -> list[Served]:
    """Load the models of a server, the first with the head where one is given.

    Raises:
        UserError: a run, a head or a label cannot be used; the runs are one and the same.
    """
    served: list[Served] = []
    for place, run in enumerate(runs):
        model = RememberingModel(load(run, device=device))
        if any(other.model.fingerprint == model.fingerprint for other in served):
            raise UserError(f"--compare {run}: is the same model as {runs[0]}; give another run")
        try:
            classifier = _classifier(model, labels, run, with_head=place == 0)
        except UserError as error:
            raise UserError(f"--compare {run}: {error}" if place else str(error)) from None
        name = _name(run, {other.name for other in served})
        served.append(
            Served(name=name, folder=run, model=model, classifier=classifier, card=_card(name, run, model, classifier))
        )
    return served


def serve_index(path: Path, served: Sequence[Served]) -> tuple[SearchIndex, Served]:
    """Open an index and find the model whose features it holds.

    Raises:
        UserError: it cannot be read, or holds features of none of these models.
    """
    index = open_index(path)
    fitting = [one for one in served if one.model.fingerprint == index.model]
    if not fitting and not index.model:
        fitting = [one for one in served if _outputs(one.model).get("projected") == index.width]
        say(f"{path}: does not name its model; taken as one of {served[0].name}")
    if not fitting:
        raise UserError(
            f"--index {path}: holds features of the model {index.model or '?'}, not of "
            f"{', '.join(one.model.fingerprint for one in served)}; embed again with `maskedclip embed`"
        )
    return index, fitting[0]


def shown_columns(index: SearchIndex, further: Sequence[str]) -> list[str]:
    """What callers see of a case: its report, its labels, and the columns that the user names.

    Raises:
        UserError: the index has no such column.
    """
    missing = [name for name in further if name not in index.columns]
    if missing:
        raise UserError(f"--show {missing[0]}: the index has no such column; it has {', '.join(index.columns)}")
    own = [name for name in index.columns if name == "text" or name.startswith("label.")]
    return list(dict.fromkeys([*own, *further]))


def _classifier(model: Model, labels: Labels, run: Path, *, with_head: bool) -> Classifier | None:
    if labels.head is not None and with_head:
        found = read_classifier(labels.head, model)
        found = found.with_calibration(labels.calibration) if labels.calibration is not None else found
        return found if labels.abstain is None else found.abstaining(labels.abstain)
    if not model.has_text:
        say(f"{run}: was trained without texts: it gives features, and findings only with --head")
        return None
    names = labels.names or shipped_findings()
    kind: Kind = labels.kind or ("exclusive" if labels.names else "independent")
    return zero_shot_classifier(
        model,
        names,
        kind=kind,
        prompts=labels.prompts,
        calibration=labels.calibration,
        abstain=labels.abstain or 0.0,
    )


def _name(run: Path, taken: set[str]) -> str:
    whole = run.absolute() if run.name else run.resolve()
    name = whole.parent.name if whole.name == "model" else whole.name
    return next(entry for entry in (name, *(f"{name} ({place})" for place in range(2, 99))) if entry not in taken)


def _outputs(model: Model) -> dict[str, int]:
    config = model.module.config
    width = model.module.encoder.width
    return {"encoder": width} | ({"bridge": width, "projected": config.embed_dim} if config.embed_dim else {})


def _card(name: str, run: Path, model: Model, classifier: Classifier | None) -> ModelCard:
    head = classifier.head if classifier is not None else None
    warnings = [
        "For research. No medical device; no answer is a diagnosis.",
        "It knows photographs like those it was trained on; others may be answered wrongly and with confidence.",
    ]
    if classifier is not None and not classifier.calibrated:
        warnings.append("Its probabilities are not calibrated: they put photographs in order, no more.")
    if head is not None and head.abstention is None:
        warnings.append("It always answers: it was given no validation rows to learn when to abstain.")
    measured = _measured(run)
    if not measured:
        warnings.append("It has not been evaluated here: run `maskedclip evaluate`.")
    return ModelCard(
        name=name,
        fingerprint=model.fingerprint,
        texts=model.has_text,
        outputs=_outputs(model),
        input_size=model.preprocessing.size,
        crop=model.preprocessing.crop,
        labels=list(classifier.labels) if classifier is not None else [],
        kind=classifier.kind if classifier is not None else None,
        calibrated=classifier.calibrated if classifier is not None else False,
        abstains=head.abstain if head is not None else 0.0,
        answers_from=_answers_from(head.method if head is not None else ""),
        trained_on=_trained_on(run),
        measured=measured,
        warnings=warnings,
    )


def _answers_from(method: str) -> str:
    words = {"": "nothing: no texts and no head", "zero_shot": "sentences (zero-shot)", "linear": "a linear probe"}
    return words.get(method, "a fine-tuned encoder")


def _trained_on(run: Path) -> dict[str, Any]:
    """Numbers of the run's environment.json; no path and no patient."""
    known = _json(run / "environment.json")
    kept = {name: known[name] for name in ("paired_images", "unpaired_images", "distinct_texts") if name in known}
    if known.get("patients_with_text") is not None:
        kept["patients_with_text"] = known["patients_with_text"]
    fingerprint = (known.get("data") or {}).get("fingerprint")
    return kept | ({"data_fingerprint": fingerprint} if fingerprint else {})


def _measured(run: Path) -> list[str]:
    """Lines of `maskedclip evaluate RUN --out RUN/evaluation`, where that was run."""
    from maskedclip.evaluation.summary import summary_lines

    results = _json(run / "evaluation" / "results.json")
    try:
        return summary_lines(results)
    except (KeyError, TypeError, AttributeError):
        return []


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
