"""Texts of a step as tokens, each distinct text once and in few shapes, so that compiled modules stay warm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskedclip.models.text import TextTokenizer


def distinct_tokens(texts: Sequence[str], tokenizer: TextTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Tokenise each distinct text of a batch: rows in eighths of the batch, tokens in eights.

    Args:
        texts: of the batch, B of them, at least one.
        tokenizer: of the model.

    Returns: ids and mask, int64 (U, T), where U at most B is the number of distinct texts, rounded up by repeating the
        first one; which of them each text is, int64 (B,).
    """
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids, mask = tokenizer(list(distinct))
    longest = int(mask.sum(dim=1).max())
    tokens = min(tokenizer.length, -(-longest // 8) * 8)
    eighth = -(-len(texts) // 8)
    rows = min(len(texts), -(-len(distinct) // eighth) * eighth)
    padding = torch.zeros(rows - len(distinct), dtype=torch.int64)  # the first text again; nobody refers to it
    order = torch.cat([torch.arange(len(distinct)), padding])
    return ids[order, :tokens], mask[order, :tokens], torch.tensor([distinct[text] for text in texts])
