"""Text files that are whole or absent, whatever ends the process that writes them."""

import uuid
from pathlib import Path

PARTIAL = ".partial-"
"""Names of files begin with this until they are whole."""


def write_whole(path: Path, text: str) -> None:
    """Write `path` at once; processes that do so at the same time, also on several machines, don't mix."""
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid.uuid4().hex}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
