"""The loop.  It knows batches, one objective and the run directory; what is learnt is the objective's affair."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from maskedclip.console import bar, minutes, say
from maskedclip.data.decoded import decode_store
from maskedclip.data.loader import HostBatch, StepDataset, step_loader
from maskedclip.data.sampler import Pools, check_ranks, make_pools
from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.models.attention import plain_is_faster, set_attention
from maskedclip.models.maskedclip import MaskedCLIP, build_model
from maskedclip.models.saving import Preprocessing, read_model, save_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from maskedclip.training.monitor import Monitor, collapse_message
from maskedclip.training.optimizer import Group, make_optimizer, parameter_groups, set_learning_rates
from maskedclip.training.rundir import RunDirectory

_CAPTURES = 3


@dataclass(frozen=True)
class Finished:
    """How a call of `pretrain` ended.

    step: of the next step.  complete: all steps are done.  leads: whether this rank is the one that speaks.
    """

    run: Path
    step: int
    complete: bool
    reason: str
    leads: bool = True


def pretrain(
    recipe: Recipe,
    data: Path | str | Sequence[Path | str],
    out: Path,
    *,
    resume: bool = False,
    command: Sequence[str] | None = None,
) -> Finished:
    """Train a recipe on one store or several, and leave a run directory.

    Args:
        recipe: what to do.
        data: stores.
        out: the run directory; must be new or empty unless `resume`.
        resume: go on from the newest whole checkpoint in `out`, or start when there is none.
        command: recorded in environment.json.

    Raises:
        UserError: what was given cannot be used, or the run cannot go on.
    """
    run = RunDirectory(out)
    store = open_store(data)
    if run.is_used() and not resume:
        raise UserError(f"--out {out}: exists and is not empty; go on with --resume true, or choose another folder")
    if run.recipe_file.is_file() and run.environment_file.is_file():
        run.check_resumable(recipe, store)
    elif run.is_used() and not (out / "first_stage").is_dir():
        raise UserError(f"--out {out}: holds something that is no run; choose another folder")
    encoder_weights = None
    if recipe.training.first_stage is not None:
        first = pretrain(_first_stage(recipe), data, out / "first_stage", resume=True, command=command)
        if not first.complete:
            return Finished(out, first.step, False, f"the first stage ended early: {first.reason}", first.leads)
        encoder_weights = read_model(first.run / "model").model.encoder.state_dict()
    return _Trainer(recipe, store, run, command or sys.argv, encoder_weights).train()


def _first_stage(recipe: Recipe) -> Recipe:
    """The recipe that trains the image encoder first, by another method, for its share of the steps."""
    training = recipe.training
    assert training.first_stage is not None
    method = load_recipe([training.first_stage])
    return replace(
        recipe,
        data=replace(recipe.data, pool=method.data.pool),
        model=replace(recipe.model, bridge=method.model.bridge),
        objective=method.objective,
        training=replace(training, first_stage=None, steps=round(training.steps * training.first_stage_share)),
    )


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        run: RunDirectory,
        command: Sequence[str],
        encoder_weights: dict[str, Tensor] | None,
    ) -> None:
        self.recipe, self.store, self.run = recipe, store, run
        training = recipe.training
        self.steps = training.steps
        if training.first_stage is not None:
            self.steps = training.steps - round(training.steps * training.first_stage_share)
        self.stage = recipe.replace(training={"steps": self.steps})
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
        self.fabric = Fabric(
            accelerator=training.accelerator,
            strategy=training.strategy,
            devices=training.devices,
            num_nodes=training.num_nodes,
            precision=training.precision,
        )
        self.fabric.launch()
        check_ranks(recipe, self.fabric.world_size)
        self.pools: Pools = make_pools(store, recipe)
        self.preprocessing = Preprocessing(
            crop=store.crop["crop"],
            stored_size=store.crop["size"],
            size=recipe.data.size,
            mean=recipe.data.mean,
            std=recipe.data.std,
        )
        texts = (
            sorted({text for row in self.pools.paired.tolist() if (text := store.text(row))})
            if recipe.reads_text
            else []
        )
        model, self.tokenizer = build_model(recipe, texts)
        if encoder_weights is not None:
            model.encoder.load_state_dict(encoder_weights)
        self.model: MaskedCLIP = model
        objective = build_objective(recipe, model)
        self.groups: list[Group] = parameter_groups(objective, recipe)
        self.optimizer = make_optimizer(self.groups, recipe)
        self.objective: PretrainingObjective = objective
        set_attention(objective, fused=not plain_is_faster(self.fabric.device, training.precision))
        self.module, self.wrapped_optimizer = self.fabric.setup(objective, self.optimizer)
        self.progress = Progress()
        self._prepare(command, texts)

    @property
    def _leads(self) -> bool:
        return self.fabric.is_global_zero

    def _say(self, message: str) -> None:
        if self._leads:
            say(message)

    def _prepare(self, command: Sequence[str], texts: list[str]) -> None:
        """Restore or begin, and tell the user what is about to happen."""
        found = bool(list_checkpoints(self.run.checkpoints))
        restored, complaints = load_checkpoint(self.run.checkpoints, self.objective, self.optimizer, self.groups)
        for line in complaints:
            self._say(line)
        if restored is not None:
            self.progress = restored
            self._say(f"resumed at step {restored.step} of {self.steps}")
        elif found:
            raise UserError(f"{self.run.checkpoints}: no checkpoint is whole; start again in another --out")
        self.fabric.barrier()
        if self._leads and restored is None:
            self.run.write_start(self.recipe, self.store, command, self._facts(texts))
        if self._leads:
            self.run.truncate_metrics(self.progress.step)
        self._describe(texts)

    def _facts(self, texts: list[str]) -> dict[str, Any]:
        return {
            "paired_images": len(self.pools.paired),
            "unpaired_images": len(self.pools.unpaired),
            "patients_with_text": list(self.pools.patients_with_text),
            "distinct_texts": len(texts),
            "truncated_texts": self._truncated(texts),
            "device": str(self.fabric.device),
            "world_size": self.fabric.world_size,
            "threads": torch.get_num_threads(),
            "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in self._parts().items()},
        }

    def _parts(self) -> dict[str, torch.nn.Module]:
        parts: dict[str, torch.nn.Module | None] = {
            "image_encoder": self.model.encoder,
            "bridge": self.model.bridge,
            "text_encoder": self.model.text_encoder,
            "decoders": self.objective.terms,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _truncated(self, texts: list[str]) -> float:
        """Share of the paired images whose text is longer than the context."""
        if self.tokenizer is None or not texts:
            return 0.0
        lengths = zip(texts, self.tokenizer.lengths(texts), strict=True)
        cut = {text for text, count in lengths if count > self.tokenizer.length}
        rows = self.pools.paired.tolist()
        return sum(self.store.text(row) in cut for row in rows) / len(rows)

    def _describe(self, texts: list[str]) -> None:
        if not self._leads:
            return
        paired, unpaired = self.recipe.batch_sizes
        say(f"data: {self.pools.summary()}; {paired} + {unpaired} a step, {self.steps} steps on {self.fabric.device}")
        if self.tokenizer is not None:
            share = self._truncated(texts)
            mend = "; raise data.context_length, or data.sentences some" if share > 0.01 else ""
            say(f"texts: {len(texts):,} distinct, {self.tokenizer.length} tokens each; {share:.1%} are cut{mend}")
        scaled = (
            f"{self.recipe.training.lr:g} x {paired + unpaired} / 256" if self.recipe.training.scale_lr else "as given"
        )
        rates = ", ".join(f"{group.name} {group.lr:.2e}" for group in self.groups if "no decay" not in group.name)
        say(f"learning rates at their peak ({scaled}): {rates}")

    def train(self) -> Finished:
        """Run all remaining steps, or until the time is over."""
        training, start = self.recipe.training, self.progress.step
        dataset = StepDataset(
            self.store, self.pools, self.stage, self.tokenizer, self.fabric.global_rank, self.fabric.world_size
        )
        with self.fabric.rank_zero_first(local=True):
            decode_store(self.store, self.recipe.data.decoded_cache, shown=self._leads)
        self.monitor = Monitor(self.store, self.recipe, self.preprocessing) if training.validate_every else None
        self.log = _Log(self.run, training.tensorboard, self.progress.step) if self._leads else None
        if start == 0 and self.steps and self.monitor is not None:
            self._validate(0)
        reason = "all steps are done"
        self.began = time.monotonic() - self.progress.seconds
        window = _Window()
        with bar("pretrain", self.steps, start, shown=self._leads) as shown:
            batches = step_loader(dataset, start, self.steps)
            for step in range(start, self.steps):
                waited = time.monotonic()
                batch = next(batches)
                window.waited += time.monotonic() - waited
                self._step(step, batch, window)
                self.progress.step = step + 1
                if (step + 1) % training.log_every == 0 or step + 1 == self.steps:
                    note = self._log_window(window)
                    window = _Window()
                    shown.advance(step + 1 - shown.done, note)
                if training.validate_every and ((step + 1) % training.validate_every == 0 or step + 1 == self.steps):
                    self._validate(step + 1)
                over = self._out_of_time()
                if (step + 1) % training.checkpoint_every == 0 or step + 1 == self.steps or over:
                    self._checkpoint()
                if over and step + 1 < self.steps:
                    reason = f"training.max_minutes ({training.max_minutes:g}) is over"
                    break
        complete = self.progress.step >= self.steps
        if self._leads:
            self._write_model()
        self.fabric.barrier()
        return Finished(self.run.path, self.progress.step, complete, reason, self._leads)

    def _step(self, step: int, host: HostBatch, window: "_Window") -> None:
        """One optimizer step; skipped, counted and captured when its loss or gradient is not finite."""
        training = self.recipe.training
        window.lr = set_learning_rates(self.optimizer, self.groups, step, self.stage) * self.groups[0].lr
        batch = Batch.from_host(host, self.fabric.device)
        self.module.train()
        total, losses, report = self.module(batch, step / max(1, self.steps))
        self.fabric.backward(total)
        limit = training.clip_norm or float("inf")
        norm = self.fabric.clip_gradients(self.module, self.wrapped_optimizer, max_norm=limit, error_if_nonfinite=False)
        assert isinstance(norm, Tensor)
        if torch.isfinite(norm):  # ranks agree: the gradient is the same on all of them
            self.wrapped_optimizer.step()
            self.objective.after_step()
            window.add(losses | report | {"loss": total.detach(), "grad_norm": norm.detach()}, len(host.rows))
        else:
            self._bad_step(step, host, losses, norm)
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        self.progress.substituted += host.substituted

    def _bad_step(self, step: int, host: HostBatch, losses: dict[str, Tensor], norm: Tensor) -> None:
        """Skip a non-finite step; keep what is needed to replay it, and end the run when there are too many (P1)."""
        self.progress.bad_steps += 1
        values = {name: float(value) for name, value in losses.items()} | {"grad_norm": float(norm)}
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        self._say(f"step {step} skipped: not finite ({listed}); {self.progress.bad_steps} so far")
        captures = self.run.path / "bad_steps"
        if self._leads and len(list_checkpoints(captures)) < _CAPTURES:
            at = replace(self.progress, step=step)
            folder = save_checkpoint(captures, self.objective, self.optimizer, self.groups, at)
            facts = {
                "rows": host.rows.tolist(),
                "keys": host.keys.tolist(),
                "values": {k: str(v) for k, v in values.items()},
            }
            (folder / "batch.json").write_text(json.dumps(facts, indent=2) + "\n")
        if self.progress.bad_steps > self.recipe.training.max_bad_steps:
            raise UserError(
                f"{self.run.path}: {self.progress.bad_steps} steps were not finite (training.max_bad_steps "
                f"{self.recipe.training.max_bad_steps}); lower training.lr, and replay one with "
                f"`python -m maskedclip.training.replay {captures}/step-{step:08d}`"
            )

    def _log_window(self, window: "_Window") -> str:
        values = window.means(self.fabric)
        values |= {
            "lr": window.lr,
            "images_per_second": window.images * self.fabric.world_size / max(window.seconds, 1e-9),
            "data_wait": window.waited / max(window.seconds, 1e-9),
            "bad_steps": self.progress.bad_steps,
            "substituted": self.progress.substituted,
        }
        if self.log is not None:
            self.log.write("train", self.progress.step, values)
        rate = f"{values['images_per_second']:.0f} images/s  data wait {values['data_wait']:.0%}"
        return f"loss {values.get('loss', float('nan')):.3f}  {rate}"

    def _validate(self, step: int) -> None:
        if self.monitor is not None and self._leads:
            self.objective.eval()
            figures = self.monitor.measure(self.model)
            self.objective.train()
            assert self.log is not None
            self.log.write("validation", step, dict(figures))
            listed = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            say(f"step {step}: {listed}")
            if (warning := collapse_message(figures)) is not None:
                say(f"warning: {warning}")
        self.fabric.barrier()

    def _out_of_time(self) -> bool:
        limit = self.recipe.training.max_minutes
        if not limit:
            return False
        over = time.monotonic() - self.began > 60 * limit
        return bool(self.fabric.broadcast(over)) if self.fabric.world_size > 1 else over

    def _checkpoint(self) -> None:
        self.progress.seconds = time.monotonic() - self.began
        if self._leads:
            if self.log is not None:
                self.log.flush()
            save_checkpoint(self.run.checkpoints, self.objective, self.optimizer, self.groups, self.progress)
            prune_checkpoints(self.run.checkpoints, self.recipe.training.keep_checkpoints)
        self.fabric.barrier()

    def _write_model(self) -> None:
        decoders = self.objective.terms.state_dict()
        save_model(self.run.model, self.model, self.tokenizer, self.preprocessing, decoders)
        if self.progress.substituted:
            say(f"{self.progress.substituted} samples could not be decoded and were replaced; curate the store again")
        if self.progress.step:
            say(f"{self.progress.step} steps in {minutes(self.progress.seconds)}")


class _Window:
    """Sums over the steps since the last logged line; tensors stay on the device until then."""

    def __init__(self) -> None:
        self.began, self.waited, self.lr = time.monotonic(), 0.0, 0.0
        self.images = self.count = 0
        self.sums: dict[str, Tensor] = {}

    @property
    def seconds(self) -> float:
        """Since the window began."""
        return time.monotonic() - self.began

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Count a good step."""
        self.count, self.images = self.count + 1, self.images + images
        for name, value in values.items():
            value = value.float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Means over the steps and over the ranks."""
        if not self.count:
            return {}
        names = list(self.sums)
        stacked = torch.stack([self.sums[name] for name in names]) / self.count
        reduced = fabric.all_reduce(stacked, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return dict(zip(names, reduced.tolist(), strict=True))


class _Log:
    """metrics.jsonl always, TensorBoard beside it."""

    def __init__(self, run: RunDirectory, tensorboard: bool, step: int) -> None:
        self.file = run.metrics.open("a")
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log numbers at a step (of the steps done, from 0)."""
        self.file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Everything so far is on disk."""
        self.file.flush()
        if self.writer is not None:
            self.writer.flush()
