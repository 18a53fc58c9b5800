"""The verbs that say what photographs show: classify them, and learn a head from a store's labels."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.console import say
from maskedclip.errors import UserError

if TYPE_CHECKING:
    from maskedclip.deployment.classifier import Classifier
    from maskedclip.deployment.model import Model


def _classify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory that pretrain wrote, or a fine-tuned head")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="photographs: images, folders, manifests, lists, archives, stores",
    )
    parser.add_argument("--labels", default=None, metavar="L,L", help='e.g. "glaucoma,cataract,normal fundus"')
    parser.add_argument(
        "--findings", action="store_true", help="the labels do not exclude each other: each is set against normal"
    )
    parser.add_argument("--prompts", type=path, metavar="FILE", help="YAML or JSON: label -> sentences")
    parser.add_argument("--head", type=path, metavar="HEAD", help="what `maskedclip probe` or --save wrote")
    parser.add_argument(
        "--calibrate",
        action="append",
        nargs="+",
        type=path,
        default=[],
        metavar="STORE",
        help="make probabilities true on the validation rows of a store with these labels",
    )
    parser.add_argument(
        "--abstain",
        type=float,
        default=None,
        metavar="SHARE",
        help="leave answers undecided that are less certain than this share of the validation rows, e.g. 0.2",
    )
    parser.add_argument("--save", type=path, metavar="HEAD", help="keep the classifier as a new folder, for --head")
    parser.add_argument("--out", type=path, metavar="FILE.csv", help="new file, one row a photograph")
    parser.add_argument("--json", action="store_true", help="one JSON object a photograph")


def _classify(args: argparse.Namespace) -> None:
    _check_classify(args)
    from maskedclip.deployment.classifier_batch import AnswerFile, Tally, classify_inputs, describe, expected_accuracy
    from maskedclip.deployment.heads_saving import refuse_existing

    if args.save is not None:
        refuse_existing(args.save, "--save")
    classifier = _classifier(args)
    if args.calibrate:
        from maskedclip.data.store import open_store

        classifier = classifier.with_calibration(open_store([store for group in args.calibrate for store in group]))
        _say_calibration(classifier)
    if args.abstain is not None:
        classifier = classifier.abstaining(args.abstain)
    if told := expected_accuracy(classifier):
        say(told)
    if args.save is not None:
        classifier.save(args.save)
        say(f"the classifier is in {args.save}")
    if not args.images:
        say_next(f"next: maskedclip classify {args.run} FOLDER --head {args.save} --out answers.csv")
        return
    tally = Tally()
    with AnswerFile(args.out, classifier) if args.out is not None else nullcontext() as file:
        for row in classify_inputs(classifier, args.images, tally):
            if file is not None:
                file.write(row)
            if args.json:
                print(json.dumps(row.to_json(calibrated=classifier.calibrated), ensure_ascii=False))
            elif file is None:
                print(describe(row, classifier.kind))
    if not args.json:
        say_next(*_closing(args, classifier, tally))


def _check_classify(args: argparse.Namespace) -> None:
    if args.labels is not None and args.head is not None:
        raise UserError("--labels, --head: give one of them; a head has its own labels")
    if args.head is not None and (args.findings or args.prompts):
        raise UserError("--findings, --prompts: belong to --labels; a head is what it was made to be")
    if not args.images and args.save is None:
        raise UserError("IMAGE: give photographs, a folder or a store; or --save HEAD to keep the classifier alone")
    if args.abstain is not None and not 0 <= args.abstain < 1:
        raise UserError(f"--abstain: {args.abstain:g} is outside [0, 1); 0.2 leaves the least certain fifth undecided")
    if args.out is not None and args.out.exists():
        raise UserError(f"--out {args.out}: exists; choose another file")


def _classifier(args: argparse.Namespace) -> "Classifier":
    """What the arguments describe, before --calibrate and --abstain."""
    from maskedclip.data.prompts import load_prompts, unknown_labels
    from maskedclip.deployment.classifier import read_classifier, zero_shot_classifier
    from maskedclip.deployment.heads_saving import is_head, read_head

    run = Path(args.run).expanduser()
    if is_head(run):
        if args.labels is not None or args.head is not None:
            raise UserError(f"{run}: is a head, which has its own labels; leave out --labels and --head")
        return read_classifier(run, None)
    if args.head is not None:
        stored = read_head(args.head).preprocessing
        return read_classifier(args.head, _model(args.run, stored))
    if args.labels is None:
        raise UserError('--labels: give some, e.g. "glaucoma,cataract,normal fundus", or --head HEAD')
    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    prompts = load_prompts(args.prompts) if args.prompts else None
    unread = [name for name in prompts or () if name not in {*labels, "normal"}]
    if unread:
        say(f"{args.prompts}: not read, as they are not among the labels: {', '.join(unread)}")
    kind = "independent" if args.findings else "exclusive"
    for remark in unknown_labels(labels, prompts):
        say(remark)
    return zero_shot_classifier(_model(args.run, {}), labels, kind=kind, prompts=prompts)


def _model(spec: str, stored: dict[str, Any]) -> "Model":
    """A run, or an encoder by timm's name or file, prepared as a head's photographs were."""
    from maskedclip.deployment.external import open_model
    from maskedclip.deployment.model import Model, load

    folder = Path(spec).expanduser()
    if folder.is_dir() or not (spec.startswith("timm:") or "@" in spec or folder.suffix == ".safetensors"):
        model = load(folder)
    else:
        model = open_model(spec, stored_size=stored.get("stored_size", 256), crop=stored.get("crop", "fundus"))
    if not isinstance(model, Model):
        raise UserError(f"{spec}: an open_clip folder can be evaluated, not yet classified with; give a run")
    return model


def _say_calibration(classifier: "Classifier") -> None:
    """What the calibration rests on, and what it brought, label by label."""
    found = classifier.head.about["calibration"]
    left_out = f", {found['left_out']:,} left out" if found.get("left_out") else ""
    say(f"calibrated on {found['rows']:,} validation rows{left_out} ({found['method']}); error before -> after:")
    for name, entry in found["labels"].items():
        say("  " + _calibration_line(name, entry))


def _calibration_line(name: str, entry: dict[str, Any]) -> str:
    auroc = entry["auroc"]
    told = f"{name}: n {entry['n']:,}"
    if "positives" in entry:
        told += f" ({entry['positives']:,} with it)"
    if auroc["value"] is not None:
        told += f", AUROC {auroc['value']:.3f}"
        if auroc.get("low") is not None:  # of one patient there is no interval
            told += f" ({auroc['low']:.3f}-{auroc['high']:.3f})"
            told += ", no better than chance" if auroc["low"] <= 0.5 else ""
    if entry.get("error_after") is not None:
        told += f", calibration error {entry['error_before']:.3f} -> {entry['error_after']:.3f}"
    return told + (f"; {entry['note']}" if "note" in entry else "")


def _closing(args: argparse.Namespace, classifier: "Classifier", tally: Any) -> list[str]:
    lines = []
    if args.out is not None:
        counts = ", ".join(f"{name} {count:,}" for name, count in tally.labels.items())
        lines.append(f"{tally.photographs:,} photographs in {args.out}: {counts}; {tally.abstained:,} left undecided")
    if tally.rejected:
        lines.append(f"{len(tally.rejected):,} photographs left out: they cannot be read")
    if classifier.calibrated:
        return [*lines, "no answer is a diagnosis; next: look at the answers beside the photographs"]
    what = "zero-shot shares" if classifier.head.method == "zero_shot" else "probabilities"
    return [
        *lines,
        f"{what}, not calibrated, no diagnosis; next: measure them with `maskedclip evaluate`, or --calibrate",
    ]


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="a run, timm:NAME, timm:NAME=FILE or FILE.safetensors; @SIZE after it"
    )
    parser.add_argument(
        "--data", action="append", nargs="+", type=path, required=True, metavar="STORE", help="with splits and labels"
    )
    parser.add_argument("--out", type=path, required=True, metavar="HEAD", help="new folder for the head")
    parser.add_argument(
        "--labels", default="", metavar="L,L", help="some binary labels, or one of several classes; default: all binary"
    )
    parser.add_argument(
        "--method",
        choices=["linear", "finetune", "lora", "privileged_text"],
        default="linear",
        help="logistic regression on frozen features (default); the encoder is trained too; or what a run of "
        "clipit_style learnt",
    )
    parser.add_argument(
        "--output",
        choices=["encoder", "bridge", "projected"],
        default="encoder",
        help="the features that a linear head reads; default encoder",
    )
    parser.add_argument("--split", default="train", metavar="S,S", help="splits to learn from; default train")
    parser.add_argument(
        "--finetune", nargs="+", default=[], metavar="NAME=VALUE", help="settings, e.g. epochs=20 lr=1e-3 batch=32"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of folds, fine-tuning and bootstrap")
    parser.add_argument("--json", action="store_true", help="what head.json says of the head")


def _probe(args: argparse.Namespace) -> None:
    from maskedclip.cli_evaluate import fine_tune_settings
    from maskedclip.data.store import open_store, refuse_volumes
    from maskedclip.deployment.heads_fit import fit_head
    from maskedclip.deployment.heads_saving import refuse_existing

    refuse_existing(args.out, "--out")
    settings = fine_tune_settings(args.finetune)
    if settings is not None and args.method == "linear":
        raise UserError("--finetune: belongs to --method finetune or lora")
    if args.output != "encoder" and args.method != "linear":
        raise UserError("--output: belongs to --method linear; fine-tuning trains the encoder")
    store = open_store([store for group in args.data for store in group])
    if args.method in ("finetune", "lora"):
        refuse_volumes(store, f"probe --method {args.method}")
    if args.method == "privileged_text":
        from maskedclip.deployment.heads_privileged import read_privileged_head

        if args.split != "train" or settings is not None:
            raise UserError("--split, --finetune: the head of --method privileged_text was learnt by the run")
        classifier = read_privileged_head(path(args.run), store, labels=_names(args.labels), seed=args.seed)
    else:
        classifier = fit_head(
            _model(args.run, store.crop | {"stored_size": store.crop["size"]}),
            store,
            labels=_names(args.labels),
            method=args.method,
            output=args.output,
            splits=_names(args.split),
            settings=settings,
            seed=args.seed,
        )
    classifier.save(args.out)
    about = classifier.head.about
    if args.json:
        print(json.dumps({"head": str(args.out), "labels": list(classifier.labels)} | about))
        return
    rows = about["rows"]
    say_next(
        f"{args.out}: {args.method} head, learnt from {rows.get('train', 0):,} rows: {', '.join(classifier.labels)}",
        *(f"left out: {name}: {why}" for name, why in about["left_out"].items()),
        *([about["note"]] if "note" in about else []),
        *(_calibration_line(*entry) for entry in about.get("calibration", {"labels": {}})["labels"].items()),
        f"next: maskedclip classify {args.run} FOLDER --head {args.out} --out answers.csv; no answer is a diagnosis",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


CLASSIFY_VERBS: dict[str, Verb] = {
    "probe": Verb(
        "learn a head from a store's labels: linear, fine-tuned or LoRA, calibrated and saved",
        "maskedclip probe runs/first --data stores/fundus --out heads/first",
        _probe_arguments,
        _probe,
    ),
    "classify": Verb(
        "labels of photographs: zero-shot or by a saved head, calibrated, with abstention, one by one or to CSV",
        'maskedclip classify runs/first photographs/ --labels "glaucoma,cataract,normal fundus" --out answers.csv',
        _classify_arguments,
        _classify,
    ),
}
