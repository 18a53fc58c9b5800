"""The verb that retrieves texts for images that have none."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError

if TYPE_CHECKING:
    from maskedclip.deployment.pair import Retrieved

_LISTED = 5


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory with texts, or an open_clip folder")
    parser.add_argument(
        "--data", action="append", nargs="+", type=path, required=True, metavar="STORE", help="whose images get texts"
    )
    parser.add_argument(
        "--texts",
        type=path,
        default=None,
        metavar="FILE.csv",
        help="a table with a column of texts (.csv, .tsv, .jsonl, .parquet); default: those of the training images",
    )
    parser.add_argument("--column", default="text", metavar="NAME", help="of --texts; default text")
    parser.add_argument("--encoding", default="utf-8", help="of a CSV's text, e.g. latin-1")
    parser.add_argument(
        "--out", type=path, required=True, metavar="PAIRS.parquet", help="new file: id, sha256, text, score, rank"
    )
    parser.add_argument(
        "--images",
        choices=["unpaired", "all"],
        default="unpaired",
        help="those without a text that the run's training read (default), or all",
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="whose images get texts; default train; or all"
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="texts an image; default 1")
    parser.add_argument("--threshold", type=float, default=None, metavar="T", help="least score, a cosine in [-1, 1]")
    parser.add_argument(
        "--mutual", action="store_true", help="keep a pair only where the image is among the text's K nearest, too"
    )
    parser.add_argument(
        "--page", type=path, default=None, metavar="FILE.html", help="new page of pictures; default beside --out"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")


def _pair(args: argparse.Namespace) -> None:
    from maskedclip.objectives.pairing import Pairing

    if args.out.suffix != ".parquet":
        raise UserError(f"--out {args.out}: name it .parquet")
    drawn = args.page or args.out.with_suffix(".html")
    if drawn.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--page {drawn}: name it .html")
    for option, file in (("--out", args.out), ("--page", drawn)):
        if file.exists():
            raise UserError(f"{option} {file}: exists; choose another file")
    try:
        pairing = Pairing(top=args.top, threshold=args.threshold, mutual=args.mutual)
    except ValueError as error:
        raise UserError(f"--{error}") from None

    from maskedclip.data.store import open_store, refuse_volumes
    from maskedclip.deployment.external import open_model
    from maskedclip.deployment.pair import choose_images, distinct_texts, read_texts, retrieve, write_pairs
    from maskedclip.deployment.pair_page import write_page

    store = open_store([store for group in args.data for store in group])
    refuse_volumes(store, "pair")
    prepared = {"crop": store.crop["crop"], "stored_size": store.crop["size"]}
    model = open_model(str(Path(args.run).expanduser()), device=args.device, **prepared)
    if not model.has_text:
        raise UserError(
            f"{args.run}: was trained without texts and cannot retrieve any; train with --config maskedclip"
        )
    images = choose_images(store, args.split, args.images, Path(args.run).expanduser())
    if args.texts is not None:
        texts, source = read_texts(args.texts, args.column, args.encoding), args.texts.name
    else:
        texts, source = distinct_texts([store.texts[row] for row in images.with_text.tolist()]), "the training images"
        if not texts:
            raise UserError("--texts: the store's training images have no text to retrieve; give a table of texts")
    found = retrieve(model, store, images, texts, pairing)
    told = f"{args.images} images of split {args.split} ({images.told}); texts of {source}"
    write_page(found, drawn, told)  # first: without the pairs the same command can be given again
    write_pairs(found, args.out)
    say_next(
        f"{told}: {len(found.paired):,} of {len(found.rows):,} images have a text",
        *_report(found),
        f"{args.out}: {(found.found.index >= 0).sum():,} pairs; pictures of the best, median and worst: {drawn}",
        f"next: look at {drawn}, then maskedclip pretrain --config clipit_style --data.pairs {args.out}"
        f"{_same_share(Path(args.run).expanduser())} --data {args.data[0][0]} --out RUN",
    )


def _same_share(run: Path) -> str:
    """Flags that leave the same images without text as the run did."""
    from maskedclip.training.rundir import RunDirectory

    directory = RunDirectory(run)
    if not directory.recipe_file.is_file():
        return ""
    recipe = directory.read_recipe()
    if recipe.data.text_fraction == 1:
        return ""
    return f" --data.text_fraction {recipe.data.text_fraction:g} --seed {recipe.seed}"


def _report(found: "Retrieved") -> list[str]:
    """Hubness and the likeliest mistakes, for a person."""
    from maskedclip.html import shorten

    report = found.report
    lines = [
        f"hubness: {report.used:,} of {report.texts:,} texts used ({report.used_share:.2f} of what could be), the most "
        f"frequent for {report.top_share:.1%} of the images: {shorten(found.texts[report.top], 60)}"
    ]
    if report.is_collapsed:
        lines.append(
            "warning: nearly all images got one text: the encoder does not tell them apart; do not train on it"
        )
    elif report.has_hub:
        lines.append(
            "warning: one text for half of the images or more: a hub, or a truly frequent text; look at the page"
        )
    if found.compared:
        wrong = len(found.contradictions)
        lines.append(f"labels contradict the text of {wrong:,} of {found.compared:,} images that can be compared")
        if 2 * wrong > found.compared:
            lines.append("warning: most of these texts are wrong by the labels: do not train on them as they are")
    lines.append("likeliest mistakes:")
    for place in found.mistakes()[:_LISTED].tolist():
        wrong = found.contradictions.get(place, ())
        labels = f"  (labels say otherwise: {', '.join(wrong)})" if wrong else ""
        name = found.store.ids[int(found.rows[place])]
        lines.append(f"  {name}  {found.found.score[place, 0]:.3f}  {shorten(found.text_of(place), 60)}{labels}")
    return lines


PAIR_VERBS: dict[str, Verb] = {
    "pair": Verb(
        "retrieve texts for images that have none, with a report of hubs and a page of pictures",
        "maskedclip pair runs/first --data stores/fundus --texts reports.csv --out pairs.parquet",
        _arguments,
        _pair,
    ),
}
