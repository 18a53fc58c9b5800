"""The verb that serves a model: a page and an HTTP interface."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError


def _size(read: str) -> Callable[[str], int]:
    """A converter of settings.py, imported when it is used."""

    def convert(text: str) -> int:
        from maskedclip.deployment.server import settings

        try:
            return getattr(settings, read)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the run directory that pretrain wrote")
    parser.add_argument("--compare", type=path, metavar="RUN", help="a second model, shown beside the first")
    answers = parser.add_argument_group("findings")
    answers.add_argument("--head", type=path, metavar="HEAD", help="a saved probe, fine-tuned encoder or label set")
    answers.add_argument("--labels", metavar="A,B", help="instead of the findings that the package knows")
    answers.add_argument(
        "--findings", action="store_true", help="the labels do not exclude each other: each is set against normal"
    )
    answers.add_argument("--prompts", type=path, metavar="FILE", help="YAML or JSON: label -> sentences")
    answers.add_argument(
        "--calibrate", type=path, metavar="STORE", help="a store whose validation rows calibrate the probabilities"
    )
    answers.add_argument(
        "--abstain", type=float, metavar="SHARE", help="leave the least certain share undecided, 0 to 1"
    )
    cases = parser.add_argument_group("similar cases")
    cases.add_argument("--index", type=path, metavar="FILE.parquet", help="what `maskedclip embed` wrote")
    cases.add_argument(
        "--show", type=_names, default=[], metavar="COLUMNS", help="columns to show beside text and label.*"
    )
    access = parser.add_argument_group("access")
    access.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine only")
    access.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    access.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that browsers call this server by"
    )
    access.add_argument("--api-key-file", type=path, metavar="FILE", help="a file with the key that callers must show")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-bytes", type=_size("read_size"), default=32 << 20, metavar="N", help="of a file: 32M")
    limits.add_argument(
        "--max-pixels", type=_size("read_pixels"), default=10**8, metavar="N", help="of a photograph: 100M"
    )
    limits.add_argument("--queue", type=int, default=64, metavar="N", help="photographs in work; more get 429")
    limits.add_argument("--batch", type=int, default=8, metavar="N", help="photographs that the model sees at once")
    limits.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds from upload to answer")
    limits.add_argument(
        "--keep-uploads", type=path, metavar="DIR", help="keep photographs there, under random names; default: never"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")


def _serve(args: argparse.Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve: needs the extra `serve` ({error.name}): pip install 'maskedclip[serve]'") from None
    from maskedclip.data.prompts import load_prompts
    from maskedclip.data.store import open_store
    from maskedclip.deployment.server.app import build
    from maskedclip.deployment.server.run import address, listen, run
    from maskedclip.deployment.server.served import Labels, serve_index, serve_models, shown_columns
    from maskedclip.deployment.server.settings import Settings, read_key

    settings = Settings(
        host=args.host,
        port=args.port,
        allowed_hosts=tuple(args.allow_host),
        api_key=read_key(args.api_key_file) if args.api_key_file else None,
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        queue=args.queue,
        batch=args.batch,
        timeout=args.timeout,
        keep_uploads=_folder(args.keep_uploads),
    )
    if args.head is not None and args.labels is not None:
        raise UserError("--labels: a head has its own; give one of --head and --labels")
    if args.findings and args.labels is None:
        raise UserError('--findings: says that your labels do not exclude each other; add --labels "A,B"')
    if args.show and args.index is None:
        raise UserError("--show: names columns of an index; add --index FILE.parquet")
    labels = Labels(
        names=tuple(_names(args.labels)) if args.labels is not None else None,
        head=args.head,
        kind="independent" if args.findings else None,
        prompts=load_prompts(args.prompts) if args.prompts else None,
        calibration=open_store(args.calibrate) if args.calibrate else None,
        abstain=args.abstain,
    )
    bound = listen(settings)  # before the models are loaded: a taken port is told at once
    with bound:
        served = serve_models([args.run, *([args.compare] if args.compare else [])], labels, device=args.device)
        index, indexed = serve_index(args.index, served) if args.index else (None, None)
        shown = shown_columns(index, args.show) if index is not None else []
        guard = build(served, settings, index=index, indexed=indexed, shown=shown)
        if not settings.is_local and settings.api_key is None:
            print(
                f"warning: other machines can reach {settings.host}, and there is no key; add --api-key-file FILE",
                file=sys.stderr,
            )
        if settings.keep_uploads is not None:
            print(f"uploads are kept in {settings.keep_uploads}; the page says so", file=sys.stderr)
        bound.listen()  # from here on a client waits for its answer instead of being refused
        say_next(
            "research use; not a diagnosis",
            f"next: open {address(bound)} in a browser (programs: {address(bound)}/docs); ctrl-c ends",
        )
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):  # how a person ends it
            run(guard, settings, bound)


def _folder(folder: Path | None) -> Path | None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


SERVE_VERBS: dict[str, Verb] = {
    "serve": Verb(
        "a page and an HTTP interface: findings, heat maps, similar cases",
        "maskedclip serve runs/first --index features.parquet --port 8000",
        _arguments,
        _serve,
    ),
}
