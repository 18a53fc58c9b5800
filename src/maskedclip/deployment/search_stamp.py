"""Files that are made from a Parquet file once and kept beside it, each with a JSON that says which file it belongs to.

Beside the file where that can be written, else in the user's cache folder.  A copy is fresh while size and time of the
file are those of the JSON, or, where the time differs (a copied file), while its sha256 is.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskedclip.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Stamped:
    """One file made from `source`, e.g. `features.projected.usearch` of `features.parquet`."""

    source: Path
    name: str

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        beside = self.source.with_name(f"{self.source.stem}.{self.name}")
        if os.access(self.source.parent, os.W_OK) or self._fits(beside):
            return beside
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = hashlib.sha256(str(self.source.resolve()).encode()).hexdigest()[:16]
        return home / "maskedclip" / "search" / folder / beside.name

    def _fits(self, beside: Path) -> bool:
        """Whether a copy in a folder that cannot be written belongs to the source, by sizes; `facts` looks closer."""
        try:
            facts = json.loads(beside.with_name(beside.name + ".json").read_text())
            return facts["source_bytes"] == self.source.stat().st_size and facts["bytes"] == beside.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def stamp(self) -> Path:
        """The JSON that belongs to it."""
        path = self.path
        return path.with_name(path.name + ".json")

    def facts(self) -> dict[str, Any] | None:
        """What the JSON says, where file and JSON are there and belong to the source as it is now; else None."""
        path = self.path
        try:
            facts = json.loads(self.stamp.read_text())
            state = self.source.stat()
            if not path.is_file() or facts["format"] != FORMAT or facts["bytes"] != path.stat().st_size:
                return None
            if facts["source_bytes"] != state.st_size:
                return None
            if facts["source_modified_ns"] != state.st_mtime_ns:
                if facts["source_sha256"] != sha256(self.source):
                    return None
                with contextlib.suppress(OSError):  # in a folder that cannot be written it is computed each time
                    self._write_stamp({**facts, "source_modified_ns": state.st_mtime_ns})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return facts

    def make(self, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Write the file anew, whole or not at all, and its JSON.

        Args:
            write: fills the path that it is given, and returns what the JSON shall say besides.

        Raises:
            UserError: a file of this name is there that no JSON claims.
            OSError: it cannot be written.
        """
        path = self.path
        if path.exists() and not self.stamp.is_file():
            raise UserError(f"{path}: is there, and was not made by `maskedclip search`; move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        before = self.source.stat()
        digest = sha256(self.source)
        try:
            added = write(partial)
            facts = {
                "format": FORMAT,
                "of": self.source.name,
                "source_bytes": before.st_size,
                "source_modified_ns": before.st_mtime_ns,
                "source_sha256": digest,
                "bytes": partial.stat().st_size,
                **added,
            }
            if self.source.stat().st_mtime_ns != before.st_mtime_ns:
                raise UserError(f"{self.source}: was changed while {path.name} was made; run the command again")
            if (others := self.facts()) is not None:  # another process was faster
                return others
            path.unlink(missing_ok=True)  # first, so that the JSON of the new file never stands beside the old one
            self._write_stamp(facts)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return facts

    def _write_stamp(self, facts: dict[str, Any]) -> None:
        partial = self.stamp.with_name(f"{self.stamp.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(facts, indent=2) + "\n")
            partial.replace(self.stamp)
        finally:
            partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
