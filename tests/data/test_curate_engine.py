"""Curation on its engines: threads, processes, Ray; and what is fetched."""

import hashlib
import importlib.util
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from maskedclip.data import curate_engine
from maskedclip.data.curate_row import RowSettings, Source, curate_row
from maskedclip.data.imaging import decode_mask, encode_png
from maskedclip.errors import UserError
from tests.data.curate_case import SIZE, content_of, curate_small, eye, rows_of


def test_curate__same_bytes_each_time(manifest: Path, tmp_path: Path) -> None:
    assert content_of(curate_small(manifest, tmp_path / "one" / "store").out) == content_of(
        curate_small(manifest, tmp_path / "two" / "store").out
    )


def test_curate__processes_give_the_bytes_of_threads(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = curate_small(manifest, tmp_path / "one" / "store").out
    monkeypatch.setattr(curate_engine, "MANY_CORES", 1)
    monkeypatch.setattr(curate_engine, "MANY_ROWS", 1)
    assert content_of(curate_small(manifest, tmp_path / "two" / "store").out) == content_of(threads)


def test_curate__ray_that_is_not_installed_is_told(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(UserError, match="Ray is not installed: pip install ray"):
        curate_small(manifest, tmp_path / "store", engine="ray")


_RAY = """
import sys
from pathlib import Path
import ray
from maskedclip.data import curate_engine
from maskedclip.data.curate import curate
if __name__ == "__main__":
    curate_engine.RAY_PARTITION, curate_engine.RAY_WINDOW = 2, 8
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    curate(Path(sys.argv[1]), Path(sys.argv[2]), size=64, engine="ray", progress=False)
"""


def test_curate__ray_gives_the_bytes_of_the_local_engine(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (manifest.parent / "images" / "1.png").write_bytes(b"")
    local = curate_small(manifest, tmp_path / "local" / "store").out
    command = [sys.executable, "-c", _RAY, str(manifest), str(tmp_path / "ray" / "store")]
    subprocess.run(command, check=True, timeout=180)
    assert content_of(tmp_path / "ray" / "store") == content_of(local)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_curate__urls_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.png").write_bytes(encode_png(eye(0)))
    (served / "m.png").write_bytes(encode_png(np.full((90, 120), 3, np.uint8)))
    (tmp_path / "b.png").write_bytes(encode_png(eye(1)))
    with _Server(("127.0.0.1", 0), partial(_Handler, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        lines = ["image,mask.m", f"{base}/a.png,{base}/m.png", "b.png,", f"{base}/absent.png,"]
        (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
        made = curate_small(tmp_path / "m.csv", tmp_path / "store")
        server.shutdown()
    rows = rows_of(made.out)
    assert [row["image"]["path"] for row in rows] == [f"{base}/a.png", "b.png"]
    assert decode_mask(rows[0]["mask.m"]["bytes"]).max() == 3
    assert [(entry.row, entry.reason) for entry in made.quarantine] == [
        (4, "could not be fetched (not there, no access, or no answer)")
    ]


def test_curate_row__reads_what_was_fetched() -> None:
    settings = RowSettings(size=SIZE, crop="fundus", encoding="jpeg")
    data = encode_png(eye(0))
    row = curate_row(Source(name="s3://b/a.png", path=None, fetched=data), {}, settings)
    assert row["reason"] is None
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
