"""Fine-tuning, whole or by low-rank additions: what an encoder becomes worth once it is trained for the labels.

Protocol of RETFound (Zhou et al. 2023) and UrFound, which everybody compares with: see `FineTuneSettings`.  All binary
labels are one multi-label network; each label of several classes is a network of its own.  The epoch of the best AUROC
on the validation rows is kept, and the test rows are only ever predicted, once, by that one.

n rows, of them m in training, v in validation and q in test; O outputs of a network.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip import randomness
from maskedclip.console import Bar, bar, say
from maskedclip.data.decoded import decode_store
from maskedclip.data.images import image_batches
from maskedclip.data.store import Store
from maskedclip.data.transforms import normalise
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_data import TrainingBatch, TrainingSteps, patient_subset, training_batches
from maskedclip.evaluation.finetune_labels import Labels
from maskedclip.evaluation.finetune_layers import FineTuned, build_network, make_optimizer, parameter_groups
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.selection import obstacle
from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.models.attention import evaluation_kernels, plain_is_faster, set_attention
from maskedclip.models.features import BATCH, to_input
from maskedclip.models.saving import Preprocessing
from maskedclip.training.memory import keep_freed_memory

FEWEST_IMAGES = 4
"""Training images with a known value below which there is nothing to fine-tune on."""
_NOISE_STREAM = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedNetwork:
    """A network with the weights of its best epoch, low-rank additions merged.

    network: normalised images of `size` px -> logits.  labels: what its outputs stand for.
    """

    network: FineTuned
    labels: Labels
    size: int


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTuning:
    """What came out.

    answers: for each task its prediction on the test rows, in their order, or why it could not be learnt.  records: one
    for each network that was trained, plain values for JSON; only its `seconds` depend on the machine.  networks: the
    networks, in the same order, where they were to be kept.
    """

    answers: dict[str, Prediction | str]
    records: list[dict[str, Any]]
    networks: list[TunedNetwork] = field(default_factory=list)


def fine_tune(
    model: Model,
    store: Store,
    tasks: Mapping[str, Task],
    rows: NDArray[np.int64],
    splits: NDArray[np.str_],
    settings: FineTuneSettings | None = None,
    *,
    seed: int = 0,
    keep: bool = False,
) -> FineTuning:
    """Fine-tune copies of the model's encoder for the tasks; the model itself is not changed.

    Args:
        model: its encoder and preprocessing are taken.
        store: where the images are.
        tasks: on the n rows.
        rows: of the store, (n,).
        splits: "train", "val" or "test" for each row, (n,).
        settings: None is the protocol's.
        seed: of the order, the augmentation, the head and the noise; on a processor the same seed gives the same bits.
        keep: return the networks too.

    Raises:
        UserError: the settings do not fit the encoder, `peft` is missing, an image cannot be decoded, or the training
            diverges.
    """
    settings = settings or FineTuneSettings()
    train = splits == "train"
    if settings.max_train:
        train[train] = patient_subset(store, rows[train], settings.max_train, seed)
    answers: dict[str, Prediction | str] = {name: _obstacle(task, train) for name, task in tasks.items()}
    able = [task for name, task in tasks.items() if not answers[name]]
    binary = [task for task in able if task.kind == "binary"]
    records, networks = [], []
    if able and store.decoded is None:
        decode_store(store, settings.decoded_cache)
    keep_freed_memory(model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    for group in [*([binary] if binary else []), *([task] for task in able if task.kind != "binary")]:
        with torch.random.fork_rng(devices=devices):
            run = _Run(model, store, Labels(group, train, settings), rows, splits, settings, seed)
            run.train()
            answers |= run.answers()
        records.append(run.record())
        if keep:
            networks.append(TunedNetwork(network=run.network, labels=run.labels, size=run.size))
    return FineTuning(answers=answers, records=records, networks=networks)


def _obstacle(task: Task, train: NDArray[np.bool_]) -> str:
    known = int((train & task.known).sum())
    if 0 < known < FEWEST_IMAGES:
        return f"the training split has {known} images with a known value; fine-tuning needs {FEWEST_IMAGES}"
    return obstacle(task, train)


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear over the share `warmup` of all steps, then cosine to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class _Run:
    """One network: trained epoch by epoch, judged on the validation rows, then asked about the test rows."""

    def __init__(
        self,
        model: Model,
        store: Store,
        labels: Labels,
        rows: NDArray[np.int64],
        splits: NDArray[np.str_],
        settings: FineTuneSettings,
        seed: int,
    ) -> None:
        self.labels, self.settings, self.seed, self.device = labels, settings, seed, model.device
        self.store, self.rows, self.splits = store, rows, splits
        self.preprocessing: Preprocessing = model.preprocessing
        self.size = settings.size or model.preprocessing.size
        torch.manual_seed(seed)
        self.network, self.adapters = build_network(model, labels.outputs, settings)
        set_attention(self.network, fused=not plain_is_faster(self.device, settings.precision))
        self.groups = parameter_groups(self.network, settings)
        self.trained = {name: value for group in self.groups for name, value in group.parameters.items()}
        self.parameters = sum(value.numel() for value in self.network.parameters())
        self.optimizer = make_optimizer(self.groups, settings)
        self.steps = TrainingSteps(store, rows[labels.places], labels.shares, settings, self.size, seed)
        mean, std = self.preprocessing.mean, self.preprocessing.std
        self.mean, self.std = (torch.tensor(value, device=self.device) for value in (mean, std))
        self.losses: list[float] = []
        self.qualities: list[float] = []
        self.best_epoch, self.skipped = 0, 0
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0

    def train(self) -> None:
        """All epochs, or fewer where patience ends; the network has the weights of the best epoch afterwards."""
        self._announce()
        began, per_epoch = time.monotonic(), self.steps.steps_per_epoch
        if self.settings.head_start == "probe":
            self._start_head()
        batches = training_batches(self.steps)
        count = len(self.labels.tasks)
        with bar(f"fine-tune {self.labels.names if count == 1 else f'{count} labels'}", len(self.steps)) as shown:
            for epoch in range(1, self.settings.epochs + 1):
                self.losses.append(self._epoch(epoch, batches, shown))
                self._judge(epoch)
                stale = epoch - self.best_epoch
                if self.settings.patience and self._is_judged and stale >= self.settings.patience:
                    break
        self.seconds = time.monotonic() - began
        if self.skipped == per_epoch * len(self.losses):
            raise UserError(self._diverged(f"none of its {self.skipped} steps was finite"))
        if self._is_judged:
            with torch.no_grad():
                for name, value in self.best.items():
                    self.trained[name].copy_(value)
        else:
            self.best_epoch = len(self.losses)
        if self.adapters is not None:
            self.adapters.merge()
        say(f"fine-tuned {self.labels.names}: epoch {self.best_epoch} of {len(self.losses)} kept ({self._reason})")

    def answers(self) -> dict[str, Prediction]:
        """Predictions on the test rows, in their order."""
        return self.labels.predictions(self._logits(np.flatnonzero(self.splits == "test")))

    def record(self) -> dict[str, Any]:
        """What happened, for JSON."""
        trainable = sum(value.numel() for value in self.trained.values())
        return {
            "labels": [task.name for task in self.labels.tasks],
            "method": self.settings.method,
            "train_images": len(self.labels.places),
            "epochs": len(self.losses),
            "steps_per_epoch": self.steps.steps_per_epoch,
            "skipped_steps": self.skipped,
            "best_epoch": self.best_epoch,
            "best_epoch_by": self._reason,
            "validation_auroc": [value if math.isfinite(value) else None for value in self.qualities],
            "train_loss": [value if math.isfinite(value) else None for value in self.losses],
            "learning_rates": {group.name: group.lr for group in self.groups},
            "trainable_parameters": trainable,
            "parameters": self.parameters,
            "trainable_share": trainable / self.parameters,
            "seconds": self.seconds,
        }

    @property
    def _is_judged(self) -> bool:
        return self.best_epoch > 0 and bool(self.best)

    @property
    def _reason(self) -> str:
        if not self._is_judged:
            return "the last one: no validation row of each class"
        return f"best validation AUROC {self.qualities[self.best_epoch - 1]:.3f}"

    def _announce(self) -> None:
        rates = {group.name: group.lr for group in self.groups}
        lowest = min(rates, key=rates.__getitem__)
        others = "everywhere" if rates[lowest] == rates["head"] else f"in the head, {rates[lowest]:.2g} in {lowest}"
        trainable = sum(value.numel() for value in self.trained.values())
        say(
            f"fine-tuning {self.labels.names} ({self.settings.method}): {len(self.labels.places):,} images, "
            f"{self.settings.epochs} epochs of {self.steps.steps_per_epoch} steps; "
            f"learning rate {self.settings.lr:g} x {self.settings.batch} / 256 = {rates['head']:.2g} {others}; "
            f"{trainable:,} of {self.parameters:,} parameters trained ({trainable / self.parameters:.1%})"
        )

    def _epoch(self, epoch: int, batches: Any, shown: Bar) -> float:
        """One pass; the mean loss of its finite steps, NaN where there is none."""
        self.network.train()
        losses, began, images = [], time.monotonic(), 0
        start = (epoch - 1) * self.steps.steps_per_epoch
        for step in range(start, start + self.steps.steps_per_epoch):
            batch: TrainingBatch = next(batches)
            loss, norm = self._step(step, batch)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._skip(step, loss, norm)
            else:
                losses.append(loss)
            images += len(batch.places)
            rate = images / max(time.monotonic() - began, 1e-9)
            shown.advance(1, f"epoch {epoch}  loss {loss:.3f}  {rate:.0f} images/s")
        return float(np.mean(losses)) if losses else float("nan")

    def _step(self, step: int, batch: TrainingBatch) -> tuple[float, float]:
        """One update, left out where loss or gradient is not finite; returns loss and gradient norm."""
        self._seed_noise(step)
        factor = lr_factor(step, len(self.steps), self.settings.warmup)
        for entry, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            entry["lr"] = group.lr * factor
        colour = None if batch.colour is None else batch.colour.to(self.device)
        image = normalise(batch.image.to(self.device), self.mean, self.std, colour)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16-mixed"):
            logits = self.network(image)
        loss = self.labels.loss(logits, batch.places)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.settings.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), limit))
        if math.isfinite(norm) and math.isfinite(loss.item()):
            self.optimizer.step()
        return loss.item(), norm

    def _seed_noise(self, step: int) -> None:
        """Stochastic depth and dropout of a step depend on (seed, step) alone."""
        key = randomness.stream_keys(randomness.sample_keys(self.seed, step, np.zeros(1, np.int64)), _NOISE_STREAM)
        torch.manual_seed(int(key[0]))

    def _skip(self, step: int, loss: float, norm: float) -> None:
        self.skipped += 1
        say(f"fine-tuning: step {step} skipped: not finite (loss {loss:g}, grad_norm {norm:g}); {self.skipped} so far")
        if self.skipped > self.settings.max_bad_steps:
            raise UserError(
                self._diverged(f"{self.skipped} steps were not finite (max_bad_steps {self.settings.max_bad_steps})")
            )

    def _judge(self, epoch: int) -> None:
        """Score the validation rows, and keep the weights if they are the best so far."""
        places = np.flatnonzero(self.splits == "val")
        quality = self.labels.quality(self._logits(places), places) if len(places) else float("nan")
        self.qualities.append(quality)
        earlier = self.qualities[self.best_epoch - 1] if self.best else -math.inf
        if math.isfinite(quality) and quality > earlier:
            self.best_epoch = epoch
            self.best = {name: value.detach().clone() for name, value in self.trained.items()}

    def _start_head(self) -> None:
        """Begin at a linear probe of the untouched features."""
        weights, biases = self.labels.probe(self._outputs(self.labels.places, self.network.features))
        with torch.no_grad():
            self.network.head.weight.copy_(torch.from_numpy(weights))
            self.network.head.bias.copy_(torch.from_numpy(biases))

    def _logits(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of some of the n rows: (q, O)."""
        if not len(places):
            return np.empty((0, self.labels.outputs), np.float32)
        return self._outputs(places, self.network)

    @torch.inference_mode()
    def _outputs(self, places: NDArray[np.int64], function: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        """What a function of normalised images gives for some of the n rows, in float32 and without augmentation."""
        self.network.eval()
        parts = []
        batches = image_batches(self.store, self.rows[places], size=self.size, batch=BATCH)
        with evaluation_kernels(self.network):
            for batch in batches:
                parts.append(function(to_input(batch.to(self.device), self.preprocessing)).cpu().numpy())
        outputs = np.concatenate(parts)
        if not np.isfinite(outputs).all():
            raise UserError(self._diverged("its outputs are not finite"))
        return outputs

    def _diverged(self, how: str) -> str:
        return (
            f"finetune.lr: the fine-tuning of {self.labels.names} diverged: {how}; give less than {self.settings.lr:g}"
        )
