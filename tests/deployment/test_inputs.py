"""Photographs of any origin: the pixels of every other entrance, unique ids, a reason for what is left out."""

import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from maskedclip.data.store import Store, open_store
from maskedclip.deployment.inputs import Inputs, in_threads, open_inputs
from maskedclip.deployment.inputs_dataset import photographs
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from tests.stores import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs below a folder, one file that is none, one hidden."""
    base = tmp_path_factory.mktemp("inputs") / "photographs"
    (base / "deep").mkdir(parents=True)
    (base / "deep" / "a.png").write_bytes(draw(1, 40, 1))
    (base / "b.png").write_bytes(draw(2, 40, 2))
    (base / "broken.jpg").write_bytes(b"a text")
    (base / "notes.txt").write_text("b.png\n")
    (base / ".hidden.png").write_bytes(draw(2, 40, 2))
    return base


def told(inputs: Inputs, model: Model) -> dict[str, str | np.ndarray]:
    """Of each id, its pixels or the reason why there are none."""
    return {
        entry.id: entry.reason if entry.image is None else entry.image.numpy()
        for entry in inputs.prepared(model.preprocessing)
    }


def test_folder__as_preprocess_with_a_reason_for_the_rest(folder: Path, trained_model: Model) -> None:
    inputs = open_inputs(folder)
    assert inputs.ids == ["b.png", "broken.jpg", "deep/a.png"]
    assert any("1 .txt" in note for note in inputs.notes)
    found = told(inputs, trained_model)
    assert found["broken.jpg"] == "is a text file, not an image"
    for name in ("b.png", "deep/a.png"):
        assert np.array_equal(found[name], trained_model.preprocess(folder / name).numpy())


def test_store__as_its_own_features(trained_store: Path, trained_model: Model) -> None:
    inputs, store = open_inputs(trained_store), open_store(trained_store)
    assert inputs.ids == store.ids
    assert inputs.table.column_names == store.table.column_names
    images = torch.stack(
        [entry.image for entry in inputs.prepared(trained_model.preprocessing, range(5)) if entry.image is not None]
    )
    assert np.array_equal(trained_model.encode_image(images), trained_model.features(store, np.arange(5))["encoder"])
    assert inputs.pixels(3).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_manifest__rows_and_columns(folder: Path, trained_model: Model, kind: str) -> None:
    path = folder / f"table.{kind}"
    table = pa.table({"image": ["deep/a.png", "b.png"], "label.red": ["1", None], "camera": ["x", "y"]})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "jsonl":
        path.write_text('{"image": "deep/a.png", "label.red": 1, "camera": "x"}\n{"image": "b.png", "camera": "y"}\n')
    else:
        sign = "\t" if kind == "tsv" else ","
        path.write_text(
            "\n".join(
                sign.join(row)
                for row in [["image", "label.red", "camera"], ["deep/a.png", "1", "x"], ["b.png", "", "y"]]
            )
        )
    inputs = open_inputs(path)
    path.unlink()
    assert inputs.table.to_pydict() == {
        "id": ["deep/a.png", "b.png"],
        "label.red": [1.0, None],
        "camera": ["x", "y"],
    }
    found = told(inputs, trained_model)
    assert np.array_equal(found["b.png"], trained_model.preprocess(folder / "b.png").numpy())


def test_manifest__windows_and_frames_are_curations(tmp_path: Path, trained_model: Model) -> None:
    """A deep grey TIFF of two pages: the second is asked for, through a window."""
    pages = [np.full((40, 40), value, np.uint16) for value in (100, 700)]
    pages[1][:20] = 900
    first, second = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    (tmp_path / "t.csv").write_text("image,window_center,window_width\ntwo.tif#page=2,800,400\n")
    pixels = open_inputs(tmp_path / "t.csv").pixels(0)
    assert set(np.unique(pixels)) == {64, 191}
    assert open_inputs(f"{tmp_path}/two.tif#page=2").pixels(0).max() == 255


def test_manifest__stays_inside_unless_allowed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"image\n{folder}/b.png\n")
    with pytest.raises(UserError, match="--allow-outside"):
        open_inputs(tmp_path / "t.csv")
    assert len(open_inputs(tmp_path / "t.csv", allow_outside=True)) == 1


def test_list__from_its_folder_or_from_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "list.txt").write_text("deep/a.png\r\n\nb.png\nb.png\n")
    inputs = open_inputs(folder / "list.txt")
    (folder / "list.txt").unlink()
    assert inputs.ids == ["deep/a.png", "b.png"]
    assert inputs.notes == ["1 lines repeat an earlier one"]
    monkeypatch.chdir(folder)
    (tmp_path / "list.txt").write_text("b.png\ngone.png\n")
    inputs = open_inputs(tmp_path / "list.txt")
    assert inputs.pixels(0).shape == (40, 40, 3)
    with pytest.raises(ValueError, match="is missing"):
        inputs.pixels(1)
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        open_inputs(tmp_path / "list.txt")


def test_archive__members_without_unpacking(folder: Path, tmp_path: Path, trained_model: Model) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(folder / "b.png", "x/b.png")
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        archive.add(folder / "b.png", "b.png")
    expected = trained_model.preprocess(folder / "b.png").numpy()
    for given, name in ((f"{tmp_path}/s.zip", "s.zip!x/b.png"), (f"{tmp_path}/s.tar.gz", "s.tar.gz!b.png")):
        found = told(open_inputs(given), trained_model)
        assert list(found) == [name]
        assert np.array_equal(found[name], expected)
    assert np.array_equal(open_inputs(f"{tmp_path}/s.zip!x/b.png").pixels(0), open_inputs(folder / "b.png").pixels(0))


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    """The folder behind a URL on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_manifest__urls_are_fetched(served: str, tmp_path: Path, folder: Path, trained_model: Model) -> None:
    (tmp_path / "t.csv").write_text(f"image\n{served}/b.png\n{served}/none.png\n")
    found = told(open_inputs(tmp_path / "t.csv"), trained_model)
    assert np.array_equal(found[f"{served}/b.png"], trained_model.preprocess(folder / "b.png").numpy())
    assert str(found[f"{served}/none.png"]).startswith("could not be fetched")


def test_refused__what_is_not_there(tmp_path: Path) -> None:
    for given in ("none", "none.zip!a.png"):
        with pytest.raises(UserError, match="no such store"):
            open_inputs(tmp_path / given)
    (tmp_path / "small.png").write_bytes(draw(1, 4, 0))
    with pytest.raises(ValueError, match="too small"):
        open_inputs(tmp_path / "small.png").pixels(0)


def test_store__a_damaged_row_is_told(
    trained_store: Path, trained_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Store.image_bytes
    monkeypatch.setattr(Store, "image_bytes", lambda self, row: b"junk" if row == 1 else original(self, row))
    found = list(open_inputs(trained_store).prepared(trained_model.preprocessing, range(3)))
    assert [entry.reason for entry in found] == ["", "is damaged in its store", ""]


def test_fingerprint__changes_with_files_and_columns(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(draw(1, 40, 1))
    before = open_inputs(tmp_path / "p").fingerprint
    assert open_inputs(tmp_path / "p").fingerprint == before
    (tmp_path / "p" / "a.png").write_bytes(draw(1, 48, 2))
    changed = open_inputs(tmp_path / "p").fingerprint
    (tmp_path / "p" / "b.png").write_bytes(draw(1, 40, 1))
    assert len({before, changed, open_inputs(tmp_path / "p").fingerprint}) == 3


def test_in_threads__order_holds_and_faults_come_through() -> None:
    assert list(in_threads(lambda value: value * 2, range(300), ahead=7)) == list(range(0, 600, 2))

    def fail(value: int) -> int:
        if value == 5:
            raise KeyError(value)
        return value

    with pytest.raises(KeyError):
        list(in_threads(fail, range(10)))
    stopped = in_threads(lambda value: value, range(10**9))
    assert next(stopped) == 0
    stopped.close()


def test_photographs__in_a_data_loader_without_weights(folder: Path, trained_model: Model) -> None:
    paths = [folder / "deep" / "a.png", folder / "b.png"]
    dataset = photographs(paths, trained_model)
    assert len(pickle.dumps(dataset)) < 5_000
    (batch,) = DataLoader(dataset, batch_size=2, num_workers=1)
    expected = torch.stack([trained_model.preprocess(path) for path in paths])
    assert torch.equal(batch, expected)
    assert torch.equal(dataset[-1], expected[1])
    with pytest.raises(IndexError):
        dataset[2]
    with pytest.raises(UserError, match=r"broken\.jpg: is a text file"):
        photographs([folder / "broken.jpg"], trained_model)[0]
    with pytest.raises(UserError, match="at least one"):
        photographs([], trained_model)
    assert photographs(folder, trained_model).inputs.ids[0] == "b.png"


def test_photographs__of_a_store_reopen_in_a_worker(trained_store: Path, trained_model: Model) -> None:
    copy = pickle.loads(pickle.dumps(photographs(trained_store, trained_model)))
    assert torch.equal(copy[4], photographs(trained_store, trained_model)[4])


def test_list__as_windows_saves_it(folder: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()][:2]
    listing = folder / "listing.txt"
    listing.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())
    assert open_inputs(listing).ids == names
    listing.unlink()
