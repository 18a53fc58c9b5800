"""The verb that trains a head for queries of a photograph and words."""

import argparse
import json
import tempfile
from pathlib import Path

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the run directory that pretrain wrote, with texts")
    parser.add_argument("--data", type=path, action="append", required=True, metavar="STORE", help="repeat for several")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder for the head")
    parser.add_argument(
        "--triplets",
        type=path,
        default=None,
        metavar="FILE.csv",
        help="columns reference, caption, target, by the store's ids; without it they are made from labels",
    )
    parser.add_argument("--labels", default="", metavar="A,B", help="of which one shall differ; default: all findings")
    parser.add_argument("--removed", action="store_true", help='from labels, also the way back: "now without drusen"')
    parser.add_argument(
        "--method", choices=["combiner", "sum"], default="combiner", help="sum: judge and keep it without training"
    )
    parser.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="STEPS",
        help="first tune a copy of both encoders so that the sum fits; the new model is written to DIR/model",
    )
    parser.add_argument("--finetune-lr", type=float, default=5e-5, metavar="LR", help="of AdamW; default 5e-5")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of training")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="triplets a step")
    parser.add_argument("--lr", type=float, default=3e-4, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _compose(args: argparse.Namespace) -> None:
    from maskedclip.console import say
    from maskedclip.data.store import open_store, refuse_volumes
    from maskedclip.deployment.composed_finetune import FinetuneSettings
    from maskedclip.deployment.composed_report import table, verdict
    from maskedclip.deployment.composed_run import as_table, learn, tune
    from maskedclip.deployment.composed_saving import save_composed
    from maskedclip.deployment.composed_training import Settings
    from maskedclip.deployment.composed_triplets import make_triplets, read_triplets
    from maskedclip.deployment.heads_saving import refuse_existing
    from maskedclip.deployment.model import load

    refuse_existing(args.out, "--out")
    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    if args.triplets is not None and (labels or args.removed):
        raise UserError("--triplets: holds all triplets; leave --labels and --removed away")
    if args.finetune < 0:
        raise UserError(f"--finetune {args.finetune}: give 0 (encoders stay as they are) or a number of steps")
    settings = Settings(steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    store = open_store(args.data)
    refuse_volumes(store, "compose")
    if args.triplets is not None:
        triplets = read_triplets(args.triplets, store)
    else:
        triplets = make_triplets(store, labels, removed=args.removed, seed=args.seed)
    model = load(args.run, device=args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}-", dir=args.out.parent) as work:
        tuned, tuning = None, None
        if args.finetune:
            tuned = Path(work) / "model"
            model, tuning = tune(model, store, triplets, tuned, FinetuneSettings(
                steps=args.finetune, lr=args.finetune_lr, seed=args.seed
            ))  # fmt: skip
        done = learn(model, store, triplets, combiner=args.method == "combiner", settings=settings)
        done.about["captions"] = len(set(triplets.captions))
        done.about["from"] = str(args.triplets.name) if args.triplets is not None else "labels"
        done.about["encoders"] = tuning
        save_composed(args.out, done.head, model, done.about, {"triplets.csv": as_table(triplets, store)}, tuned)
    counts = done.about["counts"]
    if done.report is None:
        say("no triplet lies within the test rows: the head was not judged")
    if args.json:
        print(json.dumps(done.about, allow_nan=False))
        return
    own = int((~triplets.by_labels).sum())
    where = "of the table" if args.triplets is not None else f"from labels, {own:,} of them of one patient"
    last = [f"{len(triplets):,} triplets {where}: {counts['train']:,} train, {counts['val']:,} val, "
            f"{counts['test']:,} test"]  # fmt: skip
    if done.report is not None:
        last += [f"test, {done.report['gallery']:,} photographs searched, without the one that was asked with:"]
        last += table(done.report)
        last += [warning] if (warning := verdict(done.report, tuned=tuned is not None)) else []
    run = args.run if tuned is None else args.out / "model"
    if tuned is not None:
        last.append("the encoders were tuned: features of before do not fit them")
    say_next(
        *last,
        *([f"embed the other {len(args.data) - 1} of --data, too"] if len(args.data) > 1 else []),
        f"next: maskedclip embed {run} --data {args.data[0]} --out features.parquet && "
        f'maskedclip search features.parquet --model {run} --image eye.jpg --text "now with drusen" --head {args.out}',
    )


COMPOSE_VERBS: dict[str, Verb] = {
    "compose": Verb(
        'train a head for searches by a photograph and words: "this one, now with drusen"',
        "maskedclip compose runs/first --data stores/fundus --out heads/composed",
        _arguments,
        _compose,
    ),
}
