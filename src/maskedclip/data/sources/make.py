"""From what a user has to a manifest: detect the kind of source, gather its rows, write them, and never overwrite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskedclip.data.manifest_checks import TEXT_COLUMNS
from maskedclip.data.prompt_table import texts_from_labels
from maskedclip.data.sources import (
    class_folders,
    copied,
    dicom_tree,
    flair,
    huggingface,
    joined,
    medmnist,
    webdataset,
)
from maskedclip.data.sources.detect import detect_kind
from maskedclip.data.sources.gathered import Gathered, Remark, SourceOptions, shown
from maskedclip.data.sources.target import Target
from maskedclip.errors import UserError

_EVERY = ("encoding", "allow_outside")
_COLUMNS = ("patient", "text", "split", "label")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of source: what it is called, who gathers its rows, and which options it knows."""

    about: str
    gather: Callable[[Any, Target, SourceOptions], Gathered]
    options: tuple[str, ...]


SOURCES: dict[str, Source] = {
    "classes": Source(
        about="class folders (ImageFolder, RETFound)", gather=class_folders.gather, options=("patient", "labels")
    ),
    "flair": Source(
        about="a FLAIR-style table",
        gather=flair.gather,
        options=(*_COLUMNS, "labels", "image_root", "sheet"),
    ),
    "medmnist": Source(about="a MedMNIST file", gather=medmnist.gather, options=("labels", "class_names", "slices")),
    "webdataset": Source(about="WebDataset tars", gather=webdataset.gather, options=("patient", "text", "label")),
    "huggingface": Source(
        about="a Hugging Face data set", gather=huggingface.gather, options=(*_COLUMNS, "labels", "image_column")
    ),
    "dicom": Source(
        about="a DICOM tree", gather=dicom_tree.gather, options=(*_COLUMNS, "table", "on", "sheet", "only_matched")
    ),
    "table": Source(
        about="a folder of images and a table",
        gather=joined.gather,
        options=(*_COLUMNS, "table", "on", "key", "sheet", "image_column", "image_root", "only_matched"),
    ),
    "manifest": Source(about="a manifest", gather=copied.gather, options=()),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was made.

    Attributes:
        path: the manifest.
        kind: of the source, a key of SOURCES.
        rows: of the manifest.
        remarks: on what was left out, or kept with a flaw; `remarks_file` lists them, None where there are none.
        notes: one-line remarks on how the source was read.
    """

    path: Path
    kind: str
    rows: int
    remarks: list[Remark]
    remarks_file: Path | None
    notes: list[str]

    def told_remarks(self) -> list[str]:
        """A line for each reason: how many, and one of them."""
        counts = Counter((remark.kept, remark.reason) for remark in self.remarks)
        first = {(remark.kept, remark.reason): remark.name for remark in reversed(self.remarks)}
        return [
            f"{'kept' if kept else 'left out'}: {count:,} x {reason}, such as {shown(first[kept, reason])!r}"
            for (kept, reason), count in counts.most_common()
        ]


def make_manifest(
    source: Path | str,
    out: Path,
    *,
    kind: str | None = None,
    options: SourceOptions | None = None,
    texts: Mapping[str, Sequence[str]] | bool = False,
    seed: int = 0,
) -> Made:
    """Write a manifest of what a source holds.

    Args:
        source: a folder, a file, or, for `huggingface`, a name on a hub.
        out: the new manifest, `.csv`, `.tsv`, `.jsonl` or `.parquet`.
        kind: a key of SOURCES; None to detect it.
        options: what else the user says.
        texts: rows without a text get sentences for their labels: True, of `maskedclip.data.prompts`; a table (label
            -> sentences), of that and nothing else.
        seed: of the choice of sentences.

    Raises:
        UserError: something of this exists already, an option is not for this kind of source, there are no rows, or
            what the source's own module says.
    """
    options = options or SourceOptions()
    target = Target(out, allow_outside=options.allow_outside)
    kind = kind or detect_kind(Path(source), table=options.table)
    _check_options(kind, options)
    if kind != "huggingface":
        source = Path(source)
        if not source.exists():
            raise UserError(f"{source}: no such file or folder; check the path")
    with target.writing():
        gathered = SOURCES[kind].gather(source, target, options)
        if not len(gathered.table):
            told = "; ".join(dict.fromkeys(remark.reason for remark in gathered.remarks[:100]))
            raise UserError(f"{source}: gives no rows ({told or 'it holds no images'}); nothing is written")
        table, notes = gathered.table, list(gathered.notes)
        if texts is not False:
            text, said = texts_from_labels(table, None if texts is True else texts, seed=seed)
            table = _with_column(table, "text", text)
            notes += said
        table = _in_order(table)
        target.finish(table, gathered.remarks)
    return Made(
        path=out,
        kind=kind,
        rows=len(table),
        remarks=gathered.remarks,
        remarks_file=target.remarks_file if gathered.remarks else None,
        notes=notes,
    )


def _check_options(kind: str, options: SourceOptions) -> None:
    """An option that a source does not know is refused, not ignored."""
    if kind not in SOURCES:
        raise UserError(f"--kind {kind}: no such kind; choose from {', '.join(SOURCES)}")
    for entry in fields(options):
        if entry.name not in (*_EVERY, *SOURCES[kind].options) and getattr(options, entry.name) != entry.default:
            option = entry.name.replace("_", "-")
            takers = [name for name, source in SOURCES.items() if entry.name in source.options]
            raise UserError(
                f"--{option}: is not for {SOURCES[kind].about}, --kind {kind}, but for {', '.join(takers)}; "
                "leave it away, or name the kind"
            )


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _in_order(table: pa.Table) -> pa.Table:
    """The schema's columns first, then labels, masks and what is carried; no empty column of the schema."""
    names = table.column_names
    first = [name for name in TEXT_COLUMNS if name in names and table.column(name).null_count < len(table)]
    kinds = [[name for name in names if name.startswith(kind)] for kind in ("label.", "mask.")]
    carried = [name for name in names if name not in TEXT_COLUMNS and not name.startswith(("label.", "mask."))]
    return table.select([*first, *kinds[0], *kinds[1], *carried])
