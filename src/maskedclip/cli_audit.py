"""The verbs that look for what would make a figure wrong, and that make splits."""

import argparse
import json
from pathlib import Path

from maskedclip.cli_verb import Verb, add_manifest_reading, path, say_next
from maskedclip.errors import CheckFailed, UserError

# --- audit -----------------------------------------------------------------------------------------------------------


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=path, metavar="STORE", help="the store to look into")
    parser.add_argument(
        "--against",
        action="append",
        nargs="+",
        type=path,
        default=[],
        metavar="STORE",
        help="other stores, such as those a model was trained on",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="folder for the page, audit.html")
    parser.add_argument("--json", type=path, metavar="FILE", help="new file for all findings")
    parser.add_argument("--fix", type=path, metavar="NEW.csv", help="write a new manifest that passes")
    parser.add_argument(
        "--likeness", type=float, default=None, metavar="L", help="tell pairs from this correlation on; default 0.62"
    )
    parser.add_argument("--source", metavar="COLUMN", help="the column that tells where a picture comes from")
    parser.add_argument(
        "--patients-differ",
        action="store_true",
        help="equal patient names in different stores are different people",
    )


def _audit(args: argparse.Namespace) -> None:
    from maskedclip.data.audit.audit import audit
    from maskedclip.data.audit.duplicates import LIKENESS
    from maskedclip.data.audit.fix import check_new, dropped_file, write_fix
    from maskedclip.data.audit.page import write_page

    if args.json is not None and args.json.exists():
        raise UserError(f"{args.json}: is there already, and nothing is overwritten: give another name")
    if args.fix is not None:
        check_new(args.fix)
    page = None if args.out is None else args.out / "audit.html"
    if page is not None and page.exists():
        raise UserError(f"{page}: is there already, and nothing is overwritten: give another folder")
    against = [store for group in args.against for store in group]
    found = audit(
        args.store,
        against,
        likeness=LIKENESS if args.likeness is None else args.likeness,
        source=args.source,
        patients_differ=args.patients_differ,
    )
    lines = found.summary()
    if page is not None:
        write_page(found, page)
        lines.append(f"pictures of every suspicion: {page}")
    if args.json is not None:
        _write_new(args.json, json.dumps(found.to_json(), indent=1) + "\n")
    if args.fix is not None:
        plan = write_fix(found, args.fix)
        moved = sum(done.startswith("moved") for done in plan.done)
        dropped = int((~plan.kept).sum())
        lines.append(
            f"{args.fix}: {int(plan.kept.sum()):,} rows, {moved:,} moved to another split, {dropped:,} dropped"
            + (f" (listed in {dropped_file(args.fix)})" if dropped else "")
            + "; put it beside the old manifest, since paths start there"
        )
    for line in lines:
        print(line)
    if found.failures:
        mend = (
            f"next: maskedclip curate {args.fix} --out NEW_STORE"
            if args.fix is not None
            else f"next: maskedclip audit {args.store} --fix NEW.csv"
        )
        raise CheckFailed(f"{args.store}: {'; '.join(found.failures)}; {mend}")
    say_next(
        f"next: look at {page}" if page is not None else f"next: maskedclip audit {args.store} --out DIR, for pictures"
    )


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UserError(f"{file}: is there already, and nothing is overwritten: give another name") from None


# --- split -----------------------------------------------------------------------------------------------------------


def _split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", type=path, help="CSV, TSV, Parquet or JSONL with a column image")
    parser.add_argument("--out", type=path, required=True, metavar="NEW.csv", help="new manifest, in the same folder")
    parser.add_argument("--val", type=float, default=0.1, metavar="SHARE", help="of the patients; default 0.1")
    parser.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of the patients; default 0.2")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="decides the order of the patients")
    parser.add_argument("--keep", type=path, metavar="EARLIER.csv", help="patients of this manifest keep its splits")
    parser.add_argument(
        "--independent",
        action="store_true",
        help="by the hash of seed and patient alone: the same without --keep too, label rates alike only on average",
    )
    add_manifest_reading(parser)


def _split(args: argparse.Namespace) -> None:
    from maskedclip.data.audit.fix import check_new
    from maskedclip.data.audit.split_file import split_manifest

    check_new(args.out)
    made = split_manifest(
        args.manifest,
        args.out,
        val=args.val,
        test=args.test,
        seed=args.seed,
        keep=args.keep,
        independent=args.independent,
        encoding=args.encoding,
        allow_outside=args.allow_outside,
    )
    patients = sum(made.patients.values())
    lines = [
        f"{args.out}: {len(made.names):,} rows of {patients:,} patients, {made.kept:,} of whom had a split and keep it",
        ", ".join(f"{name} {count:,} patients ({count / patients:.1%})" for name, count in made.patients.items()),
    ]
    for entry in made.rates:
        rates = ", ".join(
            f"{name} {share:.1%} ({entry.counts[name]:,})" if entry.value else f"{name} mean {share:.4g}"
            for name, share in entry.shares.items()
        )
        lines.append(f"{entry.label}{' = ' + entry.value if entry.value else ''}: {rates}")
    say_next(
        *lines,
        f"next: maskedclip curate {args.out} --out STORE; when rows are added, --keep {args.out} moves nobody",
    )


AUDIT_VERBS: dict[str, Verb] = {
    "audit": Verb(
        "leakage, duplicates, contradictions, identifiers, drift; exit status 1 where something crosses splits",
        "maskedclip audit stores/fundus --against stores/pretraining --out audits/fundus",
        _audit_arguments,
        _audit,
    ),
    "split": Verb(
        "train, val and test by patient, alike in their labels, stable when rows are added",
        "maskedclip split manifest.csv --out manifest_split.csv --val 0.1 --test 0.2 --seed 0",
        _split_arguments,
        _split,
    ),
}
