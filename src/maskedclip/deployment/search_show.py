"""Results for people and programs: a table on the terminal, JSON, CSV."""

import csv
import datetime
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from maskedclip.deployment.search import Hit, SearchIndex
from maskedclip.deployment.search_query import Result
from maskedclip.html import shorten

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


def plain(value: object) -> str:
    """Any value on one line, without control characters: a report must not steer a terminal."""
    return _CONTROL.sub(" ", str(value)).strip()


def findings(columns: dict[str, Any]) -> str:
    """The labels that are present: `glaucoma, grade 2, sort: wet`."""
    found = []
    for name, value in columns.items():
        if not name.startswith("label.") or value is None or value == "":
            continue
        called = name.removeprefix("label.").replace("_", " ")
        if isinstance(value, str):
            found.append(f"{called}: {plain(value)}")
        elif math.isnan(value) or not value:
            continue
        else:
            found.append(called if value == 1 else f"{called} {value:g}")
    return ", ".join(found)


def words(hit: Hit, length: int = 120) -> str:
    """The report of a row, shortened; "" where it has none."""
    return shorten(plain(hit.columns.get("text") or ""), length)


def print_results(results: Sequence[Result], index: SearchIndex) -> None:
    """One table a query on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    for result in results:
        console.print(Text(plain(result.query.title), style="bold"))
        if result.remark:
            console.print(Text(plain(result.remark)))
        if not result.hits:
            console.print(Text("  nothing was found"))
            continue
        table = Table("", "score", "id", "labels", "text", box=None, pad_edge=False, header_style="dim")
        for column in (0, 1):
            table.columns[column].justify = "right"
            table.columns[column].no_wrap = True
        table.columns[2].overflow = "fold"
        for rank, hit in enumerate(result.hits, 1):
            cells = (str(rank), f"{hit.score:.3f}", plain(hit.id), findings(hit.columns), words(hit))
            table.add_row(*map(Text, cells))
        console.print(table)


def to_json(result: Result, index: SearchIndex) -> str:
    """One line of JSON a query; values that JSON does not know (NaN, dates) as null and text."""
    hits = [
        {
            "rank": rank,
            "score": hit.score,
            "id": hit.id,
            "columns": {name: _simple(value) for name, value in hit.columns.items()},
        }
        for rank, hit in enumerate(result.hits, 1)
    ]
    line = {"query": result.query.to_json(), "output": index.output, "index": index.kind, "hits": hits}
    if result.remark:
        line["remark"] = result.remark
    return json.dumps(line, allow_nan=False)


def to_csv(results: Sequence[Result], index: SearchIndex) -> str:
    """All hits of all queries in one table: query, rank, score, id, then the file's columns."""
    others = [name for name in index.columns if name != "id"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["query", "rank", "score", "id", *others])
    for result in results:
        for rank, hit in enumerate(result.hits, 1):
            values = (_simple(hit.columns[name]) for name in others)
            writer.writerow([result.query.title, rank, f"{hit.score:.9g}", hit.id, *values])
    return buffer.getvalue()


def _simple(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_simple(entry) for entry in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
