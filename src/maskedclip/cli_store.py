"""The verb that looks after stores: check, export, migrate."""

import argparse

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import CheckFailed, UserError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check", "export", "migrate"], help="what to do")
    parser.add_argument("store", type=path, metavar="STORE", help="what `maskedclip curate` made")
    parser.add_argument("--out", type=path, default=None, metavar="DIR", help="new folder, for export and migrate")
    parser.add_argument(
        "--format", default=None, metavar="F", help="of an export: webdataset (tars) or imagefolder (with metadata.csv)"
    )
    parser.add_argument("--label", default=None, metavar="NAME", help="of an export: the label that is the class")
    parser.add_argument(
        "--sources", type=path, default=None, metavar="DIR", help="check: hash the source files below this folder, too"
    )
    parser.add_argument("--no-pictures", action="store_true", help="check: do not decode every picture")


def _store(args: argparse.Namespace) -> None:
    if args.action == "check":
        _check(args)
        return
    if args.out is None:
        raise UserError("--out: name a new folder")
    if args.action == "migrate":
        from maskedclip.data.store_migrate import migrate_store

        rows = migrate_store(args.store, args.out)
        say_next(f"{rows:,} rows in {args.out}; {args.store} is as it was", f"next: maskedclip store check {args.out}")
        return
    from maskedclip.data.store_export import FORMATS, export_store

    if args.format is None:
        raise UserError(f"--format: give {' or '.join(FORMATS)}")
    counts = export_store(args.store, args.out, args.format, label=args.label)
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    opened = (
        f'webdataset.WebDataset("{args.out}/train-{{000000..N}}.tar")'
        if args.format == "webdataset"
        else f'datasets.load_dataset("imagefolder", data_dir="{args.out}")'
    )
    say_next(f"{told} in {args.out}", f"next: open it, e.g. {opened}")


def _check(args: argparse.Namespace) -> None:
    from maskedclip.data.store_check import check_store

    found = check_store(args.store, pictures=not args.no_pictures, sources=args.sources)
    for fault in found.faults:
        print(fault)
    if found.counts:
        counts = ", ".join(f"{kind}: {count:,}" for kind, count in found.counts.items())
        raise CheckFailed(f"{args.store}: {found.rows:,} rows read, faults in {counts}; curate again, or copy it again")
    say_next(
        f"{found.rows:,} rows, no fault",
        f"next: maskedclip pretrain --config maskedclip --data {args.store} --out RUN",
    )


STORE_VERBS: dict[str, Verb] = {
    "store": Verb(
        "check a store, export it to WebDataset or ImageFolder, bring it up to date",
        "maskedclip store export stores/fundus --format webdataset --out tars",
        _arguments,
        _store,
    ),
}
