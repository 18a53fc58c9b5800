"""A dictionary of medical entities, and where a text names them: the longest match on normalised words.

A dictionary is a plain text file, one term a line, `#` begins a comment.  Terms stand in the singular and may be
written with hyphens; `spellings` says what else counts as the same term.  `entity_tokens` finds them in token ids.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskedclip.errors import UserError

SHIPPED = Path(__file__).parent / "entities.txt"
_WORD = re.compile(r"[^\W_]+")
_WITHIN = re.compile(r"[\s'’\-‐‑]*")  # what may stand between two words of one term
# British to American: a dictionary is written in the first, texts come in both.
_AMERICAN = (
    ("haem", "hem"),
    ("oedem", "edem"),
    ("schaem", "schem"),
    ("tumour", "tumor"),
    ("fibre", "fiber"),
    ("isation", "ization"),
    ("naev", "nev"),
    ("grey", "gray"),
)


@dataclass(frozen=True)
class Entity:
    """A term in a text: characters [start, end), and the term as the dictionary has it."""

    start: int
    end: int
    term: str


def spellings(term: str) -> list[str]:
    """All lower-case writings of a term: plural, American, hyphens as they are, as spaces, or left out; sorted.

    "cotton-wool spot" -> "cotton wool spot", "cotton wool spots", "cotton-wool spot", ..., "cottonwool spots".
    """
    plain = " ".join(unicodedata.normalize("NFKC", term).lower().split())
    american = plain
    for british, other in _AMERICAN:
        american = american.replace(british, other)
    found = set()
    for spelt in {plain, american}:
        pieces = spelt.split("-")
        for joints in itertools.product(("-", " ", ""), repeat=len(pieces) - 1):
            written = "".join(piece + joint for piece, joint in zip(pieces, (*joints, ""), strict=True))
            found |= {written, _plural(written)}
    return sorted(found)


def _plural(term: str) -> str:
    if term.endswith("sis"):
        return term[:-2] + "es"
    if term.endswith(("s", "x", "ch", "sh")):
        return term + "es"
    if term.endswith("y") and term[-2:-1] not in "aeiou":
        return term[:-1] + "ies"
    return term + "s"


class EntityDictionary:
    """Terms, and the search for them in texts."""

    def __init__(self, terms: Iterable[str]) -> None:
        self.terms = tuple(dict.fromkeys(terms))
        self._terms: dict[tuple[str, ...], str] = {}
        for term in self.terms:
            for spelling in spellings(term):
                self._terms.setdefault(tuple(_WORD.findall(spelling)), term)
        self._longest = max((len(words) for words in self._terms), default=0)

    def __len__(self) -> int:
        return len(self.terms)

    def find(self, text: str) -> list[Entity]:
        """The entities of a text in their order: from the left, at each word the longest term; none overlap."""
        matches = list(_WORD.finditer(text))
        words = [unicodedata.normalize("NFKC", match.group()).lower() for match in matches]
        # a term goes on while nothing but a space, a hyphen or an apostrophe stands between its words
        joined = [
            _WITHIN.fullmatch(text, left.end(), right.start()) is not None
            for left, right in itertools.pairwise(matches)
        ]
        found, place = [], 0
        while place < len(words):
            count = 1
            while count < self._longest and place + count < len(words) and joined[place + count - 1]:
                count += 1
            while count and tuple(words[place : place + count]) not in self._terms:
                count -= 1
            if count:
                term = self._terms[tuple(words[place : place + count])]
                found.append(Entity(matches[place].start(), matches[place + count - 1].end(), term))
            place += max(1, count)
        return found


def load_entities(path: Path | str | None = None, *, field: str = "--entities") -> EntityDictionary:
    """Read a dictionary; None is the shipped one, of retinal and chest terms.

    Args:
        path: UTF-8 text, one term a line; `#` begins a comment.
        field: what the user gave the path with, for the error.

    Raises:
        UserError: the file cannot be read, or holds no term.
    """
    file = SHIPPED if path is None else Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "cannot be read")
        raise UserError(f"{field}: {file}: {why}; give a text file with one term a line, or null") from None
    terms = [" ".join(line.partition("#")[0].split()) for line in lines]
    terms = [term for term in terms if _WORD.search(term)]
    if not terms:
        raise UserError(f"{field}: {file}: holds no term; write one term a line, or give null for the shipped terms")
    return EntityDictionary(terms)
