"""The part of a report with the test images that a model gets most wrong, and with confusion tables."""

import numpy as np

from maskedclip.evaluation.report_names import PROTOCOLS, label_name
from maskedclip.evaluation.report_pictures import jpeg, stored_pixels
from maskedclip.evaluation.report_scores import LabelScores, label_scores
from maskedclip.evaluation.report_subject import Subject
from maskedclip.html import LeftOut, Table, escape, grid, paragraph, picture, shorten

_LABELS, _EACH = 6, 2
_MAIN = (("finetune", "encoder"), ("linear", "encoder"))


def worst_errors(subject: Subject) -> str:
    """For each label the surest false alarms and the surest misses, with their texts; of several classes, who is taken
    for whom.

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
    shown = []
    for scores in [entry for entry in scored if not entry.classes][:_LABELS]:
        cells = _surest(subject, scores, places)
        if cells:
            shown.append(f"<h3>{escape(label_name(scores.label))}</h3>{grid(cells, 'hits')}")
    tables = [_confusion(entry) for entry in scored if entry.classes]
    caption = (
        f"{PROTOCOLS[part[0]]}, test split. The images without a finding that have its highest probability, and those "
        "with it that have the lowest; above and below one half they are false alarms and misses, else the nearest to "
        "one. Labels may be wrong, too: look before you judge."
    )
    findings = [entry for entry in scored if not entry.classes]
    if len(findings) > _LABELS:
        caption += f" Shown: the first {_LABELS} of {len(findings)} findings."
    return paragraph(caption) + "".join(shown) + "".join(tables)


def _surest(subject: Subject, scores: LabelScores, places: dict[str, int]) -> list[str]:
    cells = []
    for wrong, right, truth, sign in (("false alarm", "highest without it", 0, -1), ("missed", "lowest with it", 1, 1)):
        rows = np.flatnonzero(scores.truth == truth)
        for row in rows[np.argsort(sign * scores.score[rows], kind="stable")][:_EACH].tolist():
            place = places[scores.ids[row]]
            is_wrong = (scores.score[row] > 0.5) != (truth == 1)
            kind = wrong if is_wrong else right
            pixels = stored_pixels(subject.images, np.asarray([place]), subject.model.preprocessing.size)
            text = subject.images.text(place)
            said = escape(shorten(text, 120)) if text else "no text"
            alt = f"{label_name(scores.label)}, {kind}, probability {scores.score[row]:.2f}"
            look = "wrong" if is_wrong else "note"
            cells.append(
                f'<div class="hit">{picture(jpeg(pixels[0].permute(1, 2, 0).numpy()), "jpeg", alt)}'
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
