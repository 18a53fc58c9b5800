"""What objectives read: a batch on the device, and the views of it that a step computes once and all terms share.

B_p paired and B_u unpaired images, B in all (this rank's), L patches, K visible, C class tokens, D width, E shared.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import running_statistics
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
    Volumes are float16, (B, 1, S, S, S), and only become float32.
    keys: of the samples at this step, int64 (B,).  num_paired: B_p.
    colour: factors of the colour jitter, (B, 3).
    text_ids, text_mask: distinct texts, int64 (U, T).  text_index: which of them belongs to each paired image, int64
    (B_p,); None: the texts are in the order of the images.  text_key: equal where the normalised texts are equal,
    int64 (B_p,).
    document: a number that consecutive paired images of one patient share, int64 (B_p,); None where no loss reads any.
    labels: of the columns that the recipe names, NaN where unknown, float (B, C).
    loose_ids, loose_mask: texts without images, int64 (N, T).
    retrieved_ids, retrieved_mask: texts that were retrieved for images without their own, int64 (R, T);
    retrieved_index: which of them belongs to each image, int64 (B,), -1 for none; retrieved_score: float (B,).
    modality: number of each sample's modality, int64 (B,), -1 where it is not known; None where the store knows fewer
    than two.
    """

    image: Tensor
    keys: Tensor
    num_paired: int
    colour: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    text_index: Tensor | None = None
    text_key: Tensor | None = None
    document: Tensor | None = None
    labels: Tensor | None = None
    loose_ids: Tensor | None = None
    loose_mask: Tensor | None = None
    retrieved_ids: Tensor | None = None
    retrieved_mask: Tensor | None = None
    retrieved_index: Tensor | None = None
    retrieved_score: Tensor | None = None
    modality: Tensor | None = None

    @classmethod
    def from_host(cls, host: "HostBatch", device: torch.device | None = None) -> "Batch":
        """The tensors of a loader's batch, on a device."""

        def move(value: Tensor | None) -> Tensor | None:
            return value if value is None or device is None else value.to(device, non_blocking=True)

        names = (entry.name for entry in fields(cls) if entry.name != "num_paired")
        moved = {name: move(getattr(host, name)) for name in names}
        return cls(num_paired=host.num_paired, **moved)  # type: ignore[arg-type]


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
    patch_error: Tensor | None = None
    """Squared error of the predicted pixels of each decoded patch, (B, H'), for a masker that learns from it."""

    def keep_patch_error(self, prediction: Tensor, target: Tensor) -> None:
        """Keep the mean squared error of each patch, (B, H', V) -> (B, H'), where the masker asks for it."""
        if hasattr(self.masker, "feedback"):
            self.patch_error = (prediction.detach().float() - target).square().mean(dim=-1)

    @cached_property
    def mask(self) -> Mask:
        """The step's mask."""
        context = MaskContext(self.batch.keys, self.model.encoder.num_patches, self.progress, self)
        mask = mask_from_scores(self.masker.score(context), self.mask_ratio)
        return decode_some(mask, self.batch.keys, self.decoded_share)

    @cached_property
    def image_patches(self) -> Tensor:
        """The normalised images cut into patches, (B, L, V)."""
        return self.model.encoder.patchify(self.image)

    @cached_property
    def masked_tokens(self) -> Tensor:
        """v = f(x, keep): the masked space, (B, C + K, D)."""
        return self.model.encoder(self.image, self.mask.keep)

    @cached_property
    def encoded_paired(self) -> Tensor:
        """f(x_paired): whole paired images in the masked space, with gradient, (B_p, C + L, D)."""
        return self.model.encoder(self.image[: self.batch.num_paired])

    @cached_property
    def paired_tokens(self) -> Tensor:
        """c_paired = g(f(x_paired)): the CLIP space, with gradient, (B_p, C + L, D)."""
        return self.model.bridge(self.encoded_paired)

    @cached_property
    def unpaired_tokens(self) -> Tensor:
        """g(f(x_unpaired)): whole images without texts in the CLIP space, without gradient, (B_u, C + L, D)."""
        from maskedclip.models.attention_maps import without_weight_cache

        with torch.no_grad(), without_weight_cache(self.image.device):
            return self.model.bridge(self.model.encoder(self.image[self.batch.num_paired :]))

    @cached_property
    def pooled_image(self) -> Tensor:
        """Paired images before their projection, (B_p, D)."""
        return self.model.pool_clip(self.paired_tokens)

    @cached_property
    def text_hidden(self) -> Tensor:
        """Last hidden states of the distinct texts, with gradient, (U, T, W)."""
        assert self.batch.text_ids is not None
        assert self.batch.text_mask is not None
        assert self.model.text_encoder is not None
        return self.model.text_encoder.hidden(self.batch.text_ids, self.batch.text_mask)

    @cached_property
    def pooled_text(self) -> Tensor:
        """Distinct texts before their projection, (U, W)."""
        assert self.batch.text_mask is not None
        assert self.model.text_encoder is not None
        return self.model.text_encoder.pool_hidden(self.text_hidden, self.batch.text_mask)

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
    def unpaired_embedding(self) -> Tensor:
        """Projected images without texts, unit length, with gradient, (B_u, E), standardised by running statistics."""
        model = self.model
        with running_statistics(model):
            tokens = model.bridge(model.encoder(self.image[self.batch.num_paired :]))
            return model.project_pooled(model.pool_clip(tokens))

    @cached_property
    def retrieved_embedding(self) -> Tensor:
        """Texts that were retrieved for images without, unit length, with gradient where that is enabled, (R, E).

        They are few, and as many as it happens, so they are standardised by running statistics.
        """
        assert self.batch.retrieved_ids is not None
        assert self.batch.retrieved_mask is not None
        assert self.model.text_encoder is not None
        with running_statistics(self.model.text_encoder):
            return self.model.text_encoder(self.batch.retrieved_ids, self.batch.retrieved_mask)

    @cached_property
    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Texts of all ranks, without gradient, (M, E), and their keys, (M,)."""
        assert self.batch.text_key is not None
        return gather_rows(self.text_embedding.detach()), gather_rows(self.batch.text_key)

    @cached_property
    def target_patches(self) -> Tensor:
        """z: patches of all images in the CLIP space, without gradient, (B, L, D)."""
        encoder, image, paired = self.model.encoder, self.image, self.batch.num_paired
        targets = [encoder.patches(self.paired_tokens).detach()]
        if len(image) > paired:
            # After the passes with gradient: autocast caches its bf16 weights, and a copy made here has no gradient.
            _ = self.masked_tokens
            with torch.no_grad():
                targets.append(encoder.patches(self.model.bridge(encoder(image[paired:]))))
        return torch.cat(targets)

    @cached_property
    def teacher_patches(self) -> Tensor:
        """Patches of all images in the CLIP space of the moving average, without gradient, (B, L, D)."""
        assert self.teacher is not None
        return self.teacher.patches(self.image)

    @cached_property
    def self_attention(self) -> Tensor:
        """Attention between the patches of whole images, summed over layers, without gradient, (B, L, L)."""
        from maskedclip.models.attention_maps import summed_attention

        return summed_attention(self.model.encoder, self.image)

    @cached_property
    def teacher_attention(self) -> Tensor:
        """The same, of the moving average of the encoder."""
        from maskedclip.models.attention_maps import summed_attention

        assert self.teacher is not None
        return summed_attention(self.teacher.encoder, self.image)

    @cached_property
    def text_response(self) -> Tensor:
        """How much each patch of the paired images answers to its text, without gradient, (B_p, L)."""
        from maskedclip.models.attention_maps import text_response

        assert self.batch.text_mask is not None
        hidden, mask, index = self.text_hidden.detach(), self.batch.text_mask, self.batch.text_index
        if index is not None:
            hidden, mask = hidden[index], mask[index]
        patches = self.model.encoder.patches(self.paired_tokens).detach()
        return text_response(self.model, patches, hidden, mask)
