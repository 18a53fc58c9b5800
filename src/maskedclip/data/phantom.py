"""Phantoms: synthetic fundus photographs with reports, labels and masks, drawn from a seed.

The embedded data set: everything else can be tried and tested on it without a download.  A phantom is a pure function
of (seed, patient, eye, size): the same bits in a set of ten as in a set of ten thousand, on one core or on many.
"""

import csv
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from maskedclip.data.phantom_fundus import paint_fundus
from maskedclip.data.phantom_lesions import LESIONS
from maskedclip.data.phantom_patient import DISEASES, SIDES, Eye, Side, draw_eye, draw_patient, split_of, stream
from maskedclip.data.phantom_report import Sentence, join_sentences, write_report
from maskedclip.errors import UserError

MASKS = ("vessel", "artery", "vein", "disc", "cup", *LESIONS)
LABELS = (*DISEASES, "haemorrhage", "hard_exudate", "cotton_wool_spot", "drusen", "laser_scar", "normal", "dr_grade")
SMALLEST, LARGEST = 32, 2048  # pixels
Row = dict[str, str | int]  # of the manifest

_BATCH = 16  # eyes that a process draws before it reports
_WORTH_A_POOL = 64  # images; below, starting processes costs more than it saves


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One drawn eye.

    image: (H, W, 3) uint8.  masks: name -> (H, W) bool; always vessel, artery, vein, disc and cup, and each kind of
    lesion that the eye has (a media opacity has no outline, and a wide cup has the mask `cup`).  eye: its findings
    (severity 0-3) and diseases.  sentences: the report, with its claims.
    """

    patient: int
    age: int
    sex: str
    split: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    eye: Eye
    sentences: list[Sentence]

    @property
    def findings(self) -> dict[str, int]:
        """Severity 0 (none) to 3 (severe) of each finding."""
        return self.eye.findings

    @property
    def text(self) -> str:
        """The report."""
        return join_sentences(self.sentences)

    @property
    def labels(self) -> dict[str, int]:
        """0 or 1 for each of LABELS, but dr_grade, which is 0-4."""
        labels = {disease: int(grade > 0) for disease, grade in self.eye.diseases.items()}
        labels |= {finding: int(severity > 0) for finding, severity in self.findings.items()}
        labels |= {"normal": int(self.eye.normal), "dr_grade": self.eye.diseases["diabetic_retinopathy"]}
        return {name: labels[name] for name in LABELS}


def draw_phantom(seed: int, patient: int, eye: Side, size: int = 256) -> Phantom:
    """Draw one eye of patient number `patient`.

    Args:
        seed: 0 or more; names the world that the patient lives in.
        patient: 0 or more.
        eye: `left` or `right`.
        size: side of the picture in pixels, 32 to 2048.  The scene is the same at each size.
    """
    shared = draw_patient(seed, patient)
    state = draw_eye(seed, patient, eye, shared)
    image, masks = paint_fundus(seed, patient, shared, state, size)
    return Phantom(
        patient=patient,
        age=shared.age,
        sex=shared.sex,
        split=split_of(seed, patient),
        image=image,
        masks=masks,
        eye=state,
        sentences=write_report(stream(seed, patient, f"report {eye}"), state),
    )


def write_phantoms(
    out: Path, *, images: int, seed: int, size: int = 256, processes: int | None = None, progress: bool = True
) -> Path:
    """Draw `images` eyes, two a patient, and write `manifest.csv`, `images/` and `masks/<name>/`.

    Args:
        out: a folder that does not exist, or is empty.
        images: how many; an odd number leaves the last patient with the left eye only.
        seed: 0 or more.
        size: side of the pictures in pixels.
        processes: how many draw at once; all cores by default.  It does not change a bit of the result.  They are
            spawned, so a script calls this below `if __name__ == "__main__":`.
        progress: show a bar on a terminal.

    Returns: the manifest's path.
    Raises: UserError for a folder in use, a number out of range, a disk that is full or read-only.
    """
    out = Path(out)
    _check(out, images, seed, size)
    stage = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        for folder in ("images", *(f"masks/{name}" for name in MASKS)):
            (stage / folder).mkdir(parents=True)
        _write_manifest(stage / "manifest.csv", _draw_all(stage, images, seed, size, processes, progress))
        if out.exists():
            out.rmdir()
        stage.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out}: cannot be written ({reason}): make room there, or choose another --out") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return out / "manifest.csv"


def _check(out: Path, images: int, seed: int, size: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder: choose another --out, or remove it")
    if images < 1:
        raise UserError(f"images: {images} is too few: give 1 or more")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative: give 0 or more")
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"size: {size} is out of range: give {SMALLEST} to {LARGEST} pixels")


def _draw_all(stage: Path, images: int, seed: int, size: int, processes: int | None, progress: bool) -> list[Row]:
    """All rows of the manifest, in order."""
    eyes: list[tuple[int, Side]] = [(number // len(SIDES), SIDES[number % len(SIDES)]) for number in range(images)]
    batches = [eyes[start : start + _BATCH] for start in range(0, images, _BATCH)]
    work = partial(_draw_batch, stage, seed, size)
    count = min(processes or _cores(), len(batches))
    rows = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task("drawing phantoms", total=images)

        def collect(results: Iterable[list[Row]]) -> None:
            for some in results:
                rows.extend(some)
                bar.update(task, advance=len(some))

        if count == 1 or (processes is None and images < _WORTH_A_POOL):
            collect(map(work, batches))
        else:  # spawn: safe beside threads, and the same everywhere
            with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
                collect(pool.map(work, batches))
    return rows


def _cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_batch(stage: Path, seed: int, size: int, eyes: list[tuple[int, Side]]) -> list[Row]:
    return [_draw_row(stage, seed, patient, side, size) for patient, side in eyes]


def _draw_row(stage: Path, seed: int, patient: int, side: Side, size: int) -> Row:
    """Draw an eye, save its files, and return its row of the manifest."""
    phantom = draw_phantom(seed, patient, side, size)
    stem = f"{patient:06d}_{side}"
    image = f"images/{stem}.jpg"
    Image.fromarray(phantom.image).save(stage / image, quality=95, subsampling=0)
    row: Row = {
        "image": image,
        "text": phantom.text,
        "patient": f"phantom-{seed}-{patient}",  # with the seed: sets of two seeds have no patient in common
        "split": phantom.split,
        "eye": side,
        "age": phantom.age,
        "sex": phantom.sex,
    }
    row |= {f"label.{name}": value for name, value in phantom.labels.items()}
    for name in MASKS:
        mask = phantom.masks.get(name)
        path = "" if mask is None else f"masks/{name}/{stem}.png"
        if mask is not None:
            Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(stage / path, compress_level=1)
        row[f"mask.{name}"] = path
    return row


def _write_manifest(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
