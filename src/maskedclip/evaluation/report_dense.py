"""The part of a report about the dense probe: figures by mask, and maps to look at."""

from collections.abc import Mapping
from typing import Any

from maskedclip.evaluation.dense_sheet import COLUMNS
from maskedclip.evaluation.dense_table import METRICS
from maskedclip.evaluation.report_names import label_name, row_name
from maskedclip.evaluation.report_subject import Subject
from maskedclip.html import LeftOut, Table, escape, estimate, figure, paragraph, picture

_NAMES = dict(zip(METRICS, ("AUROC", "AUPRC", "Dice"), strict=True))


def dense_probe_section(subject: Subject) -> str:
    """Every mask on every feature, of every evaluation that has a dense probe.

    Raises:
        LeftOut: it was not asked for, or could not be had.
    """
    section = subject.main.results.get("dense")
    if section is None:
        raise LeftOut("`--protocols dense` was not asked for; it needs a store with mask.* columns")
    if "skipped" in section:
        raise LeftOut(section["skipped"])
    rows = []
    for entry in (subject.main, *subject.others):
        for feature, part in entry.results.get("dense", {}).items():
            if not isinstance(part, dict):
                continue
            for label, figures in part["per_label"].items():
                chosen = part["chosen"].get(label)
                setting = f"C {chosen['C']:g}, threshold {chosen['threshold']:.2f}" if chosen else "–"
                name = f"{label_name(label)}: {row_name('dense', feature)}, {entry.name}"
                cells = [estimate(figures[metric]) for metric in METRICS]
                rows.append([escape(name), *cells, escape(setting), escape(figures["auroc"]["n"])])
    side = next(iter(section.values()))["size"]
    table = Table(
        caption=f"Pixels from patch tokens, read at {side} px",
        columns=("mask", *_NAMES.values(), "setting", "images"),
        rows=rows,
    )
    said = paragraph(
        "A linear map from each patch token to the pixels under the patch; the encoder itself is not trained. Means "
        "over the test images that have the thing, inside the field where a mask of it is known; C and the threshold "
        "were chosen without the test images."
    ) + "".join(map(paragraph, _false_alarms(section)))
    path = subject.main.folder / "dense.png"
    if not path.is_file():
        return said + table.render()
    alt = f"Test images in rows; columns: {', '.join(COLUMNS)}"
    return said + table.render() + figure(picture(path.read_bytes(), "png", alt), f"{alt}.")


def _false_alarms(section: Mapping[str, Any]) -> list[str]:
    """What is marked where there is nothing, a sentence for each mask and feature that has such test images."""
    return [
        f"{label_name(label)}, {row_name('dense', feature)}: of {found['images']:,} test images without it "
        f"{found['images_marked']:,} have pixels above the threshold, {found['share_marked']:.2%} of the pixels in the "
        "mean."
        for feature, part in section.items()
        for label, found in part.get("without", {}).items()
    ]
