"""The part of a report with the test images that a model gets most wrong, and with confusion tables."""

import numpy as np

from maskedclip.evaluation.report_names import PROTOCOLS, label_name
from maskedclip.evaluation.report_pictures import photograph
from maskedclip.evaluation.report_scores import LabelScores, label_scores
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.html import LeftOut, Table, escape, grid, paragraph, picture, shorten

_LABELS, _EACH = 6, 2
_MAIN = (("finetune", "encoder"), ("linear", "encoder"))


def worst_errors(subject: Subject) -> str:
    """For each label, the worst first, the surest false alarms and misses, with their texts; of several classes, who is
    taken for whom.

    Raises:
        LeftOut: no store, or no protocol that learns labels.
    """
    part = next((part for part in _MAIN if subject.main.section(*part) is not None), None)
    if part is None:
        raise LeftOut("no protocol that learns labels was evaluated (linear, finetune)")
    images = subject.images
    places = {key: row for row, key in enumerate(images.ids)}
    scored = [scores for scores in label_scores(subject.main, part) if scores.ids[0] in places]
    if not scored:
        raise LeftOut("the store is not the one that was evaluated, so the images are not there")
    areas = _areas(subject.main, part)
    # The worst first, as the first ones are shown; what has no AUROC comes last.
    findings = sorted(
        (entry for entry in scored if not entry.classes), key=lambda entry: areas.get(entry.label, np.inf)
    )
    shown = []
    for scores in findings[:_LABELS]:
        if cells := _surest(subject, scores, places):
            area = f"AUROC {areas[scores.label]:.3f}" if scores.label in areas else "AUROC undefined"
            shown.append(f"<h3>{escape(label_name(scores.label))}, {area}</h3>{grid(cells, 'hits')}")
    tables = [_confusion(entry) for entry in scored if entry.classes]
    caption = (
        f"{PROTOCOLS[part[0]]}, test split. The images without a finding that have its highest probability, and those "
        "with it that have the lowest; above and below one half they are false alarms and misses, else the nearest to "
        "one. Labels may be wrong, too: look before you judge. The images are shown as they are stored, at 256 pixels "
        f"at most; the model reads them at {subject.model.preprocessing.size}."
    )
    if len(findings) > _LABELS:
        caption += f" Shown: the {_LABELS} of {len(findings)} findings with the lowest AUROC, the lowest first"
    else:
        caption += " Findings stand in the order of their AUROC, the lowest first"
    last = any(entry.label not in areas for entry in findings[:_LABELS])
    caption += ", and those where it is undefined last." if last else "."
    return paragraph(caption) + "".join(shown) + "".join(tables)


def _areas(main: Evaluation, part: tuple[str, str]) -> dict[str, float]:
    """AUROC of the labels that have one."""
    section = main.section(*part) or {}
    entries = {name: entry.get("auroc") or {} for name, entry in section.get("per_label", {}).items()}
    return {name: entry["value"] for name, entry in entries.items() if entry.get("value") is not None}


def _surest(subject: Subject, scores: LabelScores, places: dict[str, int]) -> list[str]:
    cells = []
    for wrong, right, truth, sign in (("false alarm", "highest without it", 0, -1), ("missed", "lowest with it", 1, 1)):
        rows = np.flatnonzero(scores.truth == truth)
        for row in rows[np.argsort(sign * scores.score[rows], kind="stable")][:_EACH].tolist():
            place = places[scores.ids[row]]
            is_wrong = (scores.score[row] > 0.5) != (truth == 1)
            kind = wrong if is_wrong else right
            text = subject.images.text(place)
            said = escape(shorten(text, 120)) if text else "no text"
            alt = f"{label_name(scores.label)}, {kind}, probability {scores.score[row]:.2f}"
            look = "wrong" if is_wrong else "note"
            cells.append(
                f'<div class="hit">{picture(photograph(subject.images, place), "jpeg", alt)}'
                f'<p><span class="{look}">{kind}</span> {scores.score[row]:.2f}</p><p class="note">{said}</p></div>'
            )
    return cells


def _confusion(scores: LabelScores) -> str:
    """Counts, true class by the likeliest one."""
    count = len(scores.classes)
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (scores.truth, scores.score.argmax(axis=1)), 1)
    rows = [
        [escape(f"is {name}"), *(f"<strong>{n}</strong>" if k == j else str(n) for j, n in enumerate(line))]
        for k, (name, line) in enumerate(zip(scores.classes, table.tolist(), strict=True))
    ]
    caption = f"{label_name(scores.label)}: test images by true class (rows) and likeliest class (columns)"
    return Table(caption=caption, columns=("", *(f"taken for {name}" for name in scores.classes)), rows=rows).render()
