"""The verb that makes pictures, or small arrays, of volumes."""

import argparse
from typing import Any

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError

SHOWN = 10


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=path, help="a NIfTI file, a DICOM series, a folder of them, or a manifest whose images they are"
    )
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--axis", choices=["axial", "coronal", "sagittal", "all"], default="axial", help="of the slices"
    )
    parser.add_argument("--every", type=int, default=1, metavar="K", help="take each k-th slice")
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="leave out slices of which less is brighter than a tenth of the window",
    )
    parser.add_argument(
        "--window", default=None, metavar="C,W", help="centre and width of the values shown, such as 40,400"
    )
    parser.add_argument("--time", type=int, default=0, metavar="T", help="which volume of a series in time, from 0")
    parser.add_argument("--cube", type=int, default=None, metavar="N", help="no slices, but an array of N x N x N each")
    parser.add_argument("--spacing", type=float, default=None, metavar="MM", help="with --cube: mm a voxel")
    parser.add_argument("--values", choices=["uint8", "float16"], default="uint8", help="with --cube: of the array")


def _slices(args: argparse.Namespace) -> None:
    from maskedclip.data.volume_export import write_cubes, write_slices
    from maskedclip.data.volume_slices import SliceSettings

    window = _window(args.window)
    if args.cube is not None:
        made = write_cubes(
            args.source,
            args.out,
            args.cube,
            spacing=args.spacing,
            window=window,
            values=args.values,
            time=args.time,
        )
        following = f"next: numpy.load('{args.out}/arrays/NAME.npy'); {made.manifest} lists them"
    else:
        axes: list[Any] = ["axial", "coronal", "sagittal"] if args.axis == "all" else [args.axis]
        try:
            settings = [
                SliceSettings(axis=axis, every=args.every, min_area=args.min_area, window=window) for axis in axes
            ]
        except ValueError as error:
            raise UserError(f"--{error}".replace("min_area", "min-area")) from error
        made = write_slices(args.source, args.out, settings, time=args.time)
        following = f"next: maskedclip curate {made.manifest} --crop none --out STORE"
    told = [f"not read: {name} {reason}" for name, reason in made.not_read]
    for lines in (made.notes, told):
        say_next(*lines[:SHOWN], *([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))
    kind = "cubes" if args.cube is not None else "slices"
    lost = f", {len(told)} not read ({args.out}/not_read.csv)" if told else ""
    say_next(f"{made.pictures:,} {kind} of {made.volumes:,} volumes in {args.out}{lost}", following)


def _window(text: str | None):
    from maskedclip.data.pixels import Window

    if text is None:
        return None
    try:
        centre, width = (float(part) for part in text.split(","))
        return Window(centre=centre, width=width)
    except ValueError as error:
        raise UserError(f"--window {text}: give centre and width, such as --window 40,400") from error


VOLUME_VERBS: dict[str, Verb] = {
    "slices": Verb(
        "volumes (NIfTI, DICOM series) as pictures with a manifest, or as small arrays",
        "maskedclip slices scans/ --axis axial --every 3 --out slices",
        _arguments,
        _slices,
    ),
}
