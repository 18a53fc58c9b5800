"""The data card of a store: a README in Markdown, with the head that Hugging Face datasets reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from maskedclip.data.curate_row import RowSettings
from maskedclip.data.shards import PICTURE, hf_name
from maskedclip.errors import UserError

FREQUENT_TEXTS = 10
FREQUENT_CLASSES = 12
_MEANINGS = {
    "id": "unique in the store; hash of the manifest's image value and the source file",
    "image": "the picture: encoded bytes, and its path in the manifest",
    "text": "report, sentence or keywords; null: an unpaired image",
    "patient": "who is on the picture; null where unknown",
    "split": "`train`, `val` or `test`; null where not given",
    "sha256": "of the source file",
    "perceptual_hash": "64-bit hash of the stored picture (16 hex digits): near-duplicates differ in few bits",
    "width": "px, as stored",
    "height": "px, as stored",
    "source_width": "px of the source file",
    "source_height": "px of the source file",
    "quality.sharpness": "of edges over contrast, at 224 px; low: blurred",
    "quality.brightness": "mean grey of the visible part, 0..1",
    "quality.contrast": "standard deviation of its grey",
    "quality.saturated": "share of it that is overexposed",
    "quality.coverage": "share of the square that the photograph fills",
    "field_found": "whether a fundus field was found (and the picture cropped to it)",
}


@dataclass(frozen=True, kw_only=True)
class CardData:
    """What a card tells.

    Attributes:
        name: of the store.
        manifest: the manifest's file name.
        version: of maskedclip.
        settings: of the pictures.
        counts: as in `curation.json`.
        rows: the stored rows of the manifest's table.
        schema: of the shards.
        quarantine: reason -> rows.
        provenance: what the owner says of the images, by the keys of `PROVENANCE`.
        examples: whether `examples.jpg` is beside the card.
    """

    name: str
    manifest: str
    version: str
    settings: RowSettings
    counts: dict[str, Any]
    rows: pa.Table
    schema: pa.Schema
    quarantine: dict[str, int]
    provenance: Mapping[str, str] = field(default_factory=dict)
    examples: bool = False


def write_card(data: CardData) -> str:
    """The card's text."""
    parts = [
        _head(data.schema),
        f"# {data.name}\n\nA store of images, with reports where there are any, made by `maskedclip curate` "
        f"{data.version} from `{data.manifest}`.",
        "![Some of the pictures](examples.jpg)" if data.examples else "",
        _counts(data),
        _texts(data.rows),
        _labels(data.rows),
        _masks(data.rows),
        _settings(data),
        _columns(data.schema),
        _quarantine(data.quarantine),
        _OPENING,
        _provenance(data.provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(schema: pa.Schema) -> str:
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        '  data_files: "shard-*.parquet"',
        "dataset_info:",
        "  features:",
    ]
    for column in schema:
        kind = "image" if column.type == PICTURE else hf_name(column.type)
        lines += [f'  - name: "{column.name}"', f"    dtype: {kind}"]
    return "\n".join([*lines, "---"])


def _counts(data: CardData) -> str:
    counts = data.counts
    table = [
        ("images stored", counts["stored"]),
        ("with text (paired)", counts["paired"]),
        ("without text (unpaired)", counts["unpaired"]),
        ("patients", counts["patients"]),
    ]
    table += [(f"split {name}", count) for name, count in counts["splits"].items()]
    table += [("fundus fields found", counts["fields_found"])] if data.settings.crop == "fundus" else []
    table += [("rows quarantined", counts["quarantined"])]
    return "## What is in it\n\n" + _table(("what", "rows"), [(name, f"{count:,}") for name, count in table])


def _texts(rows: pa.Table) -> str:
    texts = Counter(text for text in rows.column("text").to_pylist() if text is not None)
    if not texts:
        return ""
    total = sum(texts.values())
    lines = [(_cell(text), f"{count:,}", f"{count / total:.1%}") for text, count in texts.most_common(FREQUENT_TEXTS)]
    return (
        f"## Texts\n\n{total:,} texts, {len(texts):,} distinct. Repeated texts are positives of each other in "
        "training; the most frequent:\n\n" + _table(("text", "rows", "share"), lines)
    )


def _labels(rows: pa.Table) -> str:
    lines = []
    for name in rows.column_names:
        if name.startswith("label."):
            values = rows.column(name).drop_null().to_pylist()
            lines.append((f"`{name}`", f"{len(values):,}", f"{len(rows) - len(values):,}", _distribution(values)))
    return "## Labels\n\n" + _table(("label", "known", "unknown", "values"), lines) if lines else ""


def _distribution(values: list[float] | list[str]) -> str:
    counts = Counter(values)
    if len(counts) > FREQUENT_CLASSES and not isinstance(values[0], str):
        low, middle, high = np.quantile(np.array(values, dtype=np.float64), (0, 0.5, 1))
        return f"{low:g} to {high:g}, median {middle:g}"
    shown = sorted(counts.items(), key=lambda item: str(item[0])) if len(counts) <= FREQUENT_CLASSES else (
        counts.most_common(FREQUENT_CLASSES)
    )  # fmt: skip
    texts = [f"{_cell(value if isinstance(value, str) else f'{value:g}')}: {count:,}" for value, count in shown]
    return ", ".join(texts) + (f" and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else "")


def _masks(rows: pa.Table) -> str:
    lines = [
        (f"`{name}`", f"{len(rows) - rows.column(name).null_count:,}")
        for name in rows.column_names
        if name.startswith("mask.")
    ]
    return "## Masks\n\n" + _table(("mask", "rows"), lines) if lines else ""


def _settings(data: CardData) -> str:
    settings = data.settings
    crop = "cropped to the fundus field where one was found" if settings.crop == "fundus" else "not cropped"
    encoding = "JPEG, quality 95, 4:4:4" if settings.encoding == "jpeg" else "PNG"
    return (
        f"## How it was made\n\nEach picture was decoded to 8-bit RGB, {crop}, padded to a square with black, resized "
        f"with antialiasing to {settings.size} px and stored as {encoding}; JPEG and PNG sources that already fitted "
        "keep their bytes. Masks moved along, nearest neighbour."
    )


def _columns(schema: pa.Schema) -> str:
    lines = []
    for column in schema:
        name = column.name
        if name.startswith("label."):
            meaning = "label; null: unknown"
        elif name.startswith("mask."):
            meaning = "mask: 8-bit PNG of one channel, and its path in the manifest; null: none"
        else:
            meaning = _MEANINGS.get(name, "carried along from the manifest")
        lines.append((f"`{name}`", "picture" if column.type == PICTURE else str(column.type), meaning))
    return "## Columns\n\n" + _table(("column", "type", "meaning"), lines)


def _quarantine(reasons: dict[str, int]) -> str:
    if not reasons:
        return "## Quarantine\n\nNo row was rejected."
    lines = [(_cell(reason), f"{count:,}") for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return "## Quarantine\n\n`quarantine.csv` names each rejected row.\n\n" + _table(("the file ...", "rows"), lines)


_OPENING = """## How to open it

```python
import datasets  # the column `split` tells train, val and test apart; datasets calls the whole table "train"
store = datasets.load_dataset("PATH_OF_THIS_FOLDER", split="train")

import duckdb
duckdb.sql("select split, count(*), count(text) from 'PATH_OF_THIS_FOLDER/shard-*.parquet' group by split")

import polars
polars.scan_parquet("PATH_OF_THIS_FOLDER/shard-*.parquet").select("id", "text", "patient").collect()
```"""

PROVENANCE = {
    "source": "Source of the images",
    "licence": "Licence and terms of use",
    "consent": "Consent and ethics approval",
    "deidentification": "De-identification",
    "contact": "Contact",
}
"""What `curate --about FILE` may say, and how the card calls it."""


def _provenance(given: Mapping[str, str]) -> str:
    lines = [
        f"- {name}: {_cell(given[key], 2000) if key in given else 'not given'}" for key, name in PROVENANCE.items()
    ]
    note = "Pictures that keep the bytes of their files keep the metadata in them."
    return "\n".join(["## Provenance, as its owner gave it", "", *lines, "", note])


def read_provenance(path: Path) -> dict[str, str]:
    """A YAML file with some of the keys of `PROVENANCE`.

    Raises:
        UserError: it cannot be read, or says something else.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--about {path}: cannot be read ({' '.join(str(error).split())}); give a YAML file") from None
    if not isinstance(given, dict) or not given:
        raise UserError(f"--about {path}: holds no keys; give some of {', '.join(PROVENANCE)}")
    for key, value in given.items():
        if key not in PROVENANCE:
            raise UserError(f"--about {path}: unknown key {key!r}; known: {', '.join(PROVENANCE)}")
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"--about {path}: {key}: give a sentence, not {value!r}")
    return given


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rule = "|".join(["", *(" --- " for _ in head), ""])
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def _cell(text: str, length: int = 120) -> str:
    """A text within one cell of a Markdown table."""
    flat = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= length else flat[: length - 3] + "..."
