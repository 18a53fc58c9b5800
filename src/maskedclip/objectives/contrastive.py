"""L_clip, the image-text loss.  b pairs on this rank, B on all ranks, E shared width."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.ranks import gather_rows


def clip_loss(image: Tensor, text: Tensor, text_key: Tensor, scale: Tensor, *, soft_targets: bool = True) -> Tensor:
    """Pairs with equal texts are positives of each other; when all differ, this is InfoNCE.

    Row i's target is y_ij = [k_i = k_j] / sum_l [k_i = k_l] (UniCL, arXiv 2204.03610; FLAIR, arXiv 2308.07898); the
    loss is the mean of image-to-text and text-to-image cross-entropy.  Local rows meet the columns of all ranks.

    Args:
        image: unit length, (b, E).
        text: unit length, (b, E).
        text_key: equal where the normalised texts are equal, int64 (b,).
        scale: exp(s), ().
        soft_targets: False makes only the own pair positive.

    Returns: mean over this rank's rows, float32 ().
    """
    with torch.autocast(image.device.type, enabled=False):  # in bf16 the logits would lose their last two digits
        image, text = image.float(), text.float()
        all_image, all_text = gather_rows(image), gather_rows(text)  # (B, E)
        if soft_targets:
            same = text_key[:, None] == gather_rows(text_key)[None, :]  # (b, B)
        else:
            same = _own_pairs(len(image), len(all_image), image.device)
        target = same.float() / same.sum(dim=1, keepdim=True)
        to_text = functional.cross_entropy(scale.float() * image @ all_text.T, target)
        to_image = functional.cross_entropy(scale.float() * text @ all_image.T, target)
        return (to_text + to_image) / 2


def _own_pairs(rows: int, columns: int, device: torch.device) -> Tensor:
    rank = torch.distributed.get_rank() if columns > rows else 0
    return torch.arange(columns, device=device)[None, :] == torch.arange(rows, device=device)[:, None] + rank * rows


class Contrastive(nn.Module):
    """The image-text objective of a step."""

    def __init__(self, *, soft_targets: bool) -> None:
        super().__init__()
        self.soft_targets = soft_targets

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L_clip over the paired images, and how often the right text is the nearest in this rank's batch."""
        batch, scale = views.batch, views.model.scale
        image, text = views.paired_embedding, views.text_embedding
        assert batch.text_key is not None
        loss = clip_loss(image, text, batch.text_key, scale, soft_targets=self.soft_targets)
        with torch.no_grad():
            nearest = (image @ text.T).argmax(dim=1)
            accuracy = (batch.text_key[nearest] == batch.text_key).float().mean()
        return {"clip": loss}, {"clip_accuracy": accuracy, "logit_scale": scale.detach()}
