"""A curation under way: shard by shard into `OUT.partial`, which becomes the store at the end.

After a crash or a full disk the same command goes on after the last complete shard.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import maskedclip
from maskedclip.data.card import CardData, write_card
from maskedclip.data.curate_engine import Engine, run_engine
from maskedclip.data.curate_row import RowSettings
from maskedclip.data.examples import example_sheet
from maskedclip.data.manifest import Manifest
from maskedclip.data.shards import (
    SCHEMA_VERSION,
    SHARD_ROWS,
    file_digest,
    shard_name,
    store_rows,
    store_schema,
    write_atomically,
    write_shard,
)
from maskedclip.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them

PROGRESS_FILE = "progress.json"
SHOWN_REASONS = 10
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that is not stored: its number in the manifest, its image and a clause that says why."""

    row: int
    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What curation made.

    Attributes:
        out: the store's folder.
        counts: rows, stored, quarantined, paired, unpaired, patients, fields_found, and splits (name -> rows).
        quarantine: the rejected rows, in order.
        reasons: how many rows each reason rejected, most frequent first.
        notes: remarks on how the manifest was read.
        fingerprint: sha256 over the stored ids in order.
        seconds: of this run.
        images_per_second: of this run; a continued run counts only its own images.
    """

    out: Path
    counts: dict[str, Any]
    quarantine: list[Rejected]
    reasons: dict[str, int]
    notes: list[str]
    fingerprint: str
    seconds: float
    images_per_second: float


@dataclass(kw_only=True)
class Work:
    """A curation under way: where it stands is what `progress.json` says, rewritten after each shard."""

    manifest: Manifest
    out: Path
    partial: Path
    settings: RowSettings
    schema: pa.Schema
    guard: str
    next: int = 0  # first row of the manifest that no complete shard covers
    shards: int = 0
    stored: int = 0
    bytes: int = 0
    quarantine: list[Rejected]
    provenance: dict[str, str]

    @classmethod
    def begin(
        cls,
        manifest: Manifest,
        out: Path,
        settings: RowSettings,
        *,
        partial: Path | None = None,
        provenance: dict[str, str] | None = None,
    ) -> Work:
        """Make `OUT.partial`, or another folder, or go on in it if the same command left it."""
        partial = out.with_name(f"{out.name}.partial") if partial is None else partial
        work = cls(
            manifest=manifest,
            out=out,
            partial=partial,
            settings=settings,
            schema=store_schema(manifest.table.schema),
            guard=_guard(manifest, settings),
            quarantine=[],
            provenance=provenance or {},
        )
        try:
            partial.mkdir(parents=True, exist_ok=True)
            work._resume()
        except OSError as error:
            raise UserError(f"{partial}: cannot be written ({error.strerror}): name another --out") from error
        return work

    def _resume(self) -> None:
        path = self.partial / PROGRESS_FILE
        if path.exists():
            state = json.loads(path.read_text())
            if state["guard"] != self.guard:
                raise UserError(
                    f"{self.partial}: was begun with another manifest, settings or version; delete it to start anew"
                )
            self.next, self.shards = state["next"], state["shards"]
            self.stored, self.bytes = state["stored"], state["bytes"]
            self.quarantine = [Rejected(**entry) for entry in state["quarantine"]]
        elif any(self.partial.iterdir()):
            raise UserError(f"{self.partial}: holds files that are not an unfinished store; delete or move it")
        else:
            self._note()

    def _note(self) -> None:
        state = {
            "guard": self.guard,
            "next": self.next,
            "shards": self.shards,
            "stored": self.stored,
            "bytes": self.bytes,
            "quarantine": [asdict(entry) for entry in self.quarantine],
        }
        write_atomically(self.partial / PROGRESS_FILE, json.dumps(state).encode())

    def run(self, engine: Engine, advance: Callable[[int], None]) -> None:
        """Curate what is left; every full shard is written, and noted, before the next one is begun."""
        waiting: list[pa.Table] = []  # good rows that no shard holds yet
        positions: list[int] = []  # their rows in the manifest
        rejected: list[tuple[int, Rejected]] = []
        if self.next == len(self.manifest):
            return
        for first, results in run_engine(self.manifest, self.settings, engine, self.next):
            rows = self.manifest.table.slice(first, len(results))
            good = pc.is_null(results.column("reason"))
            waiting.append(store_rows(rows.filter(good), results.filter(good), self.schema))
            positions += [first + index for index, ok in enumerate(good.to_pylist()) if ok]
            rejected += self._rejected(first, results)
            while len(positions) >= SHARD_ROWS:
                joined = pa.concat_tables(waiting)
                waiting = [joined.slice(SHARD_ROWS)]
                self._write(joined.slice(0, SHARD_ROWS), positions[SHARD_ROWS - 1] + 1, rejected)
                positions = positions[SHARD_ROWS:]
                rejected = [entry for entry in rejected if entry[0] >= self.next]
            advance(len(results))
        if positions:
            self._write(pa.concat_tables(waiting), len(self.manifest), rejected)
        else:
            self.quarantine += [entry for _, entry in rejected]
            self.next = len(self.manifest)
            self._note()

    def _rejected(self, first: int, results: pa.Table) -> Iterator[tuple[int, Rejected]]:
        for index, reason in enumerate(results.column("reason").to_pylist()):
            if reason is not None:
                image = self.manifest.table.column("image")[first + index].as_py()
                row = int(self.manifest.rows[first + index])
                yield first + index, Rejected(row=row, image=image, reason=reason)

    def _write(self, rows: pa.Table, following: int, rejected: list[tuple[int, Rejected]]) -> None:
        self.bytes += write_shard(rows.combine_chunks(), self.partial / shard_name(self.shards))
        self.shards += 1
        self.stored += len(rows)
        self.quarantine += [entry for position, entry in rejected if position < following]
        self.next = following
        self._note()
        needed = self.needed()
        if needed > shutil.disk_usage(self.partial).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def needed(self) -> int:
        """Bytes that the rest will take, judged by the shards written so far."""
        each = self.bytes / self.next if self.next else 0.4 * self.settings.size**2
        return int(each * (len(self.manifest) - self.next))

    def finish(self, *, seconds: float, images_per_second: float) -> Curation:
        """Write what goes beside the shards, and give the folder its name."""
        columns = pq.read_table(
            [self.partial / shard_name(number) for number in range(self.shards)], columns=["id", "field_found"]
        )
        fingerprint = hashlib.sha256("\n".join(columns.column("id").to_pylist()).encode()).hexdigest()
        rejected = {entry.row for entry in self.quarantine}
        kept = self.manifest.table.filter(pa.array([int(row) not in rejected for row in self.manifest.rows]))
        fields_found = int(pc.sum(columns.column("field_found")).as_py())
        counts = count_rows(self.manifest.table, kept, fields_found)
        reasons = dict(Counter(entry.reason for entry in self.quarantine).most_common())
        about = {
            "schema_version": SCHEMA_VERSION,
            "maskedclip": maskedclip.__version__,
            "manifest": self.manifest.path.name,
            "settings": asdict(self.settings),
            "counts": counts,
            "fingerprint": fingerprint,
            **({"provenance": self.provenance} if self.provenance else {}),
            "checksums": {name: file_digest(self.partial / name) for name in map(shard_name, range(self.shards))},
            "seconds": round(seconds, 2),
            "images_per_second": round(images_per_second, 1),
        }
        card = CardData(
            name=self.out.name,
            manifest=self.manifest.path.name,
            version=maskedclip.__version__,
            settings=self.settings,
            counts=counts,
            rows=kept,
            schema=self.schema,
            quarantine=reasons,
            provenance=self.provenance,
            examples=True,
        )
        shards = [self.partial / shard_name(number) for number in range(self.shards)]
        write_atomically(self.partial / "examples.jpg", example_sheet(shards))
        write_atomically(self.partial / "quarantine.csv", quarantine_csv(self.quarantine))
        write_atomically(self.partial / "README.md", write_card(card).encode())
        write_atomically(self.partial / "curation.json", (json.dumps(about, indent=2) + "\n").encode())
        try:
            os.rename(self.partial, self.out)
        except OSError as error:
            raise UserError(f"{self.out}: appeared meanwhile; the finished store is {self.partial}") from error
        (self.out / PROGRESS_FILE).unlink()
        return Curation(
            out=self.out,
            counts=counts,
            quarantine=self.quarantine,
            reasons=reasons,
            notes=self.manifest.notes,
            fingerprint=fingerprint,
            seconds=seconds,
            images_per_second=images_per_second,
        )


def _guard(manifest: Manifest, settings: RowSettings) -> str:
    """A hash of all that an unfinished store depends on."""
    digest = hashlib.sha256(json.dumps([maskedclip.__version__, SCHEMA_VERSION, asdict(settings)]).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, manifest.table.schema) as stream:
        stream.write_table(manifest.table.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def count_rows(given: pa.Table, kept: pa.Table, fields_found: int) -> dict[str, Any]:
    """What `Curation.counts` tells of the rows of a manifest and those of them that are stored."""
    paired = len(kept) - kept.column("text").null_count
    splits = Counter(value for value in kept.column("split").to_pylist() if value is not None)
    return {
        "rows": len(given),
        "stored": len(kept),
        "quarantined": len(given) - len(kept),
        "paired": paired,
        "unpaired": len(kept) - paired,
        "patients": pc.count_distinct(kept.column("patient")).as_py(),
        "fields_found": fields_found,
        "splits": {name: splits[name] for name in ("train", "val", "test") if splits[name]},
    }


def quarantine_csv(rejected: list[Rejected]) -> bytes:
    """The rejected rows as a table: row, image, reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image", "reason"])
    writer.writerows([entry.row, entry.image, entry.reason] for entry in rejected)
    return text.getvalue().encode()


def nothing_stored(manifest: Path, work: Work) -> UserError:
    """Every row was rejected: say why, and leave nothing behind."""
    shutil.rmtree(work.partial)
    reasons = Counter(entry.reason for entry in work.quarantine).most_common()
    told = "; ".join(f"{reason}: {count:,}" for reason, count in reasons[:SHOWN_REASONS])
    more = f"; and {len(reasons) - SHOWN_REASONS} more reasons" if len(reasons) > SHOWN_REASONS else ""
    first = work.quarantine[0]
    return UserError(
        f"{manifest}: none of its {len(work.manifest):,} images can be stored ({told}{more}); "
        f"mend the files, first row {first.row}, {first.image}"
    )


@contextmanager
def disk_full_told(work: Work) -> Iterator[None]:
    """A full disk is told with what is missing; what is complete stays, so that the same command goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free = shutil.disk_usage(work.partial).free
        needed = max(work.needed(), 1_000_000)
        raise UserError(
            f"{work.partial.parent}: not enough disk space: about {needed / 1e6:,.0f} MB are needed, "
            f"{free / 1e6:,.0f} MB are free; make room and give the same command again, it goes on where it stopped"
        ) from error


@contextmanager
def progress_bar(total: int, done: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with the rate and the time left."""
    columns = (
        TextColumn("curate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("curate", total=total, completed=done, rate="")
        begun = time.perf_counter()
        made = 0

        def advance(rows: int) -> None:
            nonlocal made
            made += rows
            bar.update(task, advance=rows, rate=f"{made / (time.perf_counter() - begun):,.0f} images/s")

        yield advance
