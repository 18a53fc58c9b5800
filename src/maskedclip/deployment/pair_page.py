"""Retrieved pairs as one self-contained page: pictures of the best, median, worst and least likely ones."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskedclip.data.audit.page import thumbnails
from maskedclip.deployment.pair import Retrieved
from maskedclip.errors import UserError
from maskedclip.html import Section, Table, escape, facts, page, paragraph, picture, shorten

SHOWN = 12
"""Pairs of each kind."""
_STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); gap: 1.25rem; }
.pair { margin: 0; font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
.pair img { width: 100%; border-radius: .25rem; }
.soft { color: var(--soft); }
.bad { color: var(--bad); font-weight: 600; }
@media print { .pair { break-inside: avoid; } }
"""


def write_page(found: Retrieved, path: Path, told: str) -> None:
    """Write the page as a new file.

    Args:
        found: the pairs.
        path: must not exist.
        told: how images and texts were chosen.

    Raises:
        UserError: the file is there already.
    """
    order = found.by_score()
    middle = max(0, (len(order) - SHOWN) // 2)
    kinds = [
        ("best", "Highest scores", order[:SHOWN], "These should be right. Where they are not, do not use the pairs."),
        ("median", "Around the median", order[middle : middle + SHOWN], "What training would read most of the time."),
        ("worst", "Lowest scores", order[::-1][:SHOWN], "Choose a threshold that drops them, if they are wrong."),
        ("mistakes", "Likeliest mistakes", found.mistakes()[:SHOWN], _HOW_MISTAKES),
    ]
    rows = [int(found.rows[place]) for _, _, places, _ in kinds for place in places]
    shown = thumbnails(found.store, rows)
    sections = [Section(anchor="summary", title="In short", body=_summary(found, told))]
    sections += [
        Section(anchor=anchor, title=title, body=paragraph(text) + _pairs(found, places.tolist(), shown))
        for anchor, title, places, text in kinds
    ]
    sections.append(Section(anchor="texts", title="Texts that were retrieved most", body=_frequent(found)))
    name = found.store.folders[0].resolve().name
    text = page(
        title=f"Retrieved texts of {name}",
        subtitle=f"{len(order):,} of {len(found.rows):,} images have a text, of {len(found.texts):,} to choose from",
        sections=sections,
        style=_STYLE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"--page {path}: is there already, and nothing is overwritten: give another name") from None


_HOW_MISTAKES = (
    "First those whose labels contradict all images that have the text as their own; then the lowest scores. Without "
    "labels the scores alone tell."
)


def _summary(found: Retrieved, told: str) -> str:
    report, score = found.report, found.found.score[found.paired, 0]
    about = found.about
    options = f"top {about['top']}"
    options += "" if about["threshold"] is None else f", threshold {about['threshold']:g}"
    options += ", mutual nearest neighbours" if about["mutual"] else ""
    entries = [
        ("images with a text", f"{len(found.paired):,} of {len(found.rows):,}"),
        ("chosen", told),
        ("options", options),
        ("scores", f"{score.min():.3f} to {score.max():.3f}, median {np.median(score):.3f}"),
        ("distinct texts used", f"{report.used:,} of {report.texts:,} ({report.used_share:.1%} of what could be)"),
        ("most frequent text", f"{report.top_share:.1%} of the images"),
        ("skewness of texts' images", "undefined" if np.isnan(report.skewness) else f"{report.skewness:.2f}"),
    ]
    if found.compared:
        wrong = len(found.contradictions)
        entries.append(("labels contradict", f"{wrong:,} of {found.compared:,} ({wrong / found.compared:.1%})"))
    warning = ""
    if report.is_collapsed:
        warning = paragraph("Nearly all images got one text: the encoder tells them not apart. Do not train on these.")
    elif report.has_hub:
        warning = paragraph("One text was given to half of the images or more: a hub, or a truly frequent text.")
    if found.compared and 2 * len(found.contradictions) > found.compared:
        warning += paragraph("Most of these texts are wrong by the labels. Do not train on them as they are.")
    return warning + facts("Pairs", entries)


def _pairs(found: Retrieved, places: Sequence[int], shown: dict[int, bytes]) -> str:
    items = []
    for place in places:
        row = int(found.rows[place])
        name, text = found.store.ids[row], shorten(found.text_of(place))
        drawn = picture(shown[row], "jpeg", f"Image {name}, retrieved text: {text}")
        wrong = found.contradictions.get(place, ())
        bad = f'<br><span class="bad">labels say otherwise: {escape(", ".join(wrong))}</span>' if wrong else ""
        items.append(
            f'<figure class="pair">{drawn}<figcaption><strong>{found.found.score[place, 0]:.3f}</strong> '
            f'{escape(text)}{bad}<br><span class="soft">{escape(name)}</span></figcaption></figure>'
        )
    return f'<div class="pairs">{"".join(items)}</div>'


def _frequent(found: Retrieved) -> str:
    counts = Counter(found.found.index[found.paired, 0].tolist())
    rows = [
        (escape(shorten(found.texts[place], 160)), f"{count:,}", f"{count / len(found.paired):.1%}")
        for place, count in counts.most_common(30)
    ]
    return Table(caption="Best texts", columns=("text", "images", "share"), rows=rows).render()
