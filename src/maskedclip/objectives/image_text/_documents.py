"""Interleaved documents: several images and texts of one patient in one sequence (LCL, arXiv 2406.07543).

    text first    [sot] text a [soi] image a [eoi] text b [soi] image b [eoi]
    image first   [soi] image a [eoi] text a [soi] image b [eoi] text b [eot]

Each image has its text before or after it; a text that the document has had already is left out.  [sot] only begins and
[eot] only ends a document.  Places of m consecutive pairs make one row, in which attention stays within a document, so
shapes do not depend on what is in them.  b pairs, R = b / m rows, T tokens of a text, L image tokens, W width,
N = m (T + L + 1) places.  [inferred]: MMC4's sampling of sentences has no counterpart in reports.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskedclip.objectives.image_text._sequences import lay_out


@dataclass(frozen=True)
class Documents:
    """Rows for a decoder, their tokens moved to the front, and what it shall say.

    embeddings: inputs, (R, N, W).  real: 1 where there is a token, int64 (R, N).  document: of each place, (R, N).
    predicting: places whose states predict a token, int64 (R, m T).  following: that token, int64 (R, m T).
    labelled: whether it is a label, bool (R, m T): image, eoi, padding and the first token of a document never are.
    soi: the place of each pair's soi in its row, int64 (b,).  in_context: whether anything stands before it, bool (b,).
    has_read: whether a pair's soi has read another pair's image, bool (b, b).
    """

    embeddings: Tensor
    real: Tensor
    document: Tensor
    predicting: Tensor
    following: Tensor
    labelled: Tensor
    soi: Tensor
    in_context: Tensor
    has_read: Tensor


def lay_out_documents(
    words: torch.nn.Embedding,
    ids: Tensor,
    mask: Tensor,
    image: Tensor,
    eoi: Tensor,
    text_first: Tensor,
    soi_id: int,
    document: Tensor,
    text_key: Tensor,
    images: int,
) -> Documents:
    """Lay out documents; see `lay_out` for the arguments of one pair.

    Args:
        words, ids, mask, image, eoi, text_first, soi_id: as there.
        document: a number that consecutive pairs of one document share, int64 (b,).
        text_key: equal for equal texts, int64 (b,).
        images: m, pairs a row; b is a multiple of it.
    """
    pairs, tokens = ids.shape
    same = document.view(-1, images)[:, :, None] == document.view(-1, images)[:, None, :]  # (R, m, m)
    equal = same & (text_key.view(-1, images)[:, :, None] == text_key.view(-1, images)[:, None, :])
    told = equal.tril(-1).any(dim=2).flatten()  # the document has had this text, (b,)
    first = ~same.tril(-1).any(dim=2).flatten()
    last = ~same.triu(1).any(dim=2).flatten()
    text_first = text_first & ~told
    laid = lay_out(words, ids, mask, image, eoi, text_first, soi_id)

    # Tokens of the vocabulary at their places, -1 for image, eoi and padding; and which places are real.
    places, count = laid.real.shape[1], image.shape[1]
    end = mask.sum(dim=1, keepdim=True) - 1
    text = ids.masked_fill(mask == 0, -1)
    none = ids.new_full((pairs, count + 1), -1)
    before = torch.cat([text.scatter(1, end, soi_id), none], dim=1)
    after = torch.cat([ids.new_full((pairs, 1), soi_id), none, text[:, 1:]], dim=1)
    token = torch.where(text_first[:, None], before, after)  # (b, S)
    at = torch.arange(places, device=ids.device)
    start_token, end_token = text_first[:, None] & (at == 0), ~text_first[:, None] & (at == count + 1 + end)
    left_out = start_token & ~first[:, None] | end_token & ~(last & ~told)[:, None]
    left_out = left_out | (told[:, None] & (at > count + 1))
    real = (laid.real > 0) & ~left_out

    rows, width = pairs // images, images * places
    real, token = real.view(rows, width), token.view(rows, width)
    owner = document[:, None].expand(-1, places).reshape(rows, width)
    order = (~real).long().argsort(dim=1, stable=True)
    embeddings = laid.embeddings.reshape(rows, width, -1)
    embeddings = embeddings.gather(1, order[:, :, None].expand(-1, -1, embeddings.shape[2]))
    real, token, owner = (part.gather(1, order) for part in (real, token, owner))

    following, labelled = token[:, 1:], real[:, 1:] & (token[:, 1:] >= 0) & (owner[:, 1:] == owner[:, :-1])
    predicting = (~labelled).long().argsort(dim=1, stable=True)[:, : images * tokens]
    place = order.argsort(dim=1).view(pairs, places)  # of each pair's places in its row
    soi = place.gather(1, torch.where(text_first[:, None], end, 0))[:, 0]
    return Documents(
        embeddings=embeddings,
        real=real.long(),
        document=owner,
        predicting=predicting,
        following=following.gather(1, predicting).clamp(min=0),
        labelled=labelled.gather(1, predicting),
        soi=soi,
        in_context=text_first | ~first,
        has_read=(document[:, None] == document).tril(-1),
    )
