"""One optimizer step: whole or in parts (exact for losses that span the batch), and skipped where it is not finite.

A batch in parts is computed twice, as GradCache does (arXiv 2101.06983): first the pooled features of all parts without
gradient, from which the losses that span the batch send a gradient to each feature; then each part with gradient, where
that gradient meets the part's own losses.  Masks and augmentation belong to the samples, so both passes see the same.
"""

from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from maskedclip.models.standardise import BatchStandardise
from maskedclip.objectives.base import Batch, Losses, Report
from maskedclip.objectives.pretraining import Contrast, Part, Pool, PretrainingObjective
from maskedclip.training.weights import WeightAverage


@dataclass(frozen=True)
class Outcome:
    """What a step did.

    losses, report: scalars on the device.  norm: of the gradient before it was clipped, ().
    skipped: 1.0 where the gradient was not finite and the weights stayed as they were, else 0.0, ().
    """

    losses: Losses
    report: Report
    norm: Tensor
    skipped: Tensor

    def values(self) -> dict[str, Tensor]:
        """All that is worth a line in the log."""
        return self.losses | self.report | {"grad_norm": self.norm}


class Stepper:
    """Steps of a run, without a host synchronization inside one where the optimizer can skip on the device."""

    def __init__(
        self,
        fabric: Fabric,
        module: _FabricModule,
        objective: PretrainingObjective,
        optimizer: torch.optim.Optimizer,
        wrapped_optimizer: _FabricOptimizer,
        *,
        clip_norm: float,
        parts: int,
        average: WeightAverage | None,
        skip_on_device: bool,
    ) -> None:
        self.fabric, self.module, self.objective = fabric, module, objective
        self.optimizer, self.wrapped = optimizer, wrapped_optimizer
        self.clip_norm, self.parts, self.average = clip_norm or float("inf"), parts, average
        self.skip_on_device = skip_on_device
        self._halted: Tensor | None = None
        layers = [layer for layer in objective.modules() if isinstance(layer, BatchStandardise)]
        self._statistics = [buffer for layer in layers for buffer in layer.buffers()]

    def resume_updates(self) -> None:
        """Let steps change the weights again: from a skipped one on, none does until it has been looked at."""
        self._halted = None

    def __call__(self, batch: Batch, progress: float) -> Outcome:
        """Do one step with this rank's samples, at a place of the run in [0, 1]."""
        self.module.train()
        self.wrapped.zero_grad(set_to_none=True)  # a try that the compiler broke off may have left gradients
        statistics = [buffer.clone() for buffer in self._statistics]
        losses, report = self._gradients(batch, progress)
        norm = self.fabric.clip_gradients(self.module, self.wrapped, max_norm=self.clip_norm, error_if_nonfinite=False)
        assert isinstance(norm, Tensor)
        norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).detach()  # type: ignore[operator]
        skipped = 1.0 - torch.isfinite(norm).float()  # ranks agree: the gradient is the same on all of them
        if self.skip_on_device and self._halted is not None:
            skipped = torch.maximum(skipped, self._halted)
        for buffer, before in zip(self._statistics, statistics, strict=True):
            buffer.copy_(torch.where(skipped > 0, before, buffer))  # a skipped step leaves no trace here either
        if self.skip_on_device:
            self._halted = skipped
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
            self._update(skipped, progress)
        elif not bool(skipped):
            self._update(None, progress)
        else:
            self.objective.after_step(skipped, progress)  # parts forget what they saw in it
        self.wrapped.zero_grad(set_to_none=True)
        return Outcome(losses, report, norm, skipped)

    def _update(self, skipped: Tensor | None, progress: float) -> None:
        self.wrapped.step()
        self.objective.after_step(skipped, progress)
        if self.average is not None:
            self.average.follow(skipped)

    def _gradients(self, batch: Batch, progress: float) -> tuple[Losses, Report]:
        if self.parts == 1:
            total, losses, report = self.module(batch, progress)
            self.fabric.backward(total)
            return losses | {"loss": total.detach()}, report
        parts = split_batch(batch, self.parts)
        whole, to_image, to_text = self._spanning(batch, parts, progress)
        rows = batch.num_paired // self.parts
        sums: dict[str, Tensor] = {}
        told: dict[str, int] = {}
        losses: Losses = {}
        report: Report = {}
        start = 0
        for place, part in enumerate(parts):
            last = place + 1 == self.parts
            texts = 0 if part.text_ids is None else len(part.text_ids)
            task = Part(
                whole=whole,
                batch=batch,
                image_gradient=None if to_image is None else to_image[place * rows : (place + 1) * rows],
                text_gradient=None if to_text is None else _rows(to_text, start, texts),
                parts=self.parts,
                last=last,
            )
            start += texts
            with self.fabric.no_backward_sync(self.module, enabled=not last):
                total, losses, report = self.module(part, progress, task)
                self.fabric.backward(total)
            for name, value in (losses | report).items():
                sums[name] = sums.get(name, 0.0) + value
                told[name] = told.get(name, 0) + 1  # what spans the batch is told once, by the last part
        means = {name: value / told[name] for name, value in sums.items()}
        weighted = [self.objective.weight_of(name, progress) * value for name, value in means.items() if name in losses]
        losses = {name: means[name] for name in losses}
        return losses | {"loss": torch.stack(weighted).sum()}, {name: means[name] for name in report}

    def _spanning(
        self, batch: Batch, parts: list[Batch], progress: float
    ) -> tuple[Contrast | None, Tensor | None, Tensor | None]:
        """Pooled features of the whole batch, and the gradient of the losses that span it by each of them."""
        if not self.objective.spans_batch:
            return None, None, None
        with self.fabric.no_backward_sync(self.module):
            with torch.no_grad():
                pooled = [self.module(part, progress, Pool()) for part in parts]
            image = torch.cat([image for image, _ in pooled])
            text = torch.cat([text for _, text in pooled])
            text = _rows(text, 0, len(batch.text_ids) if batch.text_ids is not None else 0)
            whole = Contrast(image, text)
            to_image, to_text = self.module(batch, progress, whole)
        return whole, to_image, to_text


def _rows(tensor: Tensor, start: int, count: int) -> Tensor:
    """Rows [start, start + count), zero where there are none."""
    found = tensor[start : start + count]
    return found if len(found) == count else torch.cat([found, found.new_zeros(count - len(found), tensor.shape[1])])


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Equal parts of a batch, each with its share of paired images, unpaired images and distinct texts.

    Texts belong to no image here: only their features are asked for.  Where there are fewer texts than parts, a part
    takes the last text once more; its gradient is then zero.
    """
    paired, unpaired = batch.num_paired // count, (len(batch.image) - batch.num_paired) // count
    texts = 0 if batch.text_ids is None else -(-len(batch.text_ids) // count)
    parts = []
    for place in range(count):
        ours = torch.arange(place * paired, (place + 1) * paired, device=batch.image.device)
        others = torch.arange(unpaired, device=batch.image.device) + batch.num_paired + place * unpaired
        rows = torch.cat([ours, others])
        part = Batch(batch.image[rows], batch.keys[rows], paired)
        if batch.colour is not None:
            part.colour = batch.colour[rows]
        if batch.text_ids is not None and batch.text_mask is not None:
            chosen = torch.arange(place * texts, (place + 1) * texts, device=batch.image.device)
            chosen = chosen.clamp(max=len(batch.text_ids) - 1)
            part = replace(part, text_ids=batch.text_ids[chosen], text_mask=batch.text_mask[chosen])
        parts.append(_with_extras(part, batch, rows, place, count))
    return parts


def _with_extras(part: Batch, batch: Batch, rows: Tensor, place: int, count: int) -> Batch:
    """A part with its share of labels, retrieved texts and texts without images."""
    if batch.labels is not None:
        part.labels = batch.labels[rows]
    if batch.retrieved_index is not None and batch.retrieved_score is not None:
        part.retrieved_ids, part.retrieved_mask = batch.retrieved_ids, batch.retrieved_mask
        part.retrieved_index, part.retrieved_score = batch.retrieved_index[rows], batch.retrieved_score[rows]
    if batch.loose_ids is not None and batch.loose_mask is not None:
        share = len(batch.loose_ids) // count
        ours = slice(place * share, (place + 1) * share)
        part.loose_ids, part.loose_mask = batch.loose_ids[ours], batch.loose_mask[ours]
    return part
