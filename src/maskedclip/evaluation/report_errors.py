"""The part of a report with the test images that a model gets most wrong, and with confusion tables."""

import numpy as np

from maskedclip.evaluation.report_names import label_name, row_name
from maskedclip.evaluation.report_pictures import photograph
from maskedclip.evaluation.report_scores import LabelScores, areas, gives_probabilities, label_scores, main_part
from maskedclip.evaluation.report_subject import Subject
from maskedclip.html import LeftOut, Table, escape, grid, paragraph, picture, shorten

_LABELS, _EACH = 6, 2


def worst_errors(subject: Subject) -> str:
    """For each label, the worst first, the surest false alarms and misses, with their texts; of several classes, who is
    taken for whom.

    Raises:
        LeftOut: no store, or no protocol that scores labels.
    """
    part = main_part(subject.main)
    images = subject.images
    places = {key: row for row, key in enumerate(images.ids)}
    answered = [scores for scores in label_scores(subject.main, part) if scores.ids]
    if not answered:
        raise LeftOut(f"{row_name(*part)}: no label has a score on a test image (see the tables for the reasons)")
    scored = [scores for scores in answered if places.keys() >= set(scores.ids)]
    if not scored:
        raise LeftOut("the store is not the one that was evaluated, so the images are not there")
    area_of = areas(subject.main, part)
    zero_shot = part[0] == "zero_shot"
    cut = 0.0 if zero_shot else 0.5
    what = "probability" if gives_probabilities(subject.main, part) else "score"
    # The worst first, as the first ones are shown; what has no AUROC comes last.
    findings = sorted(
        (entry for entry in scored if not entry.classes), key=lambda entry: area_of.get(entry.label, np.inf)
    )
    shown = []
    for scores in findings[:_LABELS]:
        if cells := _surest(subject, scores, places, cut, what):
            area = f"AUROC {area_of[scores.label]:.3f}" if scores.label in area_of else "AUROC undefined"
            shown.append(f"<h3>{escape(label_name(scores.label))}, {area}</h3>{grid(cells, 'hits')}")
    tables = [_confusion(entry) for entry in scored if entry.classes]
    other_rule = (
        ""
        if zero_shot
        else "Balanced accuracy has another threshold, mostly the share of the training images that have the finding "
        "(see the guide), so it may count as found what is missed here. "
    )
    caption = (
        f"{row_name(*part)}, test split. The images without a finding that have its highest {what}, and those "
        f"with it that have the lowest; above and below {'zero' if zero_shot else 'one half'} they are false alarms "
        f"and misses, else the nearest to one. {other_rule}Labels may be wrong, too: look before you judge. The images "
        "are shown as they are stored, at 256 pixels at most; the model reads them at "
        f"{subject.model.preprocessing.size}."
    )
    if len(findings) > _LABELS:
        caption += f" Shown: the {_LABELS} of {len(findings)} findings with the lowest AUROC, the lowest first"
    else:
        caption += " Findings stand in the order of their AUROC, the lowest first"
    last = any(entry.label not in area_of for entry in findings[:_LABELS])
    caption += ", and those where it is undefined last." if last else "."
    rule = "Who is taken for whom goes by the likeliest class, as accuracy and kappa do"
    rule += "." if zero_shot else "; balanced accuracy lets rare classes win more often (see the guide)."
    return paragraph(caption) + "".join(shown) + "".join(tables) + (paragraph(rule, "note") if tables else "")


def _surest(subject: Subject, scores: LabelScores, places: dict[str, int], cut: float, what: str) -> list[str]:
    """Cells; what: a score is called.  cut: above it an image is told to have the finding."""
    cells = []
    for wrong, right, truth, sign in (("false alarm", "highest without it", 0, -1), ("missed", "lowest with it", 1, 1)):
        rows = np.flatnonzero(scores.truth == truth)
        for row in rows[np.argsort(sign * scores.score[rows], kind="stable")][:_EACH].tolist():
            place = places[scores.ids[row]]
            is_wrong = (scores.score[row] > cut) != (truth == 1)
            kind = wrong if is_wrong else right
            text = subject.images.text(place)
            said = escape(shorten(text, 120)) if text else "no text"
            alt = f"{label_name(scores.label)}, {kind}, {what} {scores.score[row]:.2f}"
            look = "wrong" if is_wrong else "note"
            cells.append(
                f'<div class="hit">{picture(photograph(subject.images, place), "jpeg", alt)}'
                f'<p><span class="{look}">{kind}</span> {scores.score[row]:.2f}</p><p class="note">{said}</p></div>'
            )
    return cells


def _confusion(scores: LabelScores) -> str:
    """Counts, true class by the likeliest one."""
    table = np.zeros((len(scores.truths), len(scores.classes)), np.int64)
    np.add.at(table, (scores.truth, scores.score.argmax(axis=1)), 1)
    rows = [
        [escape(_is(scores, k)), *(f"<strong>{n}</strong>" if k == j else str(n) for j, n in enumerate(line))]
        for k, line in enumerate(table.tolist())
    ]
    caption = f"{label_name(scores.label)}: test images by true class (rows) and likeliest class (columns)"
    return Table(caption=caption, columns=("", *(f"taken for {name}" for name in scores.classes)), rows=rows).render()


def _is(scores: LabelScores, truth: int) -> str:
    """The head of a row of test images of one true class."""
    name = f"is {scores.truths[truth]}"
    if truth < len(scores.classes):
        return name
    of = f"{' or '.join(scores.unlearnt)}; " if len(scores.unlearnt) > 1 else ""
    return f"{name} ({of}no training image has it)"
