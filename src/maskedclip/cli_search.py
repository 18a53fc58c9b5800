"""The verb that finds rows of an embedded set: by text, by picture, by both."""

import argparse
from typing import Any

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, metavar="FILE.parquet", help="what `maskedclip embed` wrote")
    parser.add_argument("--model", type=path, default=None, metavar="RUN", help="the run that wrote it")
    parser.add_argument("--text", action="append", default=[], metavar="WORDS", help="what to look for; repeat it")
    parser.add_argument("--image", type=path, action="append", default=[], metavar="F", help="a photograph; repeat it")
    parser.add_argument("--id", action="append", default=[], metavar="ID", help="a row of the file as the photograph")
    parser.add_argument("--without", default=None, metavar="WORDS", help="what shall not be there")
    parser.add_argument(
        "--weight",
        type=float,
        default=None,
        metavar="W",
        help="share of the text beside a picture, 0 to 1; default 0.5",
    )
    parser.add_argument(
        "--head", type=path, default=None, metavar="DIR", help="of `compose`: puts picture and text together"
    )
    parser.add_argument(
        "--queries", type=path, default=None, metavar="FILE.csv", help="many: columns text, image, id, without, weight"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many rows a query")
    parser.add_argument(
        "--where", default=None, metavar="FILTER", help="e.g. \"label.glaucoma = 1 and age > 60 and sex = 'Male'\""
    )
    parser.add_argument(
        "--other-patients", action="store_true", help="leave out the patient of the query's picture, if it is a row"
    )
    parser.add_argument(
        "--output", default="projected", metavar="O", help="projected (default); encoder or bridge: looks alike"
    )
    parser.add_argument("--sheet", type=path, default=None, metavar="FILE", help="a contact sheet: .png, .jpg or .html")
    parser.add_argument(
        "--images", type=path, default=None, metavar="STORE|FOLDER", help="where the pictures are, if they were moved"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a query")
    parser.add_argument("--out", type=path, default=None, metavar="FILE", help="write them: .csv, .jsonl")
    parser.add_argument(
        "--index",
        choices=["auto", "exact", "approximate"],
        default="auto",
        help="auto: exact up to a million rows, beyond by an index that is built once beside the file",
    )
    parser.add_argument(
        "--any-model", action="store_true", help="take a file that names another model, or none, on your word"
    )


def _search(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from maskedclip.deployment.search_query import combine, read_queries

    if args.top < 1:
        raise UserError(f"--top {args.top}: give 1 or more")
    if args.out is not None:
        if args.out.suffix.lower() not in {".csv", ".jsonl"}:
            raise UserError(f"--out {args.out}: name it .csv or .jsonl")
        if args.out.exists():
            raise UserError(f"--out {args.out}: exists; choose another file")
    if args.sheet is not None:
        from maskedclip.deployment.search_sheet import SUFFIXES

        if args.sheet.suffix.lower() not in SUFFIXES:
            raise UserError(f"--sheet {args.sheet}: name it .png, .jpg or .html")
        if args.sheet.exists():
            raise UserError(f"--sheet {args.sheet}: exists; choose another file")
    if args.images is not None and not args.images.exists():
        raise UserError(f"--images {args.images}: no such store or folder")
    if args.head is not None and args.weight is not None:
        raise UserError("--weight: a head knows the share of the text itself; leave it out")
    weight = 0.5 if args.weight is None else args.weight
    if args.queries is not None:
        if args.text or args.image or args.id or args.without:
            raise UserError("--queries: holds all queries; leave --text, --image, --id and --without away")
        queries = read_queries(args.queries, weight=weight)
    else:
        queries = combine(args.text, args.image, args.id, without=args.without, weight=weight)
    if args.head is not None:
        queries = [replace(query, head=args.head.resolve().name or "head") for query in queries]
    for query in queries:
        if query.image is not None and not query.image.is_file():
            raise UserError(f"{query.image}: no such image file")
    _answer(args, queries)


def _answer(args: argparse.Namespace, queries: list[Any]) -> None:
    from maskedclip.console import say
    from maskedclip.deployment.publishing import partial_of, publish
    from maskedclip.deployment.search import open_index
    from maskedclip.deployment.search_query import answer
    from maskedclip.deployment.search_show import print_results, to_csv, to_json

    model = _model(args, queries)
    head = None
    if args.head is not None:
        from maskedclip.deployment.composed_saving import read_composed

        head = read_composed(args.head, model)
    index = open_index(args.file, output=args.output, kind=args.index, texts=_example_texts(args, model))
    if len(index.left_out):
        say(f"{args.file}: {len(index.left_out):,} rows have no vector and are never found")
    pictures = index.pictures(args.images)
    results = answer(
        queries, index, model, top=args.top, where=args.where, other_patients=args.other_patients, head=head
    )
    if args.where and not any(result.hits for result in results):
        say(f"--where: no row passes {args.where!r}")
    if args.json:
        for result in results:
            print(to_json(result, index))
    elif args.out is None:
        print_results(results, index)
    last = []
    if args.out is not None:
        lines = "".join(to_json(result, index) + "\n" for result in results)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(args.out)
        partial.write_text(to_csv(results, index) if args.out.suffix.lower() == ".csv" else lines, encoding="utf-8")
        publish(partial, args.out)
        last.append(f"{sum(len(result.hits) for result in results):,} hits of {len(results):,} queries in {args.out}")
    if args.sheet is not None:
        from maskedclip.deployment.search_sheet import write_sheet

        missing = write_sheet(args.sheet, results, index, pictures)
        if missing:
            say(f"{args.sheet}: {missing} pictures are missing; {pictures.why_not or 'they could not be read'}")
        last.append(f"contact sheet in {args.sheet}")
    if not args.json:
        say_next(*last, _next(args, index, found=any(result.hits for result in results)))


def _next(args: argparse.Namespace, index: Any, *, found: bool) -> str:
    how = (
        "exact"
        if index.graph is None
        else "by an index, recall@10 "
        + " and ".join(f"{share:.3f} ({kind})" for kind, share in index.graph.recall.items())
    )
    passing = index.rows(args.where)
    some = "" if passing is None or not args.where else f"{len(passing):,} of "
    searched = f"{some}{len(index):,} rows searched"
    if not found:
        return f"{searched}, {how}; next: loosen --where"
    if args.sheet is None:
        return f"{searched}, {how}; next: look at them, --sheet hits.html"
    labels = [name for name in index.columns if name.startswith("label.")]
    if not labels:
        return f"{searched}, {how}; next: open {args.sheet}"
    return f'{searched}, {how}; next: open {args.sheet}; narrow it with --where, e.g. "{labels[0]} = 1"'


def _model(args: argparse.Namespace, queries: list[Any]) -> Any:
    """The run's model; None where no query needs one and none is named."""
    from maskedclip.deployment.search_file import check_model, model_of

    made_by = model_of(args.file)
    words = any(query.has_words for query in queries)
    if words and args.output != "projected":
        raise UserError(f"--output {args.output}: texts are only comparable with `projected`; leave --output away")
    if args.model is None:
        if words or any(query.image for query in queries):
            raise UserError("--model: name the run whose `embed` wrote the file, to read texts and photographs")
        return None
    from maskedclip.console import say
    from maskedclip.deployment.model import load

    model = load(args.model)
    if not args.any_model:
        check_model(args.file, model.fingerprint, str(args.model))
    elif made_by != model.fingerprint:
        say(f"{args.file}: was made by {made_by or 'an unnamed model'}; taken for one of {args.model} on your word")
    return model


def _example_texts(args: argparse.Namespace, model: Any) -> Any:
    """Reports of the file, as queries by which a new index is measured; None where none is about to be built."""
    if model is None or not model.has_text or args.output != "projected" or args.index == "exact":
        return None
    from maskedclip.deployment.search import EXACT_ROWS
    from maskedclip.deployment.search_file import example_texts
    from maskedclip.deployment.search_vectors import open_parquet

    if args.index == "auto" and open_parquet(args.file).metadata.num_rows <= EXACT_ROWS:
        return None
    found = example_texts(args.file, args.output)
    return model.encode_text(found) if found else None


SEARCH_VERBS: dict[str, Verb] = {
    "search": Verb(
        "find photographs by words, by a photograph, or by both",
        'maskedclip search features.parquet --model runs/first --text "glaucoma" --where "age > 60" --sheet hits.html',
        _arguments,
        _search,
    ),
}
