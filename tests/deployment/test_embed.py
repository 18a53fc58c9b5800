"""Features in one file: the model's own numbers, the same bits after a kill and from several processes."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from maskedclip.data.store import open_store
from maskedclip.deployment.embed import embed
from maskedclip.deployment.embed_outputs import Encode
from maskedclip.deployment.embed_parts import Parts, feature_array, rows_a_part
from maskedclip.deployment.external import open_model
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from tests.cli_case import refused, status
from tests.stores import draw, make_store


def values(table: pa.Table, name: str) -> np.ndarray:
    """A column of features as an array."""
    return np.asarray(table.column(name).to_pylist(), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs, the third of which cannot be read."""
    base = tmp_path_factory.mktemp("embed") / "photographs"
    base.mkdir()
    for row in range(5):
        (base / f"{row}.png").write_bytes(draw(row, 40, row % 4) if row != 2 else b"no image")
    return base


def test_store__bits_columns_and_metadata(trained_store: Path, trained_model: Model, tmp_path: Path) -> None:
    done = embed(trained_model, trained_store, tmp_path / "f.parquet")
    table, store = pq.read_table(tmp_path / "f.parquet"), open_store(trained_store)
    assert (done.rows, done.rejected, done.outputs) == (48, [], ("encoder", "bridge", "projected"))
    expected = trained_model.features(store, np.arange(48))
    for name in done.outputs:
        assert np.array_equal(values(table, name), expected[name])
        assert pa.types.is_fixed_size_list(table.schema.field(name).type)
    assert table.select(store.table.column_names).equals(store.table)
    metadata = table.schema.metadata
    assert metadata[b"maskedclip.model"].decode() == trained_model.fingerprint
    assert metadata[b"maskedclip.source"].decode() == str(trained_store.absolute())
    assert json.loads(metadata[b"maskedclip.settings"])["precision"] == "float32"
    assert not (tmp_path / "f.parquet.partial").exists()
    assert not (tmp_path / "f.rejected.csv").exists()


def test_folder__bits_and_what_was_left_out(folder: Path, trained_model: Model, tmp_path: Path) -> None:
    done = embed(trained_model, folder, tmp_path / "f.parquet", batch=2)
    table = pq.read_table(tmp_path / "f.parquet")
    good = [f"{row}.png" for row in (0, 1, 3, 4)]
    assert table.column("id").to_pylist() == good
    expected = trained_model.encode_image([folder / name for name in good])
    assert np.allclose(values(table, "encoder"), expected, atol=1e-6)
    assert [(entry.id, entry.reason) for entry in done.rejected] == [("2.png", "is a text file, not an image")]
    assert (tmp_path / "f.rejected.csv").read_text() == 'file,reason\n2.png,"is a text file, not an image"\n'


def test_outputs__tokens_float16_and_bf16(trained_store: Path, trained_model: Model, tmp_path: Path) -> None:
    tokens = ("patches", "bridge_patches", "projected")
    embed(trained_model, trained_store, tmp_path / "t.parquet", outputs=tokens)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names[-3:] == list(tokens)
    patches = values(table, "patches")
    assert patches.shape == (48, 16, 48)
    features = trained_model.features(open_store(trained_store), np.arange(48))
    assert np.allclose(patches.mean(axis=1), features["encoder"], atol=1e-5)
    assert np.allclose(values(table, "bridge_patches").mean(axis=1), features["bridge"], atol=1e-5)
    assert np.array_equal(values(table, "projected"), features["projected"])
    embed(trained_model, trained_store, tmp_path / "h.parquet", dtype="float16", outputs=["encoder"])
    half = pq.read_table(tmp_path / "h.parquet")
    assert half.schema.field("encoder").type == pa.list_(pa.float16(), 48)
    assert "bridge" not in half.column_names
    assert np.array_equal(values(half, "encoder"), features["encoder"].astype(np.float16).astype(np.float32))
    embed(trained_model, trained_store, tmp_path / "b.parquet", precision="bf16-mixed")
    mixed = values(pq.read_table(tmp_path / "b.parquet"), "encoder")
    assert not np.array_equal(mixed, features["encoder"])
    cosine = (mixed * features["encoder"]).sum(1) / np.linalg.norm(mixed, axis=1)
    assert (cosine / np.linalg.norm(features["encoder"], axis=1) > 0.999).all()
    assert np.array_equal(
        trained_model.features(open_store(trained_store), np.arange(48))["encoder"], features["encoder"]
    )


@pytest.mark.parametrize("output", ["encoder", "bridge", "projected"])
def test_encode__equal_to_the_bit_whichever_others_are_asked_for(trained_model: Model, output: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), np.uint8))
    expected = trained_model.encode_images(images)[output]
    for outputs in ([output], [output, "patches"], ["encoder", "bridge", "projected"]):
        assert np.array_equal(Encode(trained_model, outputs)(images)[output], expected)


def test_read__with_polars_and_duckdb(trained_store: Path, trained_model: Model, tmp_path: Path) -> None:
    """Ids, metadata columns and vectors as others read them; Embedding Atlas takes its tables from DuckDB."""
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    expected = trained_model.features(open_store(trained_store), np.arange(48))["encoder"]
    for dtype in ("float32", "float16"):
        path = tmp_path / f"{dtype}.parquet"
        embed(trained_model, trained_store, path, dtype=dtype, outputs=["encoder", "patches"])
        frame = polars.read_parquet(path)
        assert frame["id"].n_unique() == 48
        assert np.allclose(np.asarray(frame["encoder"].to_list(), np.float32), expected, atol=2e-3)
        assert np.asarray(frame["patches"].to_list(), np.float32).shape == (48, 16, 48)
        found = duckdb.sql(f"select id, encoder, patches from '{path}' where \"label.red\" = 1").fetchall()
        wanted = np.flatnonzero(open_store(trained_store).labels["red"] == 1)
        assert np.allclose(np.asarray([row[1] for row in found], np.float32), expected[wanted], atol=2e-3)
        assert np.asarray(found[0][2]).shape == (16, 48)
        lengths = duckdb.sql(f"select distinct len(encoder) from '{path}'").fetchall()
        assert lengths == [(48,)]


def test_names__a_column_with_an_outputs_name_makes_room(folder: Path, trained_model: Model, tmp_path: Path) -> None:
    (folder / "t.csv").write_text("image,encoder,id\n0.png,mine,7\n")
    embed(trained_model, folder / "t.csv", tmp_path / "f.parquet")
    (folder / "t.csv").unlink()
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["id", "data.encoder", "manifest.id", "encoder", "bridge", "projected"]


def test_spec__an_encoder_that_is_no_run(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from safetensors.torch import save_file
    from timm import create_model

    vit = create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:vit_tiny_patch16_224={tmp_path}/w.safetensors"
    assert status("embed", spec, "--data", folder, "--out", tmp_path / "f.parquet", "--size", 32, "--crop", "none") == 0
    table = pq.read_table(tmp_path / "f.parquet")
    model = open_model(spec, size=32, crop="none")
    assert isinstance(model, Model)
    good = [folder / name for name in table.column("id").to_pylist()]
    assert np.array_equal(values(table, "encoder"), model.encode_image(good))
    with pytest.raises(UserError, match="none of this model's outputs"):
        embed(model, folder, tmp_path / "g.parquet", outputs=["projected"])


def _forked(work: Callable[[], int]) -> int:
    """A process of its own, without the ten seconds of imports that a new one takes; its number."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return child


def _ended(child: int, seconds: float) -> int:
    """The exit status of a process, which is ended if it takes too long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskedclip.deployment.embed_parts.PART_ROWS", 8)


def test_resume__after_a_kill_the_file_is_the_undisturbed_one(
    trained_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed (-9) amid its fourth part; finished parts are not made again."""
    _small_parts(monkeypatch)
    store, out = make_store(tmp_path / "store", rows=60), tmp_path / "f.parquet"
    half = tmp_path / "f.parquet.partial" / ".part-000003.parquet.tmp"
    write = Parts.write

    def stop(self: Parts, part: int, *rest: Any) -> None:
        if part == 3:
            half.write_bytes(b"half a part")
            time.sleep(1000)
        write(self, part, *rest)

    def embed_and_stop() -> int:
        Parts.write = stop  # type: ignore[method-assign]
        embed(trained_model, store, out, batch=4)
        return 0

    child = _forked(embed_and_stop)
    ends = time.monotonic() + 60
    while not half.is_file() and time.monotonic() < ends:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert half.is_file()
    assert not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in half.parent.glob("part-*.parquet")}
    assert len(before) == 3
    made: list[int] = []
    monkeypatch.setattr(Parts, "write", lambda self, part, *rest: (made.append(part), write(self, part, *rest))[1])
    embed(trained_model, store, out, batch=4)
    assert made == [3, 4, 5, 6, 7]
    embed(trained_model, store, tmp_path / "undisturbed.parquet", batch=4)
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert pq.read_metadata(out).num_row_groups == 8


def test_resume__refuses_what_was_begun_otherwise(
    folder: Path, trained_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.parquet"

    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "join", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(trained_model, folder, out)
    with pytest.raises(UserError, match=r"begun with other --outputs and another --dtype; give that command"):
        embed(trained_model, folder, out, outputs=["encoder"], dtype="float16")
    with pytest.raises(UserError, match="another model"):
        embed(trained_model.at_size(64), folder, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(UserError, match="other data"):
        embed(trained_model, other, out)
    with (tmp_path / "f.parquet.partial" / ".claim").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing it"):
            embed(trained_model, folder, out)
    assert embed(trained_model, folder, out).rows == 4
    (tmp_path / "g.parquet.partial").mkdir()
    (tmp_path / "g.parquet.partial" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is no unfinished embedding"):
        embed(trained_model, folder, tmp_path / "g.parquet")
    (tmp_path / "h.rejected.csv").write_text("mine")
    with pytest.raises(UserError, match=r"h\.rejected\.csv: exists"):
        embed(trained_model, folder, tmp_path / "h.parquet")


def test_ranks__two_write_what_one_writes(
    trained_run: Path,
    trained_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As torchrun starts them, with an unreadable photograph; only the first rank speaks."""
    _small_parts(monkeypatch)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for row in range(37):
        (photographs / f"{row:02d}.png").write_bytes(draw(row, 32, row % 4) if row != 11 else b"no image")
    command = ["embed", trained_run, "--data", photographs, "--out", tmp_path / "two.parquet", "--batch", "4"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank_of_two(rank: int) -> int:
        os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
            os.dup2(os.open(tmp_path / f"{name}{rank}", os.O_CREAT | os.O_WRONLY), stream.fileno())
        return status(*command)

    with capsys.disabled():
        ranks = [_forked(partial(rank_of_two, rank)) for rank in range(2)]
        ended = [_ended(rank, 120) for rank in ranks]
    said = {name: (tmp_path / name).read_text() for name in ("out0", "err0", "out1", "err1")}
    assert ended == [0, 0], said
    assert said["out0"].startswith("36 photographs in")
    assert said["err0"].count("left out: 11.png") == 1
    assert said["out1"] == ""
    assert "left out" not in said["err1"]
    embed(trained_model, photographs, tmp_path / "one.parquet", batch=4)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_command__says_what_is_wrong(
    folder: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--data", folder, "--out", tmp_path / "f.parquet")
    assert status("embed", trained_run, *place, "--outputs", "projected", "--dtype", "float16") == 0
    assert "next: maskedclip search" in capsys.readouterr().out
    assert "exists" in refused(capsys, "embed", trained_run, *place)
    place = ("--data", folder, "--out", tmp_path / "g.parquet")
    assert "none of this model's outputs" in refused(capsys, "embed", trained_run, *place, "--outputs", "pooled")
    assert "--batch: 0" in refused(capsys, "embed", trained_run, *place, "--batch", "0")
    assert "no multiple" in refused(capsys, "embed", trained_run, *place, "--size", "33")
    assert "no such model" in refused(capsys, "embed", tmp_path / "none", *place)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jpg").write_bytes(b"\xff\xd8\xff")
    line = refused(capsys, "embed", trained_run, "--data", bad, "--out", tmp_path / "g.parquet")
    assert "none of its 1 files can be read as an image (is a truncated JPEG: 1)" in line
    assert not any(path.name.startswith("g.") for path in tmp_path.iterdir())


def test_parts__whole_batches_and_bounded_bytes() -> None:
    assert rows_a_part(64, 4_096) == 512
    assert rows_a_part(100, 4_096) == 500
    assert rows_a_part(64, 1 << 20) == 64
    assert rows_a_part(700, 4_096) == 700
    with pytest.raises(UserError, match="cannot hold"):
        feature_array(np.asarray([[1e5]], np.float32), "float16")
