"""What objectives read: a batch on the device, and the views of it that a step computes once and all terms share.

B_p paired and B_u unpaired images, B in all (this rank's), L patches, K visible, C class tokens, D width, E shared.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.objectives.masking import Mask, MaskContext, Masker, decode_some, mask_from_scores
from maskedclip.ranks import gather_rows

if TYPE_CHECKING:
    from maskedclip.data.loader import HostBatch
    from maskedclip.objectives.distillation import MovingAverageTeacher

Losses = dict[str, Tensor]
"""Scalars to be weighted and summed."""
Report = dict[str, Tensor]
"""Scalars to be watched, without gradient."""


@dataclass
class Batch:
    """One step's samples of one rank, paired images first.

    image: uint8, (B, 3, S, S); normalised on the device, in float32, since half precision would round the pixel target.
    keys: of the samples at this step, int64 (B,).  num_paired: B_p.
    colour: factors of the colour jitter, (B, 3).
    text_ids, text_mask: distinct texts, int64 (U, T).  text_index: which of them belongs to each paired image, int64
    (B_p,); None: the texts are in the order of the images.  text_key: equal where the normalised texts are equal,
    int64 (B_p,).
    """

    image: Tensor
    keys: Tensor
    num_paired: int
    colour: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    text_index: Tensor | None = None
    text_key: Tensor | None = None

    @classmethod
    def from_host(cls, host: "HostBatch", device: torch.device | None = None) -> "Batch":
        """The tensors of a loader's batch, on a device."""

        def move(value: Tensor | None) -> Tensor | None:
            return value if value is None or device is None else value.to(device, non_blocking=True)

        moved = {name: move(getattr(host, name)) for name in ("image", "keys", "colour")}
        texts = {name: move(getattr(host, name)) for name in ("text_ids", "text_mask", "text_index", "text_key")}
        return cls(num_paired=host.num_paired, **moved, **texts)  # type: ignore[arg-type]


@dataclass
class Views:
    """Forward passes of a step, each computed at most once, when a term first asks for it."""

    model: MaskedCLIP
    batch: Batch
    image: Tensor
    """Normalised float32 images, (B, 3, S, S)."""
    masker: Masker
    mask_ratio: float
    progress: float
    teacher: "MovingAverageTeacher | None" = None
    decoded_share: float = 1.0

    @cached_property
    def mask(self) -> Mask:
        """The step's mask."""
        context = MaskContext(self.batch.keys, self.model.encoder.num_patches, self.progress)
        mask = mask_from_scores(self.masker.score(context), self.mask_ratio)
        return decode_some(mask, self.batch.keys, self.decoded_share)

    @cached_property
    def masked_tokens(self) -> Tensor:
        """v = f(x, keep): the masked space, (B, C + K, D)."""
        return self.model.encoder(self.image, self.mask.keep)

    @cached_property
    def paired_tokens(self) -> Tensor:
        """c_paired = g(f(x_paired)): the CLIP space, with gradient, (B_p, C + L, D)."""
        return self.model.bridge(self.model.encoder(self.image[: self.batch.num_paired]))

    @cached_property
    def pooled_image(self) -> Tensor:
        """Paired images before their projection, (B_p, D)."""
        return self.model.pool(self.paired_tokens)

    @cached_property
    def pooled_text(self) -> Tensor:
        """Distinct texts before their projection, (U, W)."""
        assert self.batch.text_ids is not None
        assert self.batch.text_mask is not None
        assert self.model.text_encoder is not None
        return self.model.text_encoder.pool(self.batch.text_ids, self.batch.text_mask)

    @cached_property
    def paired_embedding(self) -> Tensor:
        """Projected paired images, unit length, (B_p, E)."""
        return self.model.project_pooled(self.pooled_image)

    @cached_property
    def text_embedding(self) -> Tensor:
        """Texts of the paired images, unit length, (B_p, E)."""
        assert self.model.text_encoder is not None
        index = self.batch.text_index
        return self.model.text_encoder.project(self.pooled_text if index is None else self.pooled_text[index])

    @cached_property
    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Texts of all ranks, without gradient, (M, E), and their keys, (M,)."""
        assert self.batch.text_key is not None
        return gather_rows(self.text_embedding.detach()), gather_rows(self.batch.text_key)

    @cached_property
    def target_patches(self) -> Tensor:
        """z: patches of all images in the CLIP space, without gradient, (B, L, D)."""
        encoder, image, paired = self.model.encoder, self.image, self.batch.num_paired
        if self.teacher is not None:
            return self.teacher.patches(image)
        targets = [encoder.patches(self.paired_tokens).detach()]
        if len(image) > paired:
            # After the passes with gradient: autocast caches its bf16 weights, and a copy made here has no gradient.
            _ = self.masked_tokens
            with torch.no_grad():
                targets.append(encoder.patches(self.model.bridge(encoder(image[paired:]))))
        return torch.cat(targets)

    @property
    def target_projection(self) -> Tensor:
        """Weight (E, D) of the projection that belongs to `target_patches`."""
        owner = self.model if self.teacher is None else self.teacher
        assert owner.image_projection is not None
        return owner.image_projection.weight
