"""The verb that writes a run for other runtimes."""

import argparse
import json

from maskedclip.cli_verb import Verb, path, say_next


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="what `maskedclip pretrain --out` wrote")
    parser.add_argument(
        "--format",
        required=True,
        choices=["timm", "huggingface", "open_clip", "onnx", "torch"],
        help="the runtime that shall read it",
    )
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--check",
        type=path,
        default=None,
        metavar="ANY",
        help="photographs to compare on: a store, a folder, a manifest, an archive; default: drawn phantoms",
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="most photographs of the comparison")
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16", "int8"],
        default="float32",
        help="bf16: weights stored in bfloat16; int8: of onnx only",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=None,
        metavar="X",
        help="largest relative error of an output; default 1e-4 (float32), 0.03 (bf16), 0.25 (int8)",
    )
    parser.add_argument(
        "--output",
        choices=["encoder", "bridge", "projected"],
        default="encoder",
        help="what a timm export returns; the others have all",
    )
    parser.add_argument(
        "--labels", default="", metavar="L,L", help="put prompts and text directions of these labels beside"
    )
    parser.add_argument("--prompts", type=path, default=None, metavar="FILE", help="YAML or JSON: label -> sentences")
    parser.add_argument("--head", type=path, default=None, metavar="DIR", help="put a saved head beside")
    parser.add_argument(
        "--evaluation", type=path, default=None, metavar="DIR", help="for the model card; default: RUN/evaluation"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def _export(args: argparse.Namespace) -> None:
    from maskedclip.data.prompts import load_prompts
    from maskedclip.deployment.export import Wanted, export

    done = export(
        args.run,
        args.out,
        Wanted(
            format=args.format,
            precision=args.precision,
            output=args.output,
            check=args.check,
            images=args.images,
            tolerance=args.tolerance,
            labels=args.labels.split(",") if args.labels else (),
            prompts=load_prompts(args.prompts) if args.prompts else {},
            head=args.head,
            evaluation=args.evaluation,
        ),
    )
    if args.json:
        print(json.dumps(done.to_dict(), indent=1))
        return
    say_next(
        f"checked on {done.checked_on}, against PyTorch in float32:",
        *(f"  {entry}" for entry in done.agreements),
        f"{args.format} export in {args.out}",
        f"next: load it as {args.out}/README.md shows",
    )


EXPORT_VERBS: dict[str, Verb] = {
    "export": Verb(
        "write a run for timm, transformers, open_clip, ONNX or torch.export, and check it there",
        "maskedclip export runs/first --format onnx --out exports/onnx --check stores/fundus",
        _arguments,
        _export,
    ),
}
