"""Texts that are there many times: they make false negatives of a contrastive loss, and easy retrieval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from maskedclip.data.text import normalise_text

_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """How often texts repeat.

    Attributes:
        texts: rows with a text.
        distinct: different texts, without regard to case, spaces and final punctuation.
        once: texts that only one row has.
        frequent: the most frequent texts, as first written, with their rows.
    """

    texts: int
    distinct: int
    once: int
    frequent: list[tuple[str, int]]


def repetition(texts: Sequence[str | None]) -> Repetition:
    """Count the texts."""
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text, rows in Counter(text for text in texts if text).items():  # reports repeat: each is normalised once
        key = normalise_text(text)
        written.setdefault(key, text)
        counts[key] += rows
    repeated = [(written[key], count) for key, count in counts.most_common(_LISTED) if count > 1]
    return Repetition(
        texts=sum(counts.values()),
        distinct=len(counts),
        once=sum(count == 1 for count in counts.values()),
        frequent=repeated,
    )
