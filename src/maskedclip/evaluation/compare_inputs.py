"""What a user names on the command line of `compare` -> evaluations: those that are there, and those still to be made.

A model is a folder that `evaluate` wrote, a run directory, or an external encoder such as `timm:NAME=FILE@SIZE`.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskedclip.console import say
from maskedclip.data.store import Store, open_store
from maskedclip.deployment.external import open_model
from maskedclip.errors import UserError
from maskedclip.evaluation.compare_read import read_results
from maskedclip.evaluation.evaluate import DEFAULT, evaluate
from maskedclip.evaluation.evaluated_rows import labels_fingerprint
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.leakage import run_folder, seen_in_pretraining

_FOLDERS = ("evaluation", "model", "run")  # names that tell no model from another
_WEIGHTS = ".safetensors"
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
    """The models' names: those that the user gave, separated by commas, else what tells the models apart.

    Folders are told apart among folders alone, so that an encoder of others beside them does not change their names.

    Raises UserError: another number of names than of models, an empty name, two that are the same.
    """
    if names is None:
        found = _distinct(given)
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


def bootstrap_of(folders: Sequence[Path], replicates: int | None, seed: int | None) -> tuple[int, int]:
    """Replicates and seed as asked for; else those that all these evaluations were made with, else 1,000 and 0.

    With its own, a comparison repeats the evaluations' intervals, and pairs what was kept replicate by replicate.

    Raises UserError: a folder without results.
    """
    about = [read_results(folder)["about"] for folder in folders]

    def chosen(asked: int | None, name: str, usual: int) -> int:
        own = [part.get(name) for part in about]
        shared = own[0] if own and all(value == own[0] for value in own) else None
        return asked if asked is not None else shared if isinstance(shared, int) else usual

    return chosen(replicates, "replicates", 1000), chosen(seed, "seed", 0)


def evaluate_inputs(
    inputs: Sequence[Input],
    names: Sequence[str],
    *,
    data: Sequence[Path],
    out: Path | None,
    protocols: Sequence[str] | None = None,
    replicates: int | None = None,
    seed: int | None = None,
) -> list[Path]:
    """The folder of every model's evaluation; models without one are evaluated into OUT/NAME, or found below OUT.

    What an earlier call evaluated is told by its model, store and settings, under whatever name.  replicates, seed:
    None takes what `bootstrap_of` the given evaluations is.

    Raises UserError: no `out`, one that holds another model's evaluation, a model or store that can't be opened.
    """
    missing = [place for place, entry in enumerate(inputs) if entry.evaluation is None]
    if missing and out is None:
        raise UserError(f"{inputs[missing[0]].given}: is not evaluated yet; add --out DIR for its evaluation")
    folders = {place: entry.evaluation for place, entry in enumerate(inputs) if entry.evaluation is not None}
    if missing:
        assert out is not None
        replicates, seed = bootstrap_of(list(folders.values()), replicates, seed)
        store = open_store(list(data))
        targets = {place: out / re.sub(r"[^\w.=@+-]+", "-", names[place]) for place in missing}
        wanted = _Wanted(store=store, protocols=protocols or DEFAULT, replicates=replicates, seed=seed)
        for place, target in targets.items():
            # Two models of the same weights each need a folder of their own.
            taken = {folder.resolve() for folder in [*folders.values(), *targets.values()]} - {target.resolve()}
            folders[place] = _evaluated(inputs[place].given, wanted, target, taken)
    return [folders[place] for place in range(len(inputs))]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What an evaluation has to be for a comparison."""

    store: Store
    protocols: Sequence[str]
    replicates: int
    seed: int

    def is_of(self, about: Mapping[str, Any], fingerprint: str) -> bool:
        return (about.get("model"), about["store"]) == (fingerprint, self.store.fingerprint)

    def fault(self, about: Mapping[str, Any]) -> str | None:
        """Why an evaluation of the right model and store does not serve."""
        labels = about.get("labels_fingerprint")
        if labels is not None and labels != labels_fingerprint(self.store):
            return "with other labels or splits; remove it to evaluate again, or give another --out"
        own = (about.get("replicates"), about.get("seed"))
        if labels is not None and own != (self.replicates, self.seed):
            return f"with --replicates {own[0]} --seed {own[1]}; give the same, or another --out, or remove it"
        lacking = [name for name in self.protocols if name not in about.get("protocols", ())]
        return f"without {', '.join(lacking)}; remove it to evaluate again" if lacking else None


def _evaluated(given: str, wanted: _Wanted, target: Path, taken: Collection[Path]) -> Path:
    """Find the evaluation of a model beside `target`, but not in a folder that is taken, or make it there."""
    store = wanted.store
    model = open_model(os.path.expanduser(given), stored_size=store.crop["size"], crop=store.crop["crop"])
    about = read_results(target)["about"] if (target / "results.json").is_file() else None
    if about is not None and wanted.is_of(about, model.fingerprint) and wanted.fault(about) is None:
        kept = target
    else:
        kept = next((found for found in _kept(target.parent, taken) if _serves(found, wanted, model.fingerprint)), None)
    if kept is not None:
        say(f"{given}: evaluated already, in {kept}")
        return kept
    if about is not None:
        if not wanted.is_of(about, model.fingerprint):
            raise UserError(f"{target}: holds an evaluation of another model or store; give another --out or remove it")
        raise UserError(f"{target}: was evaluated {wanted.fault(about)}")
    say(f"{given}: evaluating into {target}")
    seen = seen_in_pretraining(run_folder(given), store, store.rows("test"))
    say(seen.get("sentence") or seen["reason"])
    evaluate(
        CachedFeatures(model, store),
        store,
        target,
        protocols=wanted.protocols,
        replicates=wanted.replicates,
        seed=wanted.seed,
        extra={"seen_in_pretraining": seen},
    )
    return target


def _kept(out: Path, taken: Collection[Path]) -> list[Path]:
    return [file.parent for file in sorted(out.glob("*/results.json")) if file.parent.resolve() not in taken]


def _serves(folder: Path, wanted: _Wanted, fingerprint: str) -> bool:
    """Whether an evaluation of another name is one that this call would make: of settings that are known and plain."""
    try:
        about = read_results(folder)["about"]
    except UserError:
        return False  # of no concern to this model
    own = about.get("settings") or {}
    if about.get("labels_fingerprint") is None or any(value is not None for value in own.values()):
        return False
    return wanted.is_of(about, fingerprint) and wanted.fault(about) is None


def _distinct(given: Sequence[str]) -> list[str]:
    """The shortest name of each model that no other has, of those that `_names` gives; else the longest."""
    folders = [place for place, text in enumerate(given) if not _is_encoder(text)]
    short = dict(zip(folders, _stripped([_parts(given[place]) for place in folders]), strict=True))
    names = [[short[place], text] if place in short else _names(text) for place, text in enumerate(given)]
    for _ in range(max(map(len, names))):
        first = [known[0] for known in names]
        names = [known[1:] if len(known) > 1 and first.count(known[0]) > 1 else known for known in names]
    return [known[0] for known in names]


def _is_encoder(text: str) -> bool:
    """Whether it is an encoder of others, by timm's name or its file of weights, and no folder."""
    named = ":" in text or re.sub(r"@\d+$", "", text).endswith(_WEIGHTS)
    return named and not Path(text).expanduser().is_dir()


def _names(text: str) -> list[str]:
    """What an encoder of others may be called, from short to long: its architecture or file, with its size, in full."""
    base = re.sub(r"@\d+$", "", text)
    name = base.partition(":")[2].partition("=")[0] or base if ":" in base else Path(base).name.removesuffix(_WEIGHTS)
    return [name, name + text[len(base) :], text]


def _parts(text: str) -> tuple[str, ...]:
    path = Path(text).expanduser()
    return path.parts if path.name not in ("", "..") else path.resolve().parts  # "." is no name


def _stripped(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells folders apart: without those that all of them begin or end with; of one its own name."""
    if len(parts) == 1:
        telling = [part for part in parts[0] if part not in _FOLDERS]
        return [(telling or parts[0])[-1]]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]
