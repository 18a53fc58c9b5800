"""The audit as one self-contained page of HTML, with a picture of every suspicion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from maskedclip.data.audit.audit import Audit
from maskedclip.data.audit.drift import NOTABLE
from maskedclip.data.audit.identifiers import Hit, counts_by_kind
from maskedclip.data.imaging import decode, encode_jpeg
from maskedclip.data.store import Store, shard_files
from maskedclip.errors import UserError
from maskedclip.html import Section, Table, escape, page, paragraph, picture

MOST_PAIRS, MOST_SINGLES, MOST_LINES = 200, 60, 60
"""What the page shows at most of pairs, of single pictures and of a table's rows; `--json` has all."""
_SIDE = 176  # px


def write_page(found: Audit, path: Path) -> Path:
    """Write the page, as a new file.

    Raises:
        UserError: the file is there already.
    """
    order = np.argsort(~found.crossing, kind="stable")[:MOST_PAIRS]  # what fails the audit comes first
    letters = found.letters[:MOST_SINGLES]
    patients = [row for entry in found.crossing_patients[:MOST_SINGLES] for row in _varied(found, entry.rows)]
    pairs = found.pairs
    wanted = {*pairs.first[order].tolist(), *pairs.second[order].tolist(), *letters.tolist(), *patients}
    shown = thumbnails(found.store, wanted)
    parts = [
        ("summary", "In short", _summary(found)),
        ("duplicates", "The same picture, or the same eye, twice", _pairs(found, order.tolist(), shown)),
        ("patients", "Patients in several splits", _patients(found, shown)),
        ("contradictions", "Labels that contradict each other", _contradictions(found)),
        ("writing", "Writing beside the field", _letters(found, letters.tolist(), shown)),
        ("identifiers", "Likely identifiers in reports", _identifiers(found)),
        ("balance", "Classes by split", _balance(found)),
        ("texts", "Repeated texts", _texts(found)),
        ("drift", "Differences between sources", _drift(found)),
        ("guide", "How to read this, and its limits", _GUIDE),
    ]
    sections = [Section(anchor=anchor, title=name, body=body) for anchor, name, body in parts]
    title = f"Audit of {found.store.folders[0].resolve().name}"
    others = ", ".join(folder.resolve().name for folder in found.store.folders[1:])
    subtitle = f"{found.audited:,} images" + (f", against {others}" if others else "")
    style = (Path(__file__).parent / "audit.css").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(page(title=title, subtitle=subtitle, style=style, sections=sections))
    except FileExistsError:
        raise UserError(f"{path}: is there already, and nothing is overwritten: give another folder") from None
    return path


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain cells."""
    return Table(caption=caption, columns=columns, rows=[[escape(cell) for cell in row] for row in rows]).render()


def thumbnails(store: Store, rows: Iterable[int]) -> dict[int, bytes]:
    """Small JPEGs of some rows, read from the shards; only row groups that hold one are read."""
    wanted = sorted(set(rows))
    found: dict[int, bytes] = {}
    first = 0
    for shard in (shard for folder in store.folders for shard in shard_files(folder)):
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = [row for row in wanted if first <= row < first + count]
                if here:
                    column = file.read_row_group(group, columns=["image"]).column(0)
                    found |= {row: _small(column[row - first].as_py()["bytes"]) for row in here}
                first += count
    return found


def _small(data: bytes) -> bytes:
    shrunk = Image.fromarray(decode(data))
    shrunk.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return encode_jpeg(np.asarray(shrunk), quality=85)


def _varied(found: Audit, rows: list[int]) -> list[int]:
    """One row of each split."""
    return list({str(found.splits[row]): row for row in reversed(rows)}.values())[::-1]


def _summary(found: Audit) -> str:
    failures = [paragraph(f"Failed: {sentence}.", "failed") for sentence in found.failures]
    verdict = "".join(failures) or paragraph("Passed: no patient and no duplicate crosses splits.", "passed")
    return verdict + "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found.summary()) + "</ul>"


def _row(found: Audit, row: int, shown: dict[int, bytes]) -> str:
    patient = str(found.store.patients[row]) or "unknown"
    store = "" if row < found.audited else " (other store)"
    drawn = picture(shown[row], "jpeg", f"Image {found.images[row]}") if row in shown else ""
    return (
        f"<div>{drawn}{escape(found.images[row])}{store}<br>"
        f'<span class="soft">{escape(found.splits[row])}, patient {escape(patient)}</span></div>'
    )


def _pairs(found: Audit, order: list[int], shown: dict[int, bytes]) -> str:
    if not order:
        return paragraph("None was found.")
    items = []
    for place in order:
        one, two = int(found.pairs.first[place]), int(found.pairs.second[place])
        likeness = float(found.pairs.likeness[place])
        kind = (
            "the same file"
            if likeness == 1
            else f"{'the same picture' if found.pairs.same[place] else 'the same picture, or the same eye again'}, "
            f"likeness {likeness:.2f}, {found.pairs.how[place]}"
        )
        marks = [
            mark
            for mark, holds in (("crosses splits", found.crossing[place]), ("two patients", found.two_patients[place]))
            if holds
        ]
        bad = f' <span class="bad">{escape(", ".join(marks))}</span>' if marks else ""
        strip = f'<div class="strip">{_row(found, one, shown)}{_row(found, two, shown)}</div>'
        items.append(f'<figure class="pair">{strip}<figcaption>{escape(kind)}.{bad}</figcaption></figure>')
    head = paragraph("Pairs that cross splits come first, then the surest.") + _rest(len(found.pairs), len(order))
    return head + f'<div class="pairs">{"".join(items)}</div>'


def _rest(total: int, shown: int) -> str:
    return paragraph(f"Shown are {shown:,} of {total:,}; --json FILE has all.") if shown < total else ""


def _patients(found: Audit, shown: dict[int, bytes]) -> str:
    entries = found.crossing_patients
    if not entries:
        return paragraph("None: all rows of each patient are in one split.")
    items = []
    for entry in entries[:MOST_SINGLES]:
        splits = ", ".join(f"{count:,} in {name}" for name, count in entry.splits.items())
        strip = "".join(_row(found, row, shown) for row in _varied(found, entry.rows))
        items.append(
            f'<figure class="pair"><div class="strip">{strip}</div>'
            f"<figcaption>patient {escape(entry.name)}: {escape(splits)}</figcaption></figure>"
        )
    return _rest(len(entries), len(items)) + f'<div class="pairs">{"".join(items)}</div>'


def _contradictions(found: Audit) -> str:
    entries = found.contradictions
    if not entries:
        return paragraph("None on the pairs above.")
    rows = [
        (
            entry.label,
            f"{found.images[found.pairs.first[entry.pair]]}: {entry.values[0]}",
            f"{found.images[found.pairs.second[entry.pair]]}: {entry.values[1]}",
            f"{found.pairs.likeness[entry.pair]:.2f}",
        )
        for entry in entries[:MOST_LINES]
    ]
    told = paragraph(
        "Two readings of one picture that differ are an error of one of them; on the same eye at two visits they may "
        "both be right."
    )
    return told + _rest(len(entries), len(rows)) + _table("Labels", ("label", "one", "other", "likeness"), rows)


def _letters(found: Audit, rows: list[int], shown: dict[int, bytes]) -> str:
    if not rows:
        return paragraph("None was found. Writing within the field is not looked for.")
    items = "".join(f'<div class="one">{_row(found, row, shown)}</div>' for row in rows)
    return _rest(len(found.letters), len(rows)) + f'<div class="singles">{items}</div>'


def _identifiers(found: Audit) -> str:
    hits = found.identifiers
    if not hits:
        return paragraph("No pattern matched. That does not make the texts anonymous.")
    by_kind = [(kind, f"{count:,}") for kind, count in counts_by_kind(hits).items()]
    rows = [(str(found.images[hit.row]), hit.kind, hit.hint, _place(hit)) for hit in hits[:MOST_LINES]]
    return (
        paragraph("Masked, so that this page can be passed on: look the places up in the store.")
        + _table("Kinds", ("kind", "hits"), by_kind)
        + _rest(len(hits), len(rows))
        + _table("Places", ("image", "kind", "shape", "characters"), rows)
    )


def _place(hit: Hit) -> str:
    return f"{hit.start} to {hit.end}"


def _balance(found: Audit) -> str:
    if not found.balance:
        return paragraph("The store has no labels.")
    names = list(found.balance[0].shares)
    rows = [
        (
            entry.label,
            entry.value or "(mean)",
            *(_share(entry.shares[name], entry.counts[name], bool(entry.value)) for name in names),
        )
        for entry in found.balance
    ]
    return _table("Share of the known rows, and rows", ("label", "class", *names), rows)


def _share(share: float, count: int, is_class: bool) -> str:
    if math.isnan(share):
        return "unknown"
    return f"{share:.1%} ({count:,})" if is_class else f"{share:.4g} ({count:,} known)"


def _texts(found: Audit) -> str:
    told = found.repetition
    if not told.texts:
        return paragraph("The store has no texts.")
    unsafe = {found.store.text(hit.row) for hit in found.identifiers}
    rows = [
        ("(holds a likely identifier)" if text in unsafe else _short(text), f"{count:,}", f"{count / told.texts:.1%}")
        for text, count in told.frequent
    ]
    sentence = f"{told.texts:,} texts, {told.distinct:,} distinct, {told.once:,} of which occur once."
    return paragraph(sentence) + (_table("The most frequent", ("text", "rows", "share"), rows) if rows else "")


def _short(text: str, length: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 2] + " …"


def _drift(found: Audit) -> str:
    if not found.drift:
        return paragraph(
            "There is only one source, or too few rows of any. --source COLUMN names a column to compare by."
        )
    notable = [entry for entry in found.drift if abs(entry.difference) >= NOTABLE]
    entries = (notable or found.drift[:10])[:MOST_LINES]
    rows = [
        (
            entry.source,
            entry.figure,
            f"{entry.inside:.3g}",
            f"{entry.outside:.3g}",
            f"{entry.difference:+.2f}",
            f"{entry.rows:,}",
        )
        for entry in entries
    ]
    told = paragraph(
        f"{len(notable):,} figures differ by {NOTABLE:g} standard deviations or more between a source and all others "
        f"(by {found.source}). A model may tell such sources apart by their pictures: evaluate on each by itself."
    )
    columns = ("source", "figure", "here", "elsewhere", "standardised difference", "rows")
    return told + _rest(len(notable), len(entries)) + _table("Figures", columns, rows)


_GUIDE = "".join(
    paragraph(text)
    for text in (
        "Likeness is the correlation of the fine structure (vessels, the rim of the disc) of two pictures at 64 px, "
        "whatever was done to light, size and frame. From 0.9 on it is one picture. From 0.62 to 0.9 it is one picture "
        "or the same eye on another one, often at another visit under another patient number; a few hazy pictures of "
        "different eyes reach 0.6. Look at each pair.",
        "Rows without a split count as train, as in training. Patients are compared by name.",
        "Identifiers are found by patterns of English reports, and writing by its shape on the dark background. What "
        "they do not find may still be there: an audit without hits does not make data anonymous.",
    )
)
