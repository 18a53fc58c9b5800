"""What is asked of a study before its hours begin, and of the data that its finished cells are of."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.case import AnyStore
from maskedclip.evaluation.development import DevelopmentStore
from maskedclip.evaluation.evaluate import TRAINED, check_patients
from maskedclip.evaluation.evaluated_rows import labels_fingerprint
from maskedclip.study.cells import cell_folder, read_result
from maskedclip.study.definition import Cell, Study
from maskedclip.training.rundir import RunDirectory

_OF_PICTURES = ("dense", *TRAINED)  # and of a store's own splits
CHOSEN_ON_REPORTED = (
    "The figures are on validation rows, and training.best_metric chose the step of the weights on them too: they are "
    "too good by what that choice gains, and nothing here was tested on rows that decided nothing."
)


def check_stores(study: Study) -> None:
    """Refuse before the first training what `evaluate` would refuse after it.

    Raises:
        UserError: a store can't be opened, has no rows to report on, a patient in two splits, or volumes, or another
            split than its own, with a protocol that is not for them.
    """
    open_store(study.data)
    store = open_store(study.evaluate)
    unfit = [name for name in study.protocols if name in _OF_PICTURES]
    if store.kind == "volumes" and unfit:
        raise UserError(f"protocols: {', '.join(unfit)}: not for volumes; give linear, knn, fewshot, ...")
    if study.split == "development" and unfit:
        raise UserError(
            f"protocols: {', '.join(unfit)}: read the stores' own splits, not those of `split: development`; "
            "leave them out, or report on the test rows"
        )
    seen = _reported(study, store)
    named = ", ".join(map(str, study.evaluate))
    if not (seen.splits == "test").any():
        split = "val" if study.split == "development" else "test"
        raise UserError(f"{named}: no row has split {split!r}; fill the manifest's split column and curate again")
    try:
        check_patients(seen)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None


def chosen_on_reported(study: Study) -> str | None:
    """A warning where the rows that are reported on also chose the weights, else None."""
    return CHOSEN_ON_REPORTED if study.split == "development" and study.best_metrics else None


def changed_data(study: Study, out: Path, cells: Sequence[Cell]) -> list[str]:
    """Warnings of finished cells that were trained or evaluated on other data than others, or than the stores hold now.

    Stores that can't be opened, as where a page is written on another machine, are not compared.
    """
    found = [(cell.name, _data_of(cell_folder(out, cell))) for cell in cells if read_result(out, cell) is not None]
    now = _data_now(study)
    warnings = []
    for name, what in (
        ("trained", "were trained on"),
        ("evaluated", "were evaluated on"),
        ("labels", "were evaluated with labels, splits or patients of"),
    ):
        known = [(cell, data[name]) for cell, data in found if data.get(name)]
        kept = {value for _, value in known}
        if now.get(name) is not None:
            stale = [cell for cell, value in known if value != now[name]]
            if stale:
                warnings.append(
                    f"{len(stale)} of {len(known)} finished cells {what} other data than the stores hold now (first: "
                    f"{stale[0]}); remove their folders to make them anew, or give the stores of then"
                )
        elif len(kept) > 1:
            warnings.append(
                f"The finished cells {what} {len(kept)} different states of the data, so they can't be compared; "
                "remove the folders of those of one state to make them anew"
            )
    return warnings


def _data_of(folder: Path) -> dict[str, Any]:
    """Fingerprints of what a cell was trained and evaluated on; those that it kept."""
    data: dict[str, Any] = {}
    run, results = RunDirectory(folder / "run"), folder / "evaluation" / "results.json"
    if run.environment_file.is_file():
        data["trained"] = run.environment()["data"].get("fingerprint")
    if results.is_file():
        about = json.loads(results.read_text()).get("about", {})
        data |= {"evaluated": about.get("store"), "labels": about.get("labels_fingerprint")}
    return data


def _data_now(study: Study) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        found["trained"] = open_store(study.data).fingerprint
        seen = _reported(study, open_store(study.evaluate))
        found |= {"evaluated": seen.fingerprint, "labels": labels_fingerprint(seen)}
    except (UserError, OSError):
        pass
    return found


def _reported(study: Study, store: Store) -> AnyStore:
    """The store as `evaluate` sees it: its test rows are those that are reported on."""
    return DevelopmentStore(store) if study.split == "development" else store  # type: ignore[return-value]
