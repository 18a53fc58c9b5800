"""LCL's two orders of one image and its text, as rows of one batch for one causal decoder (arXiv 2406.07543).

    image first   [soi] image [eoi] text [eot]
    text first    [sot] text [soi] image [eoi]

[CLS] is sot, [SEP] eot, [MASK] soi; eoi is a learnt vector outside the vocabulary.  Both orders take T + L + 1 places:
text first leaves its padding between soi and the image, where nobody attends to it and no position is counted.
b pairs, T tokens of a text, L image tokens, W width, S = T + L + 1 places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Rows for a decoder, and what it shall say.

    embeddings: inputs, (b, S, W).  real: 1 where there is a token, 0 at padding, int64 (b, S).
    predicting: places whose states predict a token, int64 (b, T - 1).  following: that token, int64 (b, T - 1).
    labelled: whether it is a label, bool (b, T - 1): padding, image and eoi never are; soi is one where text is first.
    soi: the place of soi, int64 (b,).
    """

    embeddings: Tensor
    real: Tensor
    predicting: Tensor
    following: Tensor
    labelled: Tensor
    soi: Tensor


def lay_out(
    words: torch.nn.Embedding, ids: Tensor, mask: Tensor, image: Tensor, eoi: Tensor, text_first: Tensor, soi_id: int
) -> Sequences:
    """Lay out each pair in its order.

    Args:
        words: the decoder's word embeddings.
        ids: [CLS] text [SEP] and padding, int64 (b, T); they stay as they are.
        mask: 1 at real tokens, int64 (b, T).
        image: image tokens, (b, L, W).
        eoi: the vector that ends an image, (W,).
        text_first: the order of each row, bool (b,).
        soi_id: the token that begins an image.
    """
    (rows, tokens), count = ids.shape, image.shape[1]
    last = mask.sum(dim=1, keepdim=True) - 1
    opened = ids.scatter(1, last, soi_id)  # text with soi for its eot
    end, start = eoi.to(image.dtype).expand(rows, 1, -1), words(ids.new_full((rows, 1), soi_id))
    before = [words(opened).to(image.dtype), image, end]
    after = [start.to(image.dtype), image, end, words(ids[:, 1:]).to(image.dtype)]
    ones, order = mask.new_ones(rows, count + 2), text_first[:, None]
    shift = torch.where(order, 0, count + 1)
    return Sequences(
        embeddings=torch.where(order[:, :, None], torch.cat(before, dim=1), torch.cat(after, dim=1)),
        real=torch.where(order, torch.cat([mask, ones[:, 1:]], dim=1), torch.cat([ones, mask[:, 1:]], dim=1)),
        predicting=torch.arange(tokens - 1, device=ids.device) + shift,
        following=torch.where(order, opened[:, 1:], ids[:, 1:]),
        labelled=mask[:, 1:] > 0,
        soi=torch.where(text_first, last[:, 0], 0),
    )
