"""The verbs that show where: segment (labels in place) and explain (what a score rests on)."""

import argparse
import json
from typing import Any

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError

# Of deployment.segment, repeated here so that help needs no heavy import; a test holds them together.
METHODS = ("similarity", "contribution", "regions", "relevance", "rollout", "removal", "proposals")
PROPOSERS = ("kmeans", "slic")  # of deployment.proposals


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the run directory that pretrain wrote")
    parser.add_argument(
        "images", type=path, nargs="+", metavar="IMAGE|FOLDER", help="photographs, folders, lists, archives or stores"
    )
    parser.add_argument("--labels", default="", metavar="A,B", help='separated by commas: "haemorrhage,drusen"')
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=None,
        help="similarity (segment's): patches beside text; regions: outlined parts with a label; removal (explain's), "
        "contribution, relevance, rollout: what the whole photograph's score rests on; proposals: parts that are named",
    )
    parser.add_argument("--against-normal", action="store_true", help="less the likeness to a normal fundus")
    parser.add_argument(
        "--reference",
        type=path,
        metavar="STORE|FOLDER",
        help="subtract the mean map over up to 64 of these photographs",
    )
    parser.add_argument(
        "--prompts",
        type=path,
        metavar="FILE",
        help="YAML or JSON: label -> sentences; or .safetensors, learned by `maskedclip prompts`",
    )
    parser.add_argument(
        "--head",
        type=path,
        metavar="DIR",
        help="explain a saved head (of probe) instead of texts; with proposals: beside texts",
    )
    parser.add_argument("--proposals", type=int, default=12, metavar="N", help="parts of a photograph; default 12")
    parser.add_argument("--proposer", choices=PROPOSERS, default="kmeans", help="slic: parts keep together")
    parser.add_argument(
        "--ensemble-weight", type=float, default=0.8, metavar="W", help="of the head on its own labels; default 0.8"
    )
    parser.add_argument("--size", type=int, default=None, metavar="PX", help="that the model reads; default: its own")
    parser.add_argument(
        "--tiles", default="1", metavar="N", help="read N x N overlapping parts; 1,2 averages two scales; default 1"
    )
    parser.add_argument("--masks", action="store_true", help="write masks as PNG and outline them")
    parser.add_argument(
        "--threshold",
        type=float,
        default=None,
        metavar="X",
        help="of masks; default: Otsu's, with proposals what normal gets",
    )
    parser.add_argument(
        "--maps", choices=["none", "png", "npy"], default="none", help="raw maps for programs: 16-bit PNG, or NumPy"
    )
    parser.add_argument("--range", default=None, metavar="LOW,HIGH", help="one colour scale for all pictures")
    parser.add_argument("--opacity", type=float, default=0.6, help="of the colours, 0 to 1; default 0.6")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="one JSON object a photograph instead of the summary")


def _segment(args: argparse.Namespace, default: str = "similarity") -> None:
    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    if args.head is None and not labels:
        raise UserError("--labels: name at least one, e.g. --labels drusen,haemorrhage")
    tiles = _numbers(args.tiles, int, "--tiles", "e.g. 2 or 1,2")
    ends = None if args.range is None else _numbers(args.range, float, "--range", "e.g. 0,0.3")
    if ends is not None and (len(ends) != 2 or not ends[0] < ends[1]):
        raise UserError("--range: give two rising numbers, e.g. 0,0.3")
    if not 0 <= args.opacity <= 1:
        raise UserError(f"--opacity: {args.opacity:g} is outside 0 to 1")
    if args.threshold is not None and args.threshold != args.threshold:
        raise UserError("--threshold: give a number")
    from maskedclip.console import say
    from maskedclip.data.prompts import load_prompts, unknown_labels
    from maskedclip.deployment.classifier import read_classifier
    from maskedclip.deployment.learned_prompts import read_prompts
    from maskedclip.deployment.model import load
    from maskedclip.deployment.segment import Segmenter, Settings
    from maskedclip.deployment.segment_files import Drawing, read_reference, write_segments

    learnt = args.prompts is not None and args.prompts.suffix == ".safetensors"
    prompts = load_prompts(args.prompts) if args.prompts and not learnt else {}
    for remark in unknown_labels(labels, prompts) if args.head is None else ():
        say(remark)
    method: Any = args.method or default  # one of METHODS, as argparse made sure
    model = load(args.run, device=args.device)
    settings = Settings(
        labels=labels,
        method=method,
        against_normal=args.against_normal,
        prompts=prompts,
        size=args.size,
        tiles=tiles,
        threshold=args.threshold,
        learned=read_prompts(args.prompts, model) if learnt else None,
        proposals=args.proposals,
        proposer=args.proposer,
        ensemble_weight=args.ensemble_weight,
    )
    segmenter = Segmenter(model, settings, read_classifier(args.head, model) if args.head else None)
    if args.reference is not None:
        read_reference(segmenter, args.reference)
    drawing = Drawing(
        masks=args.masks, maps=args.maps, opacity=args.opacity, ends=(ends[0], ends[1]) if ends is not None else None
    )
    written = write_segments(segmenter, args.images, args.out, drawing)
    if args.json:
        for record in written.records:
            print(json.dumps(record, ensure_ascii=False))
        return
    first = written.records[0]["folder"]
    photographs, labels = _counted(written.photographs, "photograph"), _counted(len(segmenter.labels), "label")
    say_next(
        f"{photographs}, {labels}, by {settings.method}; numbers in {args.out}/segments.csv and segments.json",
        "where the model looks, not where a disease is; no diagnosis (docs/segment.md has measured limits)",
        *(
            ["masks: Otsu's threshold parts every map in two, also where nothing is; --threshold X sets yours"]
            if args.masks and args.threshold is None and settings.method not in ("regions", "proposals")
            else []
        ),
        f"next: open {args.out / first / 'panel.png'}",
    )


def _prompts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the run directory that pretrain wrote, with texts")
    parser.add_argument("--data", type=path, action="append", required=True, metavar="STORE", help="with mask columns")
    parser.add_argument("--labels", required=True, metavar="A,B", help="the seen ones, masks of the store")
    parser.add_argument("--out", type=path, required=True, metavar="FILE.safetensors", help="new file")
    parser.add_argument("--vectors", type=int, default=16, metavar="N", help="before a label's name; default 16")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of training")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="crops a step")
    parser.add_argument("--lr", type=float, default=0.002, help="of SGD, falling to 0 as a cosine")
    parser.add_argument("--per-label", type=int, default=32, metavar="N", help="crops a label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")


def _prompts(args: argparse.Namespace) -> None:
    from maskedclip.data.store import open_store, refuse_volumes
    from maskedclip.deployment.heads_saving import refuse_existing
    from maskedclip.deployment.learned_prompts import save_prompts
    from maskedclip.deployment.learned_prompts_fit import PromptSettings, mask_crops, train_prompts
    from maskedclip.deployment.model import load

    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    settings = PromptSettings(
        vectors=args.vectors, steps=args.steps, batch=args.batch, lr=args.lr, per_label=args.per_label, seed=args.seed
    )
    refuse_existing(args.out, "--out")
    store = open_store(args.data)
    refuse_volumes(store, "prompts")
    model = load(args.run, device=args.device)
    crops, truth = mask_crops(model, store, store.rows("train"), labels, settings)
    prompts, record = train_prompts(model, crops, truth, labels, settings)
    save_prompts(args.out, prompts, record | {"data": store.fingerprint})
    say_next(
        f"{len(crops):,} crops of {_counted(len(labels), 'label')}, {settings.vectors} vectors, {args.steps} steps: "
        f"cross-entropy {record['loss_first']:.3f} -> {record['loss_last']:.3f}",
        f'next: maskedclip segment {args.run} photographs/ --labels "{",".join(labels)}" --method proposals '
        f"--prompts {args.out} --out segments",
    )


def _explain(args: argparse.Namespace) -> None:
    _segment(args, default="removal")  # the one that deletion of patches bears out, see docs/segment.md


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _numbers(text: str, kind: type, option: str, example: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: {text!r} is no list of numbers; give {example}") from None


SEGMENT_VERBS: dict[str, Verb] = {
    "segment": Verb(
        "where labels are in photographs: overlays, masks, regions",
        'maskedclip segment runs/first photographs/ --labels "haemorrhage,drusen" --out segments --masks',
        _arguments,
        _segment,
    ),
    "prompts": Verb(
        "learn words for labels from masks, for segment: vectors before a label's name",
        "maskedclip prompts runs/first --data stores/fundus --labels drusen,haemorrhage --out prompts.safetensors",
        _prompts_arguments,
        _prompts,
    ),
    "explain": Verb(
        "what the score of a label, or of a trained head, rests on in a photograph",
        'maskedclip explain runs/first eye.jpg --labels "glaucoma" --out explained',
        _arguments,
        _explain,
    ),
}
