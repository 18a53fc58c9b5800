"""What `maskedclip segment` writes: overlays, a panel, masks and maps of each photograph, and a table of them all.

OUT/segments.csv, OUT/segments.json and, for each photograph, OUT/NAME/ with panel.png, LABEL.png, for regions also
regions.png, and where they are asked for masks/LABEL.png (0 and 255) and maps/LABEL.png (16 bits, the photograph's
pixels) or maps/LABEL.npy (patch grid).
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskedclip.console import bar, say
from maskedclip.data.pixels import UndecodableImage
from maskedclip.deployment.inputs import Inputs, StoreInputs, in_threads, open_inputs
from maskedclip.deployment.overlay import OUTLINES, outlined, overlay, panel, with_legend
from maskedclip.deployment.regions import pieces
from maskedclip.deployment.segment import Found, Segmenter
from maskedclip.errors import UserError

Maps = Literal["none", "png", "npy"]
_LARGEST = 2000  # px of the longer side of a drawing
_AHEAD = 4  # photographs that are decoded while others are worked on; they may be large
_TOLD = 20
MOST_REFERENCE = 64
COLUMNS = (
    *("id", "label", "score", "low", "high", "threshold", "area", "pieces", "peak", "peak_row", "peak_column"),
    *("overlay", "mask", "map"),
)
_UNITS = {
    "similarity": "cosine of the patches with the text",
    "contribution": "what patches add to the photograph's score",
    "regions": "cosine of the regions with the text",
    "relevance": "share of the score's relevance",
    "rollout": "share of the attention, whatever the text",
    "removal": "change of the score where patches are seen",
    "proposals": "sum over the proposals of the label's probability, a share of each place",
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is written beside overlays and the table.

    masks: PNG of each label.  maps: raw values.  opacity: of the colours, 0 to 1.  ends: what the ends of the colour
    map stand for, in all pictures; None: for each picture and label the median of the visible part, or the mask's
    threshold if that is lower, and the highest value.
    """

    masks: bool = False
    maps: Maps = "none"
    opacity: float = 0.6
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of the photographs: how many were written, and `id: reason` of those that could not be read."""

    photographs: int
    rejected: list[str]
    records: list[dict[str, Any]]


def write_segments(segmenter: Segmenter, paths: Sequence[Path], out: Path, drawing: Drawing) -> Written:
    """Look at all photographs and write what was found.

    paths: photographs, folders, lists, archives, stores; see `open_inputs`.  out: new or empty.

    Raises:
        UserError: `out` holds something, or nothing can be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; choose another")
    sources = [open_inputs(path) for path in paths]
    places = [(source, row) for source in sources for row in range(len(source))]
    for note in (note for source in sources for note in source.notes):
        say(note)
    rejected = [f"{entry.id} {entry.reason}" for source in sources for entry in source.unlisted]
    names = _folder_names([source.ids[row] for source, row in places])
    slugs = _slugs(segmenter.labels)
    records: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    with (out / "segments.csv").open("w", newline="", encoding="utf-8") as file, bar("segment", len(places)) as shown:
        table = csv.DictWriter(file, fieldnames=COLUMNS, extrasaction="ignore")
        table.writeheader()
        for (source, row), name, pixels in zip(places, names, _pixels(places), strict=True):
            if isinstance(pixels, str):
                rejected.append(f"{source.ids[row]} {pixels}")
            else:
                found = segmenter.find(pixels, prepared=isinstance(source, StoreInputs))
                record = {"id": source.ids[row], "folder": name, **_write(found, segmenter, out, name, slugs, drawing)}
                records.append(record)
                table.writerows(
                    {"id": record["id"], **entry, "pieces": len(entry["pieces"])} for entry in record["labels"]
                )
                file.flush()
            shown.advance()
    for line in rejected[:_TOLD]:
        say(f"left out: {line}")
    if rejected:
        say(f"{len(rejected)} of {len(places) + sum(len(source.unlisted) for source in sources)} files left out")
    if not records:
        raise UserError(f"{paths[0]}: none of the {len(rejected)} files can be read as an image")
    about = {
        "model": segmenter.model.fingerprint,
        "method": segmenter.settings.method,
        "unit": _UNITS[segmenter.settings.method],
        "against_normal": segmenter.settings.against_normal,
        "size": segmenter.model.preprocessing.size,
        "tiles": segmenter.tiles,
        "less_mean_of_reference": segmenter.mean is not None,
        "labels": list(segmenter.labels),
        "notice": "Where a model looks, not where a disease is; no diagnosis.",
    }
    summary = {**about, "photographs": records, "left_out": rejected}
    (out / "segments.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Written(photographs=len(records), rejected=rejected, records=records)


def read_reference(segmenter: Segmenter, path: Path) -> int:
    """Subtract the mean map over up to 64 photographs, evenly spread over a store or folder, from all maps.

    Returns: how many were read.

    Raises:
        UserError: none can be read.
    """
    source = open_inputs(path)
    rows = np.unique(np.linspace(0, len(source) - 1, min(len(source), MOST_REFERENCE)).astype(int))
    read = _pixels([(source, int(row)) for row in rows])
    with bar("reference", len(rows)) as shown:

        def whole() -> Iterator[NDArray[np.uint8]]:
            for entry in read:
                shown.advance()
                if not isinstance(entry, str):
                    yield entry

        count = segmenter.compare_with(whole(), prepared=isinstance(source, StoreInputs))
    if not count:
        raise UserError(f"--reference {path}: none of its photographs can be read")
    return count


def _pixels(places: Sequence[tuple[Inputs, int]]) -> Iterator[NDArray[np.uint8] | str]:
    """Of each photograph its pixels, or why there are none."""

    def read(place: tuple[Inputs, int]) -> NDArray[np.uint8] | str:
        try:
            return place[0].pixels(place[1])
        except UndecodableImage as error:
            return str(error)

    yield from in_threads(read, places, ahead=_AHEAD)


def _write(
    found: Found, segmenter: Segmenter, out: Path, name: str, slugs: Sequence[str], drawing: Drawing
) -> dict[str, Any]:
    """The files of one photograph, and what the table says of them."""
    folder = out / name
    folder.mkdir(parents=True)
    height, width = found.picture.shape[:2]
    scale = min(1.0, _LARGEST / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    picture = Image.fromarray(found.picture)
    if scale < 1:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BOX, reducing_gap=2.0)
    drawn = np.asarray(picture)
    cells = [("photograph", picture)]
    entries = []
    for place, (label, slug) in enumerate(zip(found.labels, slugs, strict=True)):
        values, full = found.map_on_photograph(place), found.mask_on_photograph(place)
        entry = _measured(found, place, values, full)
        low, high = drawing.ends or (entry["low"], entry["high"])
        small = values if scale == 1 else found.map_on_photograph(place, size)
        heat = (small - low) / (high - low) if high > low else np.zeros(size, np.float32)
        result = overlay(drawn, heat, opacity=drawing.opacity)
        mask = full if scale == 1 else found.mask_on_photograph(place, size)
        if found.regions is not None or drawing.masks:
            result = outlined(result, [(mask, OUTLINES[1])])
        with_legend(result, label, note=_note(entry, segmenter), bar=(low, high)).save(folder / f"{slug}.png")
        cells.append((f"{label}  {entry['score']:.3g}", result))
        entry |= {"overlay": f"{name}/{slug}.png", "mask": None, "map": None}
        if drawing.masks:
            entry["mask"] = f"{name}/masks/{slug}.png"
            _save(Image.fromarray(full.astype(np.uint8) * np.uint8(255)), out / entry["mask"])
        if drawing.maps != "none":
            entry["map"] = f"{name}/maps/{slug}.{drawing.maps}"
            entry["map_range"] = _save_map(found.maps[place], values, out / entry["map"])
        entries.append(entry)
    if found.regions is not None:
        cells.append(("regions", _regions(found, picture, size, folder)))
    panel(cells).save(folder / "panel.png")
    top, left, bottom, right = found.transform.box
    row, column, tall, wide = found.transform.placed
    across, down = (right - left) / wide, (bottom - top) / tall
    side = found.transform.size
    square = [top - row * down, left - column * across, side * down, side * across]
    return {"width": width, "height": height, "square": [round(value, 3) for value in square], "labels": entries}


def _measured(found: Found, place: int, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The numbers of one label in one photograph, places in its pixels; values, mask: on the photograph (H, W)."""
    inside = found.inside(place)
    visible_area = int(found.visible_on_photograph().sum())
    known = np.nan_to_num(values, nan=-np.inf)
    row, column = np.unravel_index(int(known.argmax()), values.shape)
    parts = pieces(mask, known, least=max(1, visible_area // 10_000))
    for part in parts:
        part["area"] = round(part.pop("px") / max(visible_area, 1), 6)
    return {
        "label": found.labels[place],
        "score": round(float(found.scores[place]), 6),
        "low": min(float(np.median(inside)), float(found.thresholds[place])) if len(inside) else 0.0,
        "high": float(inside.max()) if len(inside) else 0.0,
        "threshold": float(found.thresholds[place]),
        "area": round(int(mask.sum()) / max(visible_area, 1), 6),
        "peak": float(values[row, column]),
        "peak_row": int(row),
        "peak_column": int(column),
        "pieces": parts[:50],
    }


def _note(entry: dict[str, Any], segmenter: Segmenter) -> str:
    settings = segmenter.settings
    unit = _UNITS[settings.method] + (", less that with a normal fundus" if settings.against_normal else "")
    unit += ", less the mean over the reference" if segmenter.mean is not None else ""
    rule = "margin over normal" if settings.method == "regions" else "threshold"
    above = f"above the {rule} {entry['threshold']:.3g}"
    if settings.method == "proposals" and settings.threshold is None:
        above = "are nearer to it than to the other labels and a normal fundus"
    return f"{unit}; whole photograph {entry['score']:.3g}; {entry['area']:.1%} of the field {above}".replace("-", "−")


def _regions(found: Found, picture: Image.Image, size: tuple[int, int], folder: Path) -> Image.Image:
    """All regions in one picture, a colour a label; saved as regions.png."""
    assert found.regions is not None
    colour = {label: OUTLINES[place % len(OUTLINES)] for place, label in enumerate(found.labels)}
    masks = [(found.region_on_photograph(region, size), colour[region.label]) for region in found.regions]
    drawn = outlined(picture, masks)
    named = {region.label for region in found.regions}
    swatches = [(label if label in named else f"{label} (none)", colour[label]) for label in found.labels]
    count = len(found.regions)
    title = f"{count} region{'s' if count != 1 else ''} nearer to a label than to a normal fundus"
    with_legend(drawn, title, swatches=swatches).save(folder / "regions.png")
    return drawn


def _save_map(values: NDArray[np.float32], placed: NDArray[np.float32], path: Path) -> list[float]:
    """The patch grid (h, w) as NumPy's array, or the map on the photograph (H, W) in 16 bits, by the path's suffix.

    Returns: the extremes of the grid, which are what 0 and 65535 stand for.
    """
    low, high = float(values.min()), float(values.max())
    if path.suffix == ".npy":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values, allow_pickle=False)
        return [low, high]
    steps = (
        np.rint((np.nan_to_num(placed, nan=low) - low) / max(high - low, 1e-30) * 65535)
        .clip(0, 65535)
        .astype(np.uint16)
    )
    _save(Image.fromarray(steps), path)
    return [low, high]


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=4)


def _folder_names(ids: Sequence[str]) -> list[str]:
    """A folder for each photograph: its own path without suffix, safe on every system, and no two alike."""
    plain = [re.sub(r"\.[A-Za-z0-9]{2,5}$", "", entry) for entry in ids]
    parts = [[_slug(part) for part in re.split(r"[/\\]+", entry) if part not in ("", ".", "..")] for entry in plain]
    if len({tuple(entry[:-1]) for entry in parts}) == 1:
        parts = [entry[-1:] for entry in parts]  # a folder that all share says nothing
    return _distinct(["/".join(entry) or "photograph" for entry in parts])


def _slugs(labels: Sequence[str]) -> list[str]:
    """A file name for each label; `panel` and `regions` are taken."""
    return _distinct([_slug(label)[:60] for label in labels], taken=("panel", "regions", "masks", "maps"))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text.strip()).strip("._") or "unnamed"


def _distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    used = {name.lower() for name in taken}
    result = []
    for name in names:
        candidate, number = name, 2
        while candidate.lower() in used:
            candidate, number = f"{name}_{number}", number + 1
        used.add(candidate.lower())
        result.append(candidate)
    return result
