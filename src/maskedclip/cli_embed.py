"""The verb that writes the features of many photographs into one file."""

import argparse

from maskedclip.cli_verb import Verb, add_manifest_reading, path, say_next


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="RUN|SPEC",
        help="a run directory, timm:NAME, timm:NAME=FILE.safetensors, FILE.safetensors or an open_clip folder; "
        "each may end in @SIZE",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="ANY",
        help="a store (also of volumes, for a run that reads them), a folder, a manifest, a list of paths (.txt), a "
        "zip or tar, or an image",
    )
    parser.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="FILE.parquet",
        help="new file; a killed command goes on when given again",
    )
    parser.add_argument(
        "--outputs",
        default=None,
        metavar="NAMES",
        help="encoder,bridge,projected (the default is all of these), patches, bridge_patches (tokens; large)",
    )
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the stored numbers")
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16-mixed"],
        default="float32",
        help="of the computation; bf16-mixed is faster and less exact",
    )
    parser.add_argument(
        "--batch", type=int, default=64, metavar="N", help="photographs in a forward pass; volumes go one by one"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--size", type=int, default=None, metavar="PX", help="another input size of the encoder")
    parser.add_argument(
        "--crop",
        choices=["fundus", "none"],
        default="fundus",
        help="how photographs are prepared for an encoder that is no run; a run knows it itself",
    )
    add_manifest_reading(parser)


def _embed(args: argparse.Namespace) -> None:
    from pathlib import Path

    from maskedclip.deployment.embed import embed
    from maskedclip.deployment.embed_ranks import own_device
    from maskedclip.deployment.external import open_model

    data = Path(args.data).expanduser()
    prepared, kind = {"crop": args.crop}, "photographs"
    if data.is_dir() and any(data.glob("shard-*.parquet")):
        from maskedclip.data.store import open_store

        store = open_store(data)
        prepared = {"crop": store.crop["crop"], "stored_size": store.crop["size"]}
        if store.kind == "volumes":
            prepared["volumes"], kind = True, "volumes"
    model = open_model(args.model, device=own_device(args.device), size=args.size, **prepared)
    done = embed(
        model,
        data,
        args.out,
        outputs=None if args.outputs is None else args.outputs.split(","),
        dtype=args.dtype,
        precision=args.precision,
        batch=args.batch,
        encoding=args.encoding,
        allow_outside=args.allow_outside,
    )
    if not done.leads:
        return
    onward = f"maskedclip search {args.out} --model {args.model} --text ..."
    if kind == "volumes":
        onward = f"maskedclip search {args.out} --output {done.outputs[0]} --id ID"
    elif "projected" not in done.outputs:
        onward = "open it with Polars or DuckDB, see docs/embed.md"
    say_next(
        f"{done.rows:,} {kind} in {args.out}: id, {', '.join(done.outputs)}",
        f"next: {onward}",
    )


EMBED_VERBS: dict[str, Verb] = {
    "embed": Verb(
        "features of many photographs in one Parquet file",
        "maskedclip embed runs/first --data photographs/ --out features.parquet",
        _arguments,
        _embed,
    ),
}
