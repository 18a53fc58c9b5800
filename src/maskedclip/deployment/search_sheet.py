"""A contact sheet of results: a picture (PNG, JPEG), or a page that opens anywhere (HTML), nothing fetched."""

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from maskedclip import html
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.deployment.search import Hit, SearchIndex
from maskedclip.deployment.search_pictures import Pictures
from maskedclip.deployment.search_query import Result
from maskedclip.deployment.search_show import findings, plain, words
from maskedclip.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".html", ".htm")
_TILE, _GAP, _MARGIN, _COLUMNS = 220, 16, 24, 5
_INK, _SOFT, _LINE, _WASH, _ACCENT = "#1f2933", "#52606d", "#d9e2ec", "#f5f7fa", "#0b5c8a"
_CAPTION_LINES = 4
_STYLE = """.hits { grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); }
.asked img { width: 14rem; }
.hit .labels { color: var(--accent); font-weight: 600; }
h2, nav a { overflow-wrap: anywhere; }
"""
_MOST_HEIGHT = 60_000


def write_sheet(path: Path, results: Sequence[Result], index: SearchIndex, pictures: Pictures) -> int:
    """Write a sheet; its kind follows the name's end.

    Returns: how many pictures of hits are missing, which the sheet says in their places.

    Raises:
        UserError: another kind of name, a file of the name exists, or a picture would be too tall.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--sheet {path}: name it .png, .jpg or .html")
    if path.exists():
        raise UserError(f"--sheet {path}: exists; choose another file")
    taken = [[pictures.thumbnail(hit.row, 2 * _TILE) for hit in result.hits] for result in results]
    if path.suffix.lower() in {".html", ".htm"}:
        data = _page(results, taken, index).encode()
    else:
        buffer = io.BytesIO()
        kind = "png" if path.suffix.lower() == ".png" else "jpeg"
        _drawn(results, taken).save(buffer, kind, **({} if kind == "png" else {"quality": 92}))
        data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    partial.write_bytes(data)
    publish(partial, path, "--sheet")
    return sum(picture is None for group in taken for picture in group)


def _drawn(results: Sequence[Result], taken: list[list[bytes | None]]) -> Image.Image:
    """A row of the query's own picture and words, then its hits, five abreast; for each query."""
    columns = max(1, min(_COLUMNS, max((len(result.hits) for result in results), default=1)))
    columns = max(columns, 3)  # room for the query's words
    width = 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP
    blocks = [_block(result, group, columns, width) for result, group in zip(results, taken, strict=True)]
    height = sum(block.height for block in blocks)
    if height > _MOST_HEIGHT:
        raise UserError("--sheet: too many queries for one picture; name it .html, or ask for fewer")
    sheet = Image.new("RGB", (width, height), "white")
    at = 0
    for block in blocks:
        sheet.paste(block, (0, at))
        at += block.height
    return sheet


def _block(result: Result, taken: list[bytes | None], columns: int, width: int) -> Image.Image:
    own = _TILE if result.picture is not None else 0
    room = width - 2 * _MARGIN - (own + _GAP if own else 0)
    title = _wrapped(plain(result.query.title), _font(22, bold=True), room, 5)
    remark = _wrapped(plain(result.remark), _font(14), room, 3) if result.remark else []
    said = 26 + 30 * len(title) + 20 * len(remark)
    head = max(own, said)
    captions = [_caption(rank, hit) for rank, hit in enumerate(result.hits, 1)]
    rows = [captions[start : start + columns] for start in range(0, len(captions), columns)]
    heights = [_TILE + 12 + max(len(caption) for caption in row) * 19 + _GAP for row in rows]
    block = Image.new("RGB", (width, 2 * _MARGIN + head + _GAP + (sum(heights) if rows else 40)), "white")
    draw = ImageDraw.Draw(block)
    left = _MARGIN
    if result.picture is not None:
        _tile(block, result.picture, left, _MARGIN, _ACCENT)
        left += _TILE + _GAP
    draw.text((left, _MARGIN), "Query", _ACCENT, _font(14, bold=True))
    at = _MARGIN + 24
    for line in title:
        draw.text((left, at), line, _INK, _font(22, bold=True))
        at += 30
    for line in remark:
        draw.text((left, at), line, _SOFT, _font(14))
        at += 20
    top = _MARGIN + head + _GAP
    draw.line((_MARGIN, top - _GAP // 2, width - _MARGIN, top - _GAP // 2), _LINE, 2)
    if not rows:
        draw.text((_MARGIN, top + 8), "Nothing was found.", _SOFT, _font(16))
    top += _GAP // 2
    number = 0
    for row, height in zip(rows, heights, strict=True):
        for column, caption in enumerate(row):
            x = _MARGIN + column * (_TILE + _GAP)
            _tile(block, taken[number], x, top, _LINE)
            for line, (text, colour, bold) in enumerate(caption):
                draw.text((x, top + _TILE + 6 + 19 * line), text, colour, _font(14, bold=bold))
            number += 1
        top += height
    return block


def _caption(rank: int, hit: Hit) -> list[tuple[str, str, bool]]:
    """Lines under a hit: text, colour, bold."""
    lines = [(f"{rank}.  {hit.score:.3f}", _INK, True)]
    labels = findings(hit.columns)
    lines += [(line, _ACCENT, False) for line in _wrapped(labels, _font(14), _TILE, 2)]
    lines += [(line, _INK, False) for line in _wrapped(words(hit, 200), _font(14), _TILE, _CAPTION_LINES)]
    return [*lines, *((line, _SOFT, False) for line in _wrapped(plain(hit.id), _font(14), _TILE, 2))]


def _tile(sheet: Image.Image, data: bytes | None, x: int, y: int, border: str) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), _WASH, border, 2)
    if data is None:
        for line, text in enumerate(("the picture", "is missing")):
            draw.text((x + _TILE / 2, y + _TILE / 2 - 10 + 20 * line), text, _SOFT, _font(14), anchor="mm")
        return
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    scale = (_TILE - 4) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (x + (_TILE - picture.width) // 2, y + (_TILE - picture.height) // 2))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines that fit a width in pixels; what does not fit `most` lines ends in an ellipsis."""
    lines: list[str] = []
    rest = text
    while rest:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count]) > width:
            fitting = int(count * width / font.getlength(rest[:count]))
            count = max(1, min(count - 1, fitting))
        cut = rest.rfind(" ", 0, count + 1) if count < len(rest) else count
        cut = cut if cut > 0 else count
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
        if rest and len(lines) == most:
            last = lines[-1]
            while last and font.getlength(last + " …") > width:
                last = last[:-1]
            lines[-1] = last.rstrip() + " …"
            break
    return lines


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib and has the letters of most languages that write in an alphabet."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _page(results: Sequence[Result], taken: list[list[bytes | None]], index: SearchIndex) -> str:
    sections = []
    for number, (result, group) in enumerate(zip(results, taken, strict=True), 1):
        title = plain(result.query.title)
        own = html.figure(html.picture(result.picture, "jpeg", "the query"), "the query") if result.picture else ""
        body = f'<div class="asked">{own}</div>' if own else ""
        body += html.paragraph(plain(result.remark), "note") if result.remark else ""
        body += (
            html.grid(
                [_hit(rank, *entry) for rank, entry in enumerate(zip(result.hits, group, strict=True), 1)], "hits"
            )
            if result.hits
            else html.paragraph("Nothing was found.")
        )
        sections.append(html.Section(anchor=f"query-{number}", title=textwrap.shorten(title, 120), body=body))
    measure = (
        "exact"
        if index.graph is None
        else "by an index; its recall@10 when it was built: "
        + ", ".join(f"{share:.3f} by {kind}" for kind, share in index.graph.recall.items())
    )
    return html.page(
        title="Search",
        subtitle=f"{index.path.name}, {len(index):,} rows, output {index.output}, {measure}. Scores are cosines.",
        sections=sections,
        style=_STYLE,
    )


def _hit(rank: int, hit: Hit, picture: bytes | None) -> str:
    labels = findings(hit.columns)
    alt = f"hit {rank}: {labels or words(hit, 60) or plain(hit.id)}"
    shown = html.picture(picture, "jpeg", alt) if picture is not None else html.reason("the picture is missing")
    parts = [f"<p><strong>{rank}.</strong> {hit.score:.3f}</p>"]
    parts += [html.paragraph(labels, "labels")] if labels else []
    parts += [html.paragraph(words(hit, 300))] if words(hit) else []
    parts += [html.paragraph(plain(hit.id), "note")]
    return f'<div class="hit">{shown}{"".join(parts)}</div>'
