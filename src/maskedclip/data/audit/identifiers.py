"""What in a report may tell who the patient is.  Patterns of English reports: a hit says "look", none promises nothing.

The kinds follow the HIPAA Safe Harbor list (45 CFR 164.514(b)(2)) as far as a pattern can tell them from other words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MONTH = r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"  # noqa: E501
_NAME = r"[A-Z][a-zà-öø-ÿ'’-]+"
_STREET = r"(?:Street|St\.|Road|Rd\.?|Avenue|Ave\.?|Lane|Drive|Boulevard|Blvd\.?|Court|Square|Way|Close|Crescent)"
_ROLES = r"(?:history|presents?|presented|is|was|has|had|with|denies|reports?|and|the|for|in|on|no|of)"
_PATTERNS: dict[str, re.Pattern[str]] = {
    "name": re.compile(
        rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof)\.?\s+(?:[A-Z]\.\s*)?{_NAME}(?:\s+{_NAME})?"
        rf"|\b[Nn]ame\s*[:=]\s*{_NAME}(?:[\s,]+{_NAME})*"
        rf"|\b[Pp]atient(?:\s*:\s*|\s+)(?!(?i:{_ROLES})\b){_NAME}(?:[\s,]+{_NAME})+"
    ),
    "date": re.compile(
        r"(?<![\d./-])(?:19|20)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?![\d/])"
        r"|(?<![\d./-])(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)?\d\d(?![\d/])"
        rf"|\b\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH}\.?,?\s+(?:19|20)\d\d\b"
        rf"|\b{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+(?:19|20)\d\d\b"
    ),
    "e-mail address": re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+\b"),
    "record number": re.compile(
        r"\b(?i:MRN|NHS|SSN|accession|acc|record|chart|case|hospital|patient\s+id|id)\.?"
        r"\s*(?i:no\.?|number|num\.?|nr\.?|#)?\s*[:#=]?\s*(?=[A-Z0-9-]*\d{3})[A-Z]{0,4}[A-Z0-9-]{4,}\b"
        r"|\b[A-Z]{0,3}\d{8,}\b|\b\d{3}-\d{2}-\d{4}\b"
    ),
    "telephone number": re.compile(
        r"(?<![\w.])\+\d{1,3}[\s.-]?(?:\(?\d{1,4}\)?[\s.-]?){2,5}\d{2,4}\b"
        r"|(?<![\w.])\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}\b"
        r"|\b(?i:tel|phone|mobile|fax)\.?\s*[:#]?\s*[\d(][\d\s()./-]{5,18}\d"
    ),
    "address": re.compile(rf"\b\d{{1,5}}[A-Za-z]?,?\s+(?:{_NAME}\s+){{1,3}}{_STREET}(?!\w)"),
}
_SHOWN = 2


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A piece of a text that may identify somebody.

    Attributes:
        row: of the store.
        kind: a key of `KINDS`.
        start, end: characters of the text.
        hint: what may be printed: the first two characters, the others masked.
    """

    row: int
    kind: str
    start: int
    end: int
    hint: str


KINDS: tuple[str, ...] = tuple(_PATTERNS)


def find_identifiers(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of every likely identifier of a text; of overlapping ones the first of the kinds."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            if all(end <= left or start >= right for left, right in taken):
                taken.append((start, end))
                yield kind, start, end


def identifiers(texts: Sequence[str | None]) -> list[Hit]:
    """Likely identifiers of all rows; a text that repeats is searched once."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    hits = []
    for row, text in enumerate(texts):
        if text:
            if text not in found:
                found[text] = sorted(find_identifiers(text), key=lambda entry: entry[1])
            hits += [
                Hit(row=row, kind=kind, start=start, end=end, hint=mask(text[start:end]))
                for kind, start, end in found[text]
            ]
    return hits


def counts_by_kind(hits: Sequence[Hit]) -> dict[str, int]:
    """Kind -> hits, in the order of `KINDS`."""
    counts = Counter(hit.kind for hit in hits)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def mask(text: str) -> str:
    """The first two characters; letters and digits after them become dots, so that only the shape is seen."""
    return text[:_SHOWN] + re.sub(r"\w", "•", text[_SHOWN:])
