"""The verbs of volumes: pictures or small arrays of them, and stores that 3-D recipes train on."""

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
    _outside(parser)


def _outside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-outside", action="store_true", help="a manifest may name files outside its folder")


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
            allow_outside=args.allow_outside,
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
        made = write_slices(args.source, args.out, settings, time=args.time, allow_outside=args.allow_outside)
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


def _curate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=path,
        help="a NIfTI file, a DICOM series, a folder of them, a manifest whose images they are, or a MedMNIST-3D .npz",
    )
    parser.add_argument("--out", type=path, required=True, metavar="STORE", help="new folder for the store")
    parser.add_argument("--spacing", type=float, default=None, metavar="MM", help="mm a voxel; default: as they are")
    parser.add_argument(
        "--cube", type=int, default=None, metavar="N", help="fit each whole volume into N x N x N voxels"
    )
    parser.add_argument(
        "--intensity",
        choices=["auto", "ct", "mri", "range"],
        default="auto",
        help="ct: -1000..1000 HU to 0..1; mri: z-score of what is not 0; range: percentiles to 0..1; auto: by modality",
    )
    parser.add_argument("--modality", default=None, metavar="NAME", help="where the source names none, e.g. ct")
    parser.add_argument("--time", type=int, default=0, metavar="T", help="which volume of a series in time, from 0")
    _outside(parser)


def _curate(args: argparse.Namespace) -> None:
    from maskedclip.data.volume_store import VolumeSettings, curate_volumes

    settings = VolumeSettings(spacing=args.spacing, cube=args.cube, intensity=args.intensity, modality=args.modality)
    done = curate_volumes(args.source, args.out, settings, time=args.time, allow_outside=args.allow_outside)
    rejected = [f"quarantined: {name} {reason}" for _, name, reason in done.quarantine]
    for lines in (done.notes, rejected):
        say_next(*lines[:SHOWN], *([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))
    if done.splits.keys() <= {""}:
        say_next("all volumes count as training: `evaluate` needs rows with split val and test in the source's table")
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(done.modalities.items()))
    reasons = f"; every reason is in {args.out}/quarantine.csv" if rejected else ""
    say_next(
        f"{done.stored:,} volumes in {args.out} ({kinds}), {len(rejected):,} quarantined{reasons}",
        f"next: maskedclip pretrain --config dae --config volume_tiny --data {args.out} --out RUN",
    )


VOLUME_VERBS: dict[str, Verb] = {
    "slices": Verb(
        "volumes (NIfTI, DICOM series) as pictures with a manifest, or as small arrays",
        "maskedclip slices scans/ --axis axial --every 3 --out slices",
        _arguments,
        _slices,
    ),
    "curate-volumes": Verb(
        "volumes (NIfTI, DICOM series, MedMNIST-3D) -> a store that 3-D recipes train on",
        "maskedclip curate-volumes scans/manifest.csv --spacing 2 --out stores/scans",
        _curate_arguments,
        _curate,
    ),
}
