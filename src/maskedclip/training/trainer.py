"""The loop.  It knows batches, one objective and the run directory; what is learnt is the objective's affair."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from maskedclip.console import bar, minutes, say
from maskedclip.data.decoded import decode_store
from maskedclip.data.loader import HostBatch, StepDataset, step_loader
from maskedclip.data.sampler import Pools, check_ranks, make_pools
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.models.attention import plain_is_faster, set_attention
from maskedclip.models.lora import add_lora
from maskedclip.models.maskedclip import MaskedCLIP, build_model
from maskedclip.models.saving import Preprocessing, save_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import BuildObjective, PretrainingObjective, build_objective
from maskedclip.recipe import Recipe
from maskedclip.training.checkpoint import (
    Progress,
    keep_best,
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    read_newest,
    restore_best,
    save_checkpoint,
)
from maskedclip.training.compilation import compile_modules, first_call
from maskedclip.training.describe import announce, facts, training_texts, truncated_share
from maskedclip.training.log import Log, Window, waiting_verdict
from maskedclip.training.memory import begin_peak, keep_freed_memory, peak_bytes
from maskedclip.training.monitor import Monitor, chosen_figure, collapse_message
from maskedclip.training.optimizer import Group, freeze, make_optimizer, parameter_groups, set_learning_rates
from maskedclip.training.parallel import make_fabric
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.seen import write_seen
from maskedclip.training.step import Outcome, Stepper
from maskedclip.training.stopping import REQUEUE, StopRequest, agree
from maskedclip.training.weights import (
    AVERAGE,
    WeightAverage,
    is_sharded,
    plain_copy,
    plain_model,
    restore_tensors,
    run_tensors,
    whole,
)

_CAPTURES = 3


@dataclass(frozen=True)
class Finished:
    """How a call of `pretrain` ended.

    step: of the next step.  complete: nothing is left to do.  leads: whether this rank is the one that speaks.
    status: exit status; 75 (EX_TEMPFAIL) when a scheduler asked for the end and the run wants to be started again.
    """

    run: Path
    step: int
    complete: bool
    reason: str
    leads: bool = True
    status: int = 0


class Trainer:
    """Everything of one run: modules, optimizer, loader, progress; `train` runs what is left of its steps."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        run: RunDirectory,
        command: Sequence[str],
        encoder_weights: dict[str, Tensor] | None,
        build: BuildObjective = build_objective,
    ) -> None:
        self.recipe, self.store, self.run = recipe, store, run
        training = recipe.training
        self.steps = training.steps
        if training.first_stage is not None:
            self.steps = training.steps - round(training.steps * training.first_stage_share)
        self.stage = recipe.replace(training={"steps": self.steps})
        self.fabric = make_fabric(recipe)
        self.fabric.launch()
        keep_freed_memory(self.fabric.device)
        begin_peak(self.fabric.device)
        check_ranks(recipe, self.fabric.world_size)
        self.pools: Pools = make_pools(store, recipe)
        self.preprocessing = Preprocessing(
            crop=store.crop["crop"],
            stored_size=store.crop["size"],
            size=recipe.data.size,
            mean=recipe.data.mean,
            std=recipe.data.std,
        )
        texts = training_texts(store, self.pools, recipe)
        model, self.tokenizer = build_model(recipe, texts)
        if encoder_weights is not None:
            model.encoder.load_state_dict(encoder_weights)
        add_lora(model, recipe)
        self.model: MaskedCLIP = model
        self.objective: PretrainingObjective = build(recipe, model)
        for part in (*self.objective.terms.values(), self.objective.masker):
            if (check := getattr(part, "check_store", None)) is not None:
                check(store)
        self._make_modules()
        self.progress = Progress()
        self._prepare(command, texts)

    def _make_modules(self) -> None:
        """Freeze, choose kernels, wrap; the optimizer comes last, since FSDP2 replaces the parameters."""
        training, objective = self.recipe.training, self.objective
        self.frozen = freeze(objective, self.recipe)
        set_attention(objective, fused=not plain_is_faster(self.fabric.device, training.precision))
        if training.gradient_checkpointing:
            objective.recompute_blocks()
        self.module = self.fabric.setup_module(objective)
        self.compiled = compile_modules(objective) if training.compile else []
        self.groups: list[Group] = parameter_groups(objective, self.recipe)
        if not self.groups:
            raise UserError("training.lr_factors: every parameter is frozen, so nothing is learnt; free some")
        self.optimizer = make_optimizer(self.groups, self.recipe)
        wrapped = self.fabric.setup_optimizers(self.optimizer)
        self.average = WeightAverage(self.model, training.ema_decay) if training.ema_decay else None
        # The other ways to skip a step wait for the device; on a processor there is nothing to wait for.
        on_device = self.fabric.device.type == "cuda" and not is_sharded(objective)
        self.stepper = Stepper(
            self.fabric,
            self.module,
            objective,
            self.optimizer,
            wrapped,  # type: ignore[arg-type]
            clip_norm=training.clip_norm,
            parts=training.micro_batches,
            average=self.average,
            skip_on_device=on_device,
        )

    @property
    def _leads(self) -> bool:
        return self.fabric.is_global_zero

    def _say(self, message: str) -> None:
        if self._leads:
            say(message)

    def _prepare(self, command: Sequence[str], texts: list[str]) -> None:
        """Restore or begin, and tell the user what is about to happen."""
        found = bool(list_checkpoints(self.run.checkpoints))
        restored, complaints = read_newest(self.run.checkpoints)
        for line in complaints:
            self._say(line)
        if restored is not None:
            tensors, self.progress = restored
            self._restore(tensors)
            if (line := restore_best(self.run.checkpoints, self.progress)) is not None:
                self._say(line)
            self._say(f"resumed at step {self.progress.step} of {self.steps}")
        elif found:
            raise UserError(f"{self.run.checkpoints}: no checkpoint is whole; start again in another --out")
        self.fabric.barrier()
        truncated = truncated_share(self.store, self.pools, self.tokenizer, texts)
        if not self._leads:
            return
        device = str(self.fabric.device)
        if restored is None:
            told = facts(self.objective, self.pools, texts, truncated, device, self.fabric.world_size)
            self.run.write_start(self.recipe, self.store, command, told)
            write_seen(self.run.path, self.store, self.pools)
        self.run.truncate_metrics(self.progress.step)
        announce(
            self.recipe, self.pools, self.tokenizer, texts, truncated, self.groups, self.frozen, self.steps, device
        )

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        try:
            restore_tensors(tensors, self.objective, self.optimizer, self.groups, self.average)
        except ValueError as error:
            raise UserError(
                f"{self.run.checkpoints}: the newest checkpoint does not fit ({error}); use another --out"
            ) from None

    def train(self) -> Finished:
        """Run all remaining steps, or until there is a reason to end."""
        training, start = self.recipe.training, self.progress.step
        with self.fabric.rank_zero_first(local=True):
            decode_store(self.store, self.recipe.data.decoded_cache, shown=self._leads)
        dataset = StepDataset(
            self.store, self.pools, self.stage, self.tokenizer, self.fabric.global_rank, self.fabric.world_size
        )
        self.monitor = Monitor(self.store, self.recipe, self.preprocessing) if training.validate_every else None
        self.log = Log(self.run, training.tensorboard, self.progress.step) if self._leads else None
        if start == 0 and self.steps and self.monitor is not None:
            self._validate(0)
        reason, status, waited = "all steps are done", 0, 0.0
        entered = time.monotonic()
        self.began = entered - self.progress.seconds
        self.window = Window()
        pending: tuple[int, HostBatch, Outcome] | None = None
        with bar("pretrain", self.steps, start, shown=self._leads) as shown, StopRequest() as request:
            batches = step_loader(dataset, start, self.steps)
            if self._finished_early():
                reason, self.steps = f"{training.best_metric} got no better", start
            for step in range(start, self.steps):
                asked = time.monotonic()
                batch = next(batches)
                self.window.waited += time.monotonic() - asked
                waited += time.monotonic() - asked
                pending = self._step(step, batch, pending)
                self.progress.step = step + 1
                last = step + 1 == self.steps
                validates = bool(training.validate_every) and ((step + 1) % training.validate_every == 0 or last)
                saves = (step + 1) % training.checkpoint_every == 0 or last
                over = self._asked_to_end(step + 1, request)
                if last or validates or saves or over or (step + 1) % training.log_every == 0:
                    pending = self._look_at(pending)
                if (step + 1) % training.log_every == 0 or last:
                    shown.advance(step + 1 - shown.done, self._log_window())
                paused = time.monotonic()
                if validates:
                    self._validate(step + 1)
                stale = self._finished_early()
                if saves or over or stale:
                    self._checkpoint()
                self.window.pause(time.monotonic() - paused)
                if over and not last:
                    reason, status = over
                    break
                if stale and not last:
                    reason = f"{training.best_metric} got no better in {training.patience} validations"
                    break
        complete = self.progress.step >= self.steps or self._finished_early()
        self._write_model()
        if self._leads:
            verdict = waiting_verdict(waited / (time.monotonic() - entered), self.recipe.data.workers)
            if verdict is not None and self.progress.step > start + training.log_every:
                say(verdict)
        self.fabric.barrier()
        return Finished(self.run.path, self.progress.step, complete, reason, self._leads, status)

    def _step(
        self, step: int, host: HostBatch, pending: tuple[int, HostBatch, Outcome] | None
    ) -> tuple[int, HostBatch, Outcome] | None:
        """Launch a step, then look at the one before it, whose outcome the device knows by now."""
        launched = self._launch(step, host)
        if pending is not None and self._is_bad(pending):
            # This one changed nothing either: from a bad step on the weights wait until it has been looked at.
            launched = self._launch(step, host)
        return launched if self.stepper.skip_on_device else self._look_at(launched)

    def _launch(self, step: int, host: HostBatch) -> tuple[int, HostBatch, Outcome]:
        rate = set_learning_rates(self.optimizer, self.groups, step, self.stage)
        self.window.lr = rate * self.groups[0].lr
        batch = Batch.from_host(host, self.fabric.device)
        progress = step / max(1, self.steps)
        outcome = first_call(lambda: self.stepper(batch, progress), self.compiled, self._say)
        self.window.add(outcome.values(), len(host.rows), 1 - outcome.skipped)
        return step, host, outcome

    def _look_at(self, pending: tuple[int, HostBatch, Outcome] | None) -> None:
        """Wait for the newest step and count it."""
        if pending is not None:
            self._is_bad(pending)

    def _is_bad(self, pending: tuple[int, HostBatch, Outcome]) -> bool:
        step, host, outcome = pending
        bad = bool(outcome.skipped)
        if bad:
            self.stepper.resume_updates()
            self._bad_step(step, host, outcome)
        self.progress.substituted += host.substituted
        return bad

    def _bad_step(self, step: int, host: HostBatch, outcome: Outcome) -> None:
        """Tell of a skipped step; keep what is needed to replay it, and end the run when there are too many (P1)."""
        self.progress.bad_steps += 1
        values = {name: float(value) for name, value in (outcome.losses | {"grad_norm": outcome.norm}).items()}
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        self._say(f"step {step} skipped: not finite ({listed}); {self.progress.bad_steps} so far")
        captures = self.run.path / "bad_steps"
        if len(list_checkpoints(captures)) < _CAPTURES:
            folder = save_checkpoint(captures, self._tensors(), replace(self.progress, step=step))
            told = {
                "rows": host.rows.tolist(),
                "keys": host.keys.tolist(),
                "values": {k: str(v) for k, v in values.items()},
            }
            if self._leads:
                (folder / "batch.json").write_text(json.dumps(told, indent=2) + "\n")
        if self.progress.bad_steps > self.recipe.training.max_bad_steps:
            raise UserError(
                f"{self.run.path}: {self.progress.bad_steps} steps were not finite (training.max_bad_steps "
                f"{self.recipe.training.max_bad_steps}); lower training.lr, and replay one with "
                f"`python -m maskedclip.training.replay {captures}/step-{step:08d}`"
            )

    def _log_window(self) -> str:
        window, self.window = self.window, Window()
        values = window.means(self.fabric)
        values |= {
            "lr": window.lr,
            "images_per_second": window.images * self.fabric.world_size / max(window.seconds, 1e-9),
            "data_wait": window.waited / max(window.seconds, 1e-9),
            "bad_steps": self.progress.bad_steps,
            "substituted": self.progress.substituted,
        }
        if (peak := peak_bytes(self.fabric.device)) is not None:
            values["peak_memory_bytes"] = peak
        if self.log is not None:
            self.log.write("train", self.progress.step, values)
        rate = f"{values['images_per_second']:.0f} images/s  data wait {values['data_wait']:.0%}"
        return f"loss {values.get('loss', float('nan')):.3f}  {rate}"

    def _validate(self, step: int) -> None:
        """Score the model, all ranks together; count whether it got better."""
        if self.monitor is None:
            return
        self.objective.eval()
        figures = self.monitor.measure(plain_model(self.model, self.average))
        self.objective.train()
        if self._leads:
            assert self.log is not None
            self.log.write("validation", step, dict(figures))
            listed = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            say(f"step {step}: {listed}")
            if (warning := collapse_message(figures)) is not None:
                say(f"warning: {warning}")
        if (metric := self.recipe.training.best_metric) is not None:
            figure = chosen_figure(self.fabric.broadcast(figures), metric)
            if step:
                self._count_best(step, figure)
        self.fabric.barrier()

    def _count_best(self, step: int, figure: float) -> None:
        progress = self.progress
        if progress.best is not None and figure <= progress.best:
            progress.stale += 1
            return
        progress.best, progress.best_step, progress.stale = figure, step, 0
        progress.seconds = time.monotonic() - self.began
        save_checkpoint(self.run.checkpoints, self._tensors(), progress, name="best")

    def _finished_early(self) -> bool:
        patience = self.recipe.training.patience
        return bool(patience) and self.progress.stale >= patience

    def _asked_to_end(self, step: int, request: StopRequest) -> tuple[str, int] | None:
        """Why and with which status to end now, the same on all ranks."""
        limit = self.recipe.training.max_minutes
        code = 2 if request.received else 1 if limit and time.monotonic() - self.began > 60 * limit else 0
        code = agree(self.fabric, step, code)
        if code == 2:
            return f"{request.received or 'a signal'} asked for it", REQUEUE
        return (f"training.max_minutes ({limit:g}) is over", 0) if code else None

    def _tensors(self) -> dict[str, Tensor]:
        return run_tensors(self.objective, self.optimizer, self.groups, self.average)

    def _checkpoint(self) -> None:
        training = self.recipe.training
        self.progress.seconds = time.monotonic() - self.began
        if self.log is not None:
            self.log.flush()
        save_checkpoint(self.run.checkpoints, self._tensors(), self.progress, sharded=training.sharded_checkpoints)
        if self._leads:
            prune_checkpoints(self.run.checkpoints, training.keep_checkpoints)
            # Only now: until this checkpoint was whole, the one before it told of the best one before.
            keep_best(self.run.checkpoints, self.progress)
        self.fabric.barrier()

    def _write_model(self) -> None:
        """Write RUN/model: the newest weights, or those of the best checkpoint, or their moving average."""
        model, step = plain_model(self.model, self.average), self.progress.step
        decoders = {name: whole(value) for name, value in self.objective.terms.state_dict().items()}
        if not self._leads:
            return
        best = list_checkpoints(self.run.checkpoints, "best")
        if best and self.recipe.training.best_metric is not None:
            tensors, at = read_checkpoint(best[-1])
            source = AVERAGE if self.average is not None else "objective/model."
            model, step = plain_copy(self.model, tensors, source), at.best_step
            prefix = "objective/terms."
            decoders = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            say(f"the model is that of step {at.best_step}: best {self.recipe.training.best_metric} {at.best:.3f}")
        save_model(self.run.model, model, self.tokenizer, self.preprocessing, decoders, step)
        if self.progress.substituted:
            say(f"{self.progress.substituted} samples could not be decoded and were replaced; curate the store again")
        if self.progress.step:
            say(f"{self.progress.step} steps in {minutes(self.progress.seconds)}")
