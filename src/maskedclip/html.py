"""The few pieces of HTML that reports, studies and audits are made of.

Every function escapes the plain text that it is given.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskedclip.errors import UserError

UNDEFINED = "undefined"
_STYLE = Path(__file__).with_suffix(".css")


class LeftOut(Exception):
    """A part of a report cannot be had.  The message is the one-line reason that stands in its place."""


def escape(value: object) -> str:
    """Plain text -> HTML, also inside quoted attributes."""
    return html.escape(str(value), quote=True)


def shorten(text: str, length: int = 260) -> str:
    """`text` with single spaces, cut at a word with an ellipsis where it is longer than `length`."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length].rsplit(" ", 1)[0] + " …"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is a class of the style sheet."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def reason(text: str) -> str:
    """Why something is missing."""
    return f'<p class="reason"><strong>Left out:</strong> {escape(text)}</p>'


def picture(data: bytes, kind: str, alt: str) -> str:
    """An image inside the file.  kind: `svg+xml`, `png` or `jpeg`.  alt: what a reader who cannot see it must know."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(alt)}">'


def figure(content: str, caption: str, kind: str = "") -> str:
    """HTML with a plain caption below it."""
    return f'<figure class="{kind}">{content}<figcaption>{escape(caption)}</figcaption></figure>'


def grid(items: Sequence[str], kind: str) -> str:
    """HTML items side by side, as many as fit the width."""
    return f'<div class="{kind}">{"".join(items)}</div>'


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of HTML cells; the first cell of a row is its header.  caption and columns are plain text."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def render(self) -> str:
        """The table, inside a box that scrolls sideways by itself where the screen is narrower."""
        heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        lines = "".join(
            f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
            for row in self.rows
        )
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.caption)}"><table>'
            f"<caption>{escape(self.caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
        )


def facts(caption: str, entries: Sequence[tuple[str, str]]) -> str:
    """A two-column table of plain names and plain values."""
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in entries)
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{lines}</tbody></table>'


def numbers(entry: Mapping | None, *, digits: int = 3, signed: bool = False) -> str:
    """Plain text of an estimate of results.json: value with interval, or why there is none."""
    if entry is None:
        return "–"
    value, low, high = (entry.get(name) for name in ("value", "low", "high"))
    if value is None:
        return str(entry.get("note") or f"{UNDEFINED} (n={entry.get('n', '?')})")
    form = f"{'+' if signed else ''}.{digits}f"
    interval = "no interval" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
    return f"{value:{form}} {interval}".replace("-", "−")


def estimate(entry: Mapping | None, *, digits: int = 3, signed: bool = False) -> str:
    """HTML of an estimate of results.json: the value in bold, its interval, and its note where there is one."""
    shown = numbers(entry, digits=digits, signed=signed)
    if entry is None or entry.get("value") is None:
        return f'<span class="undefined">{escape(shown)}</span>'
    value, interval = shown.split(" ", 1)
    note = f' <small class="note">{escape(entry["note"])}</small>' if entry.get("note") else ""
    return f'<span class="estimate"><strong>{escape(value)}</strong> {escape(interval)}</span>{note}'


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.  anchor: its address in the page.  title: plain text.  body: HTML."""

    anchor: str
    title: str
    body: str

    def render(self) -> str:
        """The part with its heading."""
        return f'<section id="{escape(self.anchor)}"><h2>{escape(self.title)}</h2>{self.body}</section>'


def why_not(error: LeftOut | UserError) -> str:
    """The one-line reason of a part that could not be made."""
    return reason(" ".join(str(error).split()))


def page(*, title: str, subtitle: str, sections: Sequence[Section], style: str = "") -> str:
    """The whole file: no script, nothing fetched; a policy in its head forbids both, whatever a text may smuggle in.

    style: further rules of this page.
    """
    links = "".join(f'<li><a href="#{escape(part.anchor)}">{escape(part.title)}</a></li>' for part in sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}{style}</style></head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f'<nav aria-label="Sections"><ol>{links}</ol></nav></header>\n<main>\n'
        + "\n".join(part.render() for part in sections)
        + "\n</main></body></html>\n"
    )
