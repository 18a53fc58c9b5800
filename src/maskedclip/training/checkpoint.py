"""Checkpoints: one folder a step, complete or absent, verified by checksum, without pickle.

`state.safetensors` holds the objective's and the optimizer's tensors under names; `state.json` the step, the counters
and the checksum.  A folder gets its name only when both are on disk.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.training.optimizer import Group

_TENSORS, _STATE = "state.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run stands.  step: of the next step.  seconds: trained so far."""

    step: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    substituted: int = 0


def save_checkpoint(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group], progress: Progress
) -> Path:
    """Write `folder/step-########` and return it; atomic even when killed in the middle.

    Raises:
        UserError: no space on the disk; nothing that was there is lost.
    """
    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".partial-{progress.step:08d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_tensors(objective, optimizer, groups), partial / _TENSORS)
        state = {"progress": asdict(progress), "sha256": _sha256(partial / _TENSORS)}
        (partial / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        for name in (_TENSORS, _STATE):
            _flush(partial / name)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{target}: the checkpoint cannot be written ({error}); free some space and go on with --resume true"
        ) from None
    return target


def load_checkpoint(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]
) -> tuple[Progress | None, list[str]]:
    """Restore the newest whole checkpoint below a folder.

    Returns: where the run stands (None when there is no whole checkpoint), and a line for each damaged one.
    """
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return restore(path, objective, optimizer, groups), complaints
        except UserError as error:
            complaints.append(f"{error}; the one before it is used")
    return None, complaints


def restore(path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]) -> Progress:
    """Restore one checkpoint.

    Raises:
        UserError: a part is missing, or its checksum differs.
    """
    try:
        state = json.loads((path / _STATE).read_text())
        if _sha256(path / _TENSORS) != state["sha256"]:
            raise ValueError("its checksum differs")
        _restore(load_file(path / _TENSORS), objective, optimizer, groups)
        return Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path.name} is damaged ({line})") from None


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest ones, and what a killed run left half-written."""
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _tensors(objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]) -> dict[str, Tensor]:
    tensors = {f"objective/{name}": value for name, value in objective.state_dict().items()}
    for group in groups:
        for name, parameter in group.parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _restore(
    tensors: dict[str, Tensor], objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]
) -> None:
    weights = {
        name.removeprefix("objective/"): value for name, value in tensors.items() if name.startswith("objective/")
    }
    objective.load_state_dict(weights)
    kept: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            parameter, _, key = name.removeprefix("optimizer/").rpartition("/")
            kept.setdefault(parameter, {})[key] = value
    for group in groups:
        for name, parameter in group.parameters.items():
            if name in kept:
                optimizer.state[parameter] = {
                    key: value.clone().to(parameter.device) for key, value in kept[name].items()
                }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a crash of the machine does not undo what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
