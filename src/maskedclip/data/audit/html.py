"""The few pieces of HTML that the audit's page is made of.  Every function escapes the plain text that it is given.

The evaluation's report has its own; this floor of the package may not import from that one.
"""

import base64
import html
from collections.abc import Sequence


def escape(value: object) -> str:
    """Plain text -> HTML, also inside quoted attributes."""
    return html.escape(str(value), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is a class of the style sheet."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def picture(jpeg: bytes, alt: str) -> str:
    """A JPEG inside the file."""
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{escape(alt)}">'


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain cells, the first of a row its header, inside a box that scrolls sideways by itself."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def page(title: str, subtitle: str, style: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole file, of sections (anchor, title, HTML): no script, nothing fetched, and a policy that forbids both."""
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    body = "\n".join(
        f'<section id="{anchor}"><h2>{escape(name)}</h2>{part}</section>' for anchor, name, part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f'<nav aria-label="Sections"><ol>{links}</ol></nav></header>\n<main>\n{body}\n</main></body></html>\n'
    )
