"""The run directory: a recipe, an environment, metrics, checkpoints and a model that explain themselves years later."""

import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from maskedclip import parts
from maskedclip.data.pairs import pairs_fingerprint
from maskedclip.data.sampler import loose_texts
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe, recipe_from_dict
from maskedclip.whole_files import PARTIAL, write_whole

_FILES = (("model", "image_weights"), ("model", "text_encoder"))
# Fields that say how fast or how often, not what is learnt: a resumed run may change them.
_MAY_CHANGE = {
    "data": {"workers", "decoded_cache", "texts", "pairs"},  # of moved texts the fingerprint is compared
    "training": {
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "log_every",
        "validate_every",
        "validate_rows",
        "checkpoint_every",
        "keep_checkpoints",
        "max_minutes",
        "max_bad_steps",
        "tensorboard",
        "compile",
        "gradient_checkpointing",
        "micro_batches",
        "sharded_checkpoints",
        "timeout_minutes",
        "patience",
    },
}
# What a run has before its first checkpoint; none of it is needed to go on.
_BEFORE_CHECKPOINTS = {
    "recipe.yaml",
    "environment.json",
    "parts",
    "seen.parquet",
    "metrics.jsonl",
    "tensorboard",
    "bad_steps",
    "checkpoints",
    "first_stage",
}


class RunDirectory:
    """Paths of a run and the files that describe it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"
        self.recipe_file = path / "recipe.yaml"
        self.environment_file = path / "environment.json"

    def is_used(self) -> bool:
        """Whether there is anything in the folder."""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    def has_barely_begun(self) -> bool:
        """Whether all that is here is what a run leaves that is killed before its first checkpoint."""
        if not self.path.is_dir() or any(self.checkpoints.glob("[!.]*")):
            return False
        names = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(PARTIAL)}
        return {name.removesuffix(".partial") for name in names} <= _BEFORE_CHECKPOINTS

    def read_recipe(self) -> Recipe:
        """The recipe of a run.

        Raises:
            UserError: the folder holds no run, or its recipe is damaged.
        """
        if not self.recipe_file.is_file():
            raise UserError(
                f"{self.path}: no recipe.yaml, so this is no run; give the folder that `pretrain --out` wrote"
            )
        try:
            values = yaml.safe_load(self.recipe_file.read_text())
        except yaml.YAMLError:
            values = None
        if not isinstance(values, dict):
            raise self._damaged(self.recipe_file)
        try:
            return recipe_from_dict(values)
        except UserError as error:
            own = sorted((self.path / "parts").glob("*.py"))
            if "no such part" not in str(error) or not own:
                raise
            given = " ".join(f"--part {file}" for file in own)
            message = str(error).partition("; ")[0]
            raise UserError(f"{self.path}: {message}; the run was made with {given}: read it, then give it") from None

    def write_start(self, recipe: Recipe, store: Store, command: Sequence[str], extra: dict[str, Any]) -> None:
        """Write environment.json and recipe.yaml, before the first step; the recipe last: a folder with it is whole."""
        environment = {
            "command": shlex.join(command),
            "seed": recipe.seed,
            "data": {
                "stores": [str(folder.resolve()) for folder in store.folders],
                "fingerprints": store.fingerprints,
                "fingerprint": store.fingerprint,
                "pairs": pairs_fingerprint(recipe.data.pairs),
            },
            "code": _commit(),
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "versions": _versions(),
        } | extra
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.environment_file, json.dumps(environment, indent=2) + "\n")
        used = {recipe.objective.masking, *recipe.objective.terms}
        for name, source in parts.sources().items():
            if name in used:  # kept for a reader; nothing runs it unless it is given
                (self.path / "parts").mkdir(exist_ok=True)
                shutil.copyfile(source, self.path / "parts" / f"{name}.py")
        write_whole(self.recipe_file, yaml.safe_dump(recipe.to_dict(), sort_keys=False))

    def environment(self) -> dict[str, Any]:
        """What `write_start` wrote.

        Raises:
            UserError: it is damaged.
        """
        try:
            return json.loads(self.environment_file.read_text())
        except ValueError:
            raise self._damaged(self.environment_file) from None

    def _damaged(self, file: Path) -> UserError:
        return UserError(f"{file}: is damaged, so the run can't be read; begin it again in another --out")

    def check_resumable(self, recipe: Recipe, store: Store) -> None:
        """Refuse to go on with another recipe or other data.

        Raises:
            UserError: names what differs.
        """
        before, now = self.read_recipe().to_dict(), recipe.to_dict()
        different = [] if before["seed"] == now["seed"] else [f"seed ({before['seed']} -> {now['seed']})"]
        for section in ("data", "model", "objective", "training"):
            for name, value in before[section].items():
                if now[section][name] == value or name in _MAY_CHANGE.get(section, ()):
                    continue
                if (section, name) not in _FILES or not self._is_same_file(value, now[section][name]):
                    different.append(f"{section}.{name} ({value} -> {now[section][name]})")
        if different:
            raise UserError(
                f"{self.path}: the run began with another recipe: {'; '.join(different)}; "
                "resume without these changes, or choose another --out"
            )
        for name, source in parts.sources().items():
            kept = self.path / "parts" / f"{name}.py"
            if kept.is_file() and kept.read_bytes() != source.read_bytes():
                raise UserError(
                    f"--part {source}: has changed since {self.path} began; give {kept}, which it was made with, or "
                    "choose another --out"
                )
        began = self.environment()["data"]["fingerprint"]
        if began != store.fingerprint:
            raise UserError(
                f"--data: the store has changed since {self.path} began (fingerprint {began} -> {store.fingerprint}); "
                "give the store of then, or choose another --out"
            )
        if self.environment()["data"].get("pairs") != pairs_fingerprint(recipe.data.pairs):
            raise UserError(
                f"data.pairs: the pairs have changed since {self.path} began, or were added or left out; give those of "
                "then, or choose another --out"
            )
        loose = loose_texts(recipe)
        before = self.environment().get("loose_texts", {}).get("fingerprint")
        if before != (None if loose is None else loose.fingerprint):
            what = f"the texts in {loose.path.name} have changed" if loose and before else "it was added or left out"
            raise UserError(
                f"data.texts: {what} since {self.path} began; give the texts of then, or choose another --out"
            )

    def _is_same_file(self, before: str | None, now: str | None) -> bool:
        """Whether a path of the run's beginning, relative to where it was started, and one of today lead to one file.

        A run is often started in a folder around its own.
        """
        if before is None or now is None or not Path(now).exists():
            return False
        places = (start / before for start in (Path.cwd(), *self.path.resolve().parents))
        return any(place.exists() and place.samefile(now) for place in places)

    def truncate_metrics(self, step: int) -> None:
        """Drop what a killed run logged after its last checkpoint, so that each step has one line."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the half line of a killed run
            if step and entry["step"] <= step:  # a run that begins anew logs its step 0 anew
                kept.append(line)
        write_whole(self.metrics, "".join(line + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged lines."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]


def _versions() -> dict[str, str]:
    names = ("maskedclip", "torch", "torchvision", "timm", "transformers", "lightning-fabric", "numpy", "pyarrow")
    return {name: metadata.version(name) for name in names}


def _commit() -> str | None:
    """The commit of a checkout; None for an installed package."""
    folder = Path(__file__).parent
    try:
        tracked, found = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=5, check=False)
            for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # a package installed below somebody else's repository is not of its commit
    return found.stdout.strip() or None if tracked.returncode == 0 else None
