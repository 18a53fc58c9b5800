"""What a user names on the command line of `compare` -> evaluations: those that are there, and those still to be made.

A model is a folder that `evaluate` wrote, a run directory, or an external encoder such as `timm:NAME=FILE@SIZE`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskedclip.console import say
from maskedclip.data.store import Store, open_store
from maskedclip.deployment.external import open_model
from maskedclip.errors import UserError
from maskedclip.evaluation.compare_read import read_results
from maskedclip.evaluation.evaluate import DEFAULT, evaluate
from maskedclip.evaluation.evaluated_rows import labels_fingerprint
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.leakage import run_folder, seen_in_pretraining

_MARKS = ("model", "*config.json", "*.safetensors")  # what the folder of a model holds, one of them at least


@dataclass(frozen=True, kw_only=True)
class Input:
    """One model as it was given.  evaluation: its folder, None where the model has to be evaluated first."""

    given: str
    evaluation: Path | None


def read_inputs(given: Sequence[str], *, data: Sequence[Path] = ()) -> list[Input]:
    """Tell evaluations from models, before anything is computed.

    Raises UserError: fewer than two, one that stands twice, neither folder nor external encoder, a model without data.
    """
    if len(given) < 2:
        raise UserError(f"{given[0] if given else 'compare'}: one model is no comparison; give two or more")
    seen: dict[object, str] = {}
    inputs = []
    for text in given:
        folder = Path(text).expanduser()
        key = folder.resolve() if folder.exists() else text
        if key in seen:
            raise UserError(f"{text}: stands twice (as {seen[key]}); give each model once")
        seen[key] = text
        if (folder / "results.json").is_file() or (folder / "predictions.parquet").is_file():
            inputs.append(Input(given=text, evaluation=folder))
            continue
        base = folder if folder.exists() else Path(re.sub(r"@\d+$", "", text)).expanduser()
        if not base.exists() and ":" not in text:
            raise UserError(f"{text}: no such folder; give one that `maskedclip evaluate` wrote, a run, or timm:NAME")
        if base.is_dir() and not any(file for mark in _MARKS for file in base.glob(mark)):
            raise UserError(f"{text}: neither an evaluation (no results.json) nor a run (no model folder)")
        if not data:
            raise UserError(
                f"{text}: is not evaluated yet; add --data STORE --out DIR, or give its evaluation's folder"
            )
        inputs.append(Input(given=text, evaluation=None))
    return inputs


def names_of(given: Sequence[str], names: str | None = None) -> list[str]:
    """The models' names: those that the user gave, separated by commas, else what tells the paths apart.

    Raises UserError: another number of names than of models, an empty name, two that are the same.
    """
    if names is None:
        found = _distinct([_parts(text) for text in given])
    else:
        found = [name.strip() for name in names.split(",")]
        if len(found) != len(given):
            raise UserError(f"--names: {len(found)} names for {len(given)} models; give one for each, with commas")
    for place, name in enumerate(found):
        if not name:
            raise UserError(f"--names: the name of {given[place]} is empty; give one for each model")
        if name in found[:place]:
            raise UserError(f"--names: {name!r} stands twice; give every model its own name")
    return found


def group_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Places of the seeds of each method: "clip:0" and "clip:1" are seeds of "clip"."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name.rpartition(":")[0] or name, []).append(place)
    return groups


def find_reference(wanted: str | None, given: Sequence[str], names: Sequence[str], groups: Sequence[str]) -> str:
    """The group that `--reference` names, by its name, a seed's name or a path; the first where it names none.

    Raises UserError: it is none of the models.
    """
    if wanted is None:
        return groups[0]
    if wanted in groups:
        return wanted
    path = Path(wanted).expanduser()
    for text, name in zip(given, names, strict=True):
        same = path.exists() and Path(text).expanduser().resolve() == path.resolve()
        if wanted in (text, name) or same:
            return name if name in groups else name.rpartition(":")[0]
    raise UserError(f"--reference {wanted}: is none of the models; choose from {', '.join(groups)}")


def evaluate_inputs(
    inputs: Sequence[Input],
    names: Sequence[str],
    *,
    data: Sequence[Path],
    out: Path | None,
    protocols: Sequence[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Path]:
    """The folder of every model's evaluation; models without one are evaluated into OUT/NAME, or found there.

    Raises UserError: no `out`, one that holds another model's evaluation, a model or store that can't be opened.
    """
    missing = [place for place, entry in enumerate(inputs) if entry.evaluation is None]
    if missing and out is None:
        raise UserError(f"{inputs[missing[0]].given}: is not evaluated yet; add --out DIR for its evaluation")
    folders = {place: entry.evaluation for place, entry in enumerate(inputs) if entry.evaluation is not None}
    if missing:
        assert out is not None
        store = open_store(list(data))
        for place in missing:
            target = out / re.sub(r"[^\w.=@+-]+", "-", names[place])
            folders[place] = target
            _evaluate(inputs[place].given, store, target, protocols or DEFAULT, replicates, seed)
    return [folders[place] for place in range(len(inputs))]


def _evaluate(given: str, store: Store, target: Path, protocols: Sequence[str], replicates: int, seed: int) -> None:
    model = open_model(os.path.expanduser(given), stored_size=store.crop["size"], crop=store.crop["crop"])
    if (target / "results.json").is_file():
        about = read_results(target)["about"]
        if (about.get("model"), about["store"]) != (model.fingerprint, store.fingerprint):
            raise UserError(f"{target}: holds an evaluation of another model or store; give another --out or remove it")
        kept = (about.get("labels_fingerprint"), about.get("replicates"), about.get("seed"))
        if kept[0] is not None and kept != (labels_fingerprint(store), replicates, seed):
            raise UserError(
                f"{target}: was evaluated with other labels, splits, --replicates or --seed; remove it to evaluate "
                "again, or give another --out"
            )
        lacking = [name for name in protocols if name not in about.get("protocols", ())]
        if lacking:
            raise UserError(f"{target}: was evaluated without {', '.join(lacking)}; remove it to evaluate again")
        say(f"{given}: evaluated already, in {target}")
        return
    say(f"{given}: evaluating into {target}")
    seen = seen_in_pretraining(run_folder(given), store, store.rows("test"))
    say(seen.get("sentence") or seen["reason"])
    evaluate(
        CachedFeatures(model, store),
        store,
        target,
        protocols=protocols,
        replicates=replicates,
        seed=seed,
        extra={"seen_in_pretraining": seen},
    )


def _parts(text: str) -> tuple[str, ...]:
    """A path's parts; an external encoder is one: its architecture."""
    if ":" in text and not Path(text).expanduser().exists():
        return (text.partition(":")[2].partition("=")[0].partition("@")[0] or text,)
    return Path(text).expanduser().parts


def _distinct(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells paths apart: without the folders that all of them begin or end with."""
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]
