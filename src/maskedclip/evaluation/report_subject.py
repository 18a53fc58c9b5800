"""What a report is about: a run, a store, evaluations, each read when a section first needs it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.store import Store
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from maskedclip.evaluation.compare import Key, compare_results
from maskedclip.evaluation.evaluate import PREDICTION_SCHEMA
from maskedclip.evaluation.report_pictures import varied_rows
from maskedclip.evaluation.statistics import Estimate
from maskedclip.html import LeftOut
from maskedclip.models.saving import folder_fingerprint
from maskedclip.recipe import Recipe
from maskedclip.training.rundir import RunDirectory

EXAMPLES = 8
_NO_STORE = "no store was given, so there are no images to show"
_SPLITS = {
    "test": "test split",
    "val": "validation split (there is no test split)",
    "train": "training split (there is no other)",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What `evaluate` wrote into a folder.  name: the reader's word for it.  results: of results.json."""

    name: str
    folder: Path
    results: Mapping[str, Any]

    def measured(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """(protocol, feature, {"macro", "per_label"}) of each protocol that scored labels of images."""
        for protocol, section in self.results.items():
            if protocol in ("about", "retrieval", "subgroups", "dense") or "skipped" in section:
                continue
            parts = {"projected": section} if "macro" in section else section
            for feature, part in parts.items():
                if isinstance(part, Mapping) and "macro" in part:
                    yield protocol, feature, part

    def section(self, protocol: str, feature: str) -> Mapping[str, Any] | None:
        """One part of `measured`, None where there is none."""
        return next((part for *key, part in self.measured() if key == [protocol, feature]), None)

    @property
    def about(self) -> Mapping[str, Any]:
        """What was evaluated, and how."""
        return self.results.get("about", {})

    @cached_property
    def predictions(self) -> pa.Table:
        """The scores of the test rows.

        Raises:
            LeftOut: there is no such table.
        """
        path = self.folder / "predictions.parquet"
        if not path.is_file():
            raise LeftOut(f"{self.name}: predictions.parquet is missing; evaluate again")
        try:
            return pq.read_table(path).select(PREDICTION_SCHEMA.names)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise LeftOut(f"{self.name}: predictions.parquet cannot be read ({error}); evaluate again") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One report's matter.  faults: of the evaluations that cannot be read, by name."""

    run: RunDirectory
    recipe: Recipe
    store: Store | None
    given: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    faults: Mapping[str, str]
    seed: int

    @property
    def unit(self) -> str:
        """What a row of the store is, in the plural."""
        return "volumes" if self.recipe.model.reads_volumes else "images"

    @property
    def main(self) -> Evaluation:
        """The evaluation of this run's model: the first one given.

        Raises:
            LeftOut: there is none.
        """
        if not self.given:
            raise LeftOut("the model has not been evaluated; run `maskedclip evaluate RUN --data STORE --out DIR`")
        if self.given[0] in self.faults:
            raise LeftOut(self.faults[self.given[0]])
        return self.evaluations[0]

    @property
    def others(self) -> tuple[Evaluation, ...]:
        """The evaluations to compare with."""
        return tuple(entry for entry in self.evaluations if entry.name != self.given[0])

    @cached_property
    def model(self) -> Model:
        """The run's model.

        Raises:
            UserError: it is missing or damaged.
        """
        return load(self.run.path, volumes=None)

    @property
    def model_fingerprint(self) -> str | None:
        """Of the run's weights as they are now; None where they cannot be read."""
        try:
            return folder_fingerprint(self.run.model)
        except OSError:
            return None

    @property
    def images(self) -> Store:
        """The store.

        Raises:
            LeftOut: none was given.
        """
        if self.store is None or len(self.store) == 0:
            raise LeftOut(_NO_STORE)
        return self.store

    @cached_property
    def shown_split(self) -> str:
        """The split that examples come from: test where there is one."""
        return next(split for split in ("test", "val", "train") if len(self.images.rows(split)))

    @property
    def shown_split_name(self) -> str:
        """Of `shown_split`, for a reader."""
        return _SPLITS[self.shown_split]

    @cached_property
    def examples(self) -> NDArray[np.int64]:
        """Rows to show, with different texts and of different patients."""
        return varied_rows(self.images, self.images.rows(self.shown_split), EXAMPLES, self.seed)

    @cached_property
    def differences(self) -> dict[str, dict[Key, Estimate] | str]:
        """AUROC of the model minus that of each other evaluation, paired; a sentence where they cannot be paired."""
        found: dict[str, dict[Key, Estimate] | str] = {}
        for other in self.others:
            try:
                replicates = int(self.main.about.get("replicates", 1000))
                found[other.name] = compare_results(
                    self.main.folder, other.folder, replicates=replicates, seed=int(self.main.about.get("seed", 0))
                )
            except UserError as error:
                found[other.name] = str(error)
        return found


def read_subject(run: Path, store: Store | None, evaluations: Mapping[str, Path], seed: int) -> Subject:
    """Open what a report is about.

    Raises:
        UserError: `run` is no run directory.
    """
    directory = RunDirectory(run)
    read: list[Evaluation] = []
    faults: dict[str, str] = {}
    for name, folder in evaluations.items():
        try:
            read.append(Evaluation(name=name, folder=folder, results=_results(name, folder)))
        except LeftOut as error:
            faults[name] = str(error)
    return Subject(
        run=directory,
        recipe=directory.read_recipe(),
        store=store,
        given=tuple(evaluations),
        evaluations=tuple(read),
        faults=faults,
        seed=seed,
    )


def _results(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise LeftOut(f"{name}: {folder.name} has no results.json; `maskedclip evaluate` writes it")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LeftOut(f"{name}: results.json is damaged ({error}); evaluate again") from None
    if not isinstance(results, dict) or not all(isinstance(section, dict) for section in results.values()):
        raise LeftOut(f"{name}: results.json is not what `maskedclip evaluate` writes; evaluate again")
    return results


def measured_keys(entries: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(protocol, feature) of all evaluations, in their order."""
    return list(dict.fromkeys((protocol, feature) for entry in entries for protocol, feature, _ in entry.measured()))
