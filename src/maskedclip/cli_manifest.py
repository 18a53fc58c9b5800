"""The verb that makes a manifest of what people have, and checks one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from maskedclip.cli_verb import Verb, add_manifest_reading, path, say_next
from maskedclip.errors import UserError

if TYPE_CHECKING:
    from maskedclip.data.sources.make import Made

KINDS = ("classes", "flair", "medmnist", "webdataset", "huggingface", "dicom", "table", "manifest")
_SHOWN_REMARKS = 10


def _manifest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder or file to list; with --check, a manifest")
    parser.add_argument("--out", type=path, metavar="FILE", help="the new manifest: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--check", action="store_true", help="tell all faults of a manifest, or what it holds")
    parser.add_argument("--kind", choices=KINDS, help="what SOURCE is, where it is not detected")
    parser.add_argument("--patient", metavar="REGEX|COLUMN", help="in the file's name, or a table's column")
    parser.add_argument("--labels", choices=["nominal", "one-hot"], help="one column of class names, or 0/1 for each")
    parser.add_argument(
        "--table", type=path, metavar="FILE", help="CSV, TSV, Parquet or XLSX that describes the images"
    )
    parser.add_argument("--sheet", metavar="NAME", help="of an .xlsx file; the default: the first")
    parser.add_argument("--on", metavar="COLUMN", help="names the image; for DICOM, COLUMN or COLUMN=TAG")
    parser.add_argument("--key", metavar="REGEX", help="in the image's path, what --on is compared with")
    parser.add_argument("--image-column", metavar="COLUMN", help="paths of images (--table), or images (huggingface)")
    parser.add_argument("--image-root", type=path, metavar="FOLDER", help="where a table's image paths start")
    parser.add_argument("--text", metavar="COLUMN", help="reports, sentences or keywords")
    parser.add_argument("--label", nargs="+", action="extend", default=[], metavar="COLUMN", help="columns of labels")
    parser.add_argument("--split", metavar="COLUMN", help="train, val, test")
    parser.add_argument("--only-matched", action="store_true", help="leave out images that no row describes")
    parser.add_argument("--class-names", metavar="a,b,c", help="names of the classes 0, 1, 2 (medmnist)")
    parser.add_argument("--slices", type=int, default=0, metavar="N", help="middle slices of each volume (medmnist)")
    parser.add_argument(
        "--texts-from-labels",
        type=path,
        nargs="?",
        const=Path(),
        metavar="PROMPTS",
        help="sentences for rows without text; from an edited table, or the built-in one",
    )
    parser.add_argument("--write-prompts", type=path, metavar="FILE", help="write the table of sentences, to edit")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sentences")
    add_manifest_reading(parser)


def _manifest(args: argparse.Namespace) -> None:
    if args.check:
        _check(args)
    elif args.out is not None:
        _make(args)
    elif args.write_prompts is not None:
        _write_prompts(args.write_prompts, Path(args.source).expanduser(), args)
        say_next(
            f"next: edit {args.write_prompts}, then maskedclip manifest {args.source} --out NEW.csv "
            f"--texts-from-labels {args.write_prompts}"
        )
    else:
        raise UserError(f"{args.source}: say --out manifest.csv to list it, or --check to check a manifest")


def _check(args: argparse.Namespace) -> None:
    from maskedclip.data.sources.check import check_manifest, summarise

    if args.out is not None:
        raise UserError("--check: writes nothing; leave --out away, or --check")
    manifest = check_manifest(Path(args.source).expanduser(), encoding=args.encoding, allow_outside=args.allow_outside)
    say_next(
        *manifest.notes,
        *summarise(manifest),
        f"no faults; next: maskedclip curate {args.source} --out STORE",
    )


def _make(args: argparse.Namespace) -> None:
    from maskedclip.data.manifest import read_manifest
    from maskedclip.data.prompts import load_prompts
    from maskedclip.data.sources.check import summarise
    from maskedclip.data.sources.gathered import SourceOptions
    from maskedclip.data.sources.make import make_manifest

    if args.write_prompts is not None and (args.write_prompts.exists() or args.write_prompts.is_symlink()):
        raise UserError(f"--write-prompts {args.write_prompts}: exists already; name another file")
    if args.slices < 0:
        raise UserError(f"--slices {args.slices}: ask for 1 or more")
    texts = args.texts_from_labels is not None
    prompts = load_prompts(args.texts_from_labels) if texts and args.texts_from_labels != Path() else None
    options = SourceOptions(
        patient=args.patient,
        labels=args.labels,
        table=args.table,
        on=args.on,
        key=args.key,
        sheet=args.sheet,
        image_column=args.image_column,
        image_root=args.image_root,
        text=args.text,
        split=args.split,
        label=tuple(args.label),
        class_names=tuple(name.strip() for name in args.class_names.split(",")) if args.class_names else (),
        slices=args.slices,
        only_matched=args.only_matched,
        encoding=args.encoding,
        allow_outside=args.allow_outside,
    )
    source = args.source if args.kind == "huggingface" else str(Path(args.source).expanduser())
    made = make_manifest(
        source,
        args.out,
        kind=args.kind,
        options=options,
        texts=texts if prompts is None else prompts,
        seed=args.seed,
    )
    _say_made(made, detected=args.kind is None)
    if args.write_prompts is not None:
        _write_prompts(args.write_prompts, args.out, args)
    manifest = read_manifest(args.out, allow_outside=args.allow_outside)  # its faults are told, all at once
    say_next(*manifest.notes, *summarise(manifest), f"next: maskedclip curate {args.out} --out STORE{_outside(args)}")


def _say_made(made: "Made", *, detected: bool) -> None:
    from maskedclip.data.sources.make import SOURCES

    how = "detected; --kind says otherwise" if detected else "as you said"
    print(f"kind: {made.kind}, {SOURCES[made.kind].about} ({how})")
    for note in made.notes:
        print(note)
    told = made.told_remarks()
    for line in told[:_SHOWN_REMARKS]:
        print(line)
    if len(told) > _SHOWN_REMARKS:
        print(f"... and {len(told) - _SHOWN_REMARKS:,} more reasons")
    if made.remarks_file is not None:
        print(f"all {len(made.remarks):,} remarks are in {made.remarks_file}")
    print(f"{made.rows:,} rows in {made.path}")


def _outside(args: argparse.Namespace) -> str:
    return " --allow-outside" if args.allow_outside else ""


def _write_prompts(file: Path, manifest: Path, args: argparse.Namespace) -> None:
    from maskedclip.data.manifest import read_manifest
    from maskedclip.data.prompt_table import write_prompt_table

    table = read_manifest(manifest, encoding=args.encoding, allow_outside=args.allow_outside).table
    if not any(name.startswith("label.") for name in table.column_names):
        raise UserError(f"{manifest}: has no label columns to write sentences for; name them label.NAME")
    count = write_prompt_table(table, file)
    print(f"{count:,} entries of labels, with their sentences, in {file}")


MANIFEST_VERBS: dict[str, Verb] = {
    "manifest": Verb(
        "a manifest of what you have: folders, tables, tars, MedMNIST, DICOM; or check one",
        "maskedclip manifest photographs/ --out photographs/manifest.csv --patient '^([^_]+)'",
        _manifest_arguments,
        _manifest,
    ),
}
