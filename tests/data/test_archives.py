"""Archives: members by address without unpacking; hostile and broken ones are refused with a reason (P25)."""

import gzip
import io
import os
import random
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskedclip.data import archives
from maskedclip.data.archives import list_members, read_member
from maskedclip.data.curate_row import RowSettings, Source, curate_row
from maskedclip.data.imaging import encode_png
from maskedclip.data.pixels import UndecodableImage
from maskedclip.errors import UserError

FILES = {f"eyes/{place}.png": bytes([place]) * (50 + 7 * place) for place in range(30)}


def _zip(path: Path, files: dict[str, bytes] = FILES, packed: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def _tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _made(folder: Path, name: str, files: dict[str, bytes] = FILES) -> Path:
    return _zip(folder / name, files) if name.endswith(".zip") else _tar(folder / name, files)


KINDS = ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"]


@pytest.mark.parametrize("name", KINDS)
def test_read_member__any_order_gives_every_byte(tmp_path: Path, name: str) -> None:
    path = _made(tmp_path, name)
    names = list(FILES)
    random.Random(0).shuffle(names)
    for member in [*names, *FILES]:
        assert read_member(str(path), member) == FILES[member]


@pytest.mark.parametrize("name", KINDS)
def test_read_member__threads_share_a_handle(tmp_path: Path, name: str) -> None:
    path = _made(tmp_path, name)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda member: read_member(str(path), member), list(FILES) * 10))
    assert found == list(FILES.values()) * 10


def test_read_member__compressed_tar_is_read_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _made(tmp_path, "a.tar.gz")
    rewinds = []
    reader: Any = vars(gzip)["_GzipReader"]
    plain = reader._rewind
    monkeypatch.setattr(reader, "_rewind", lambda self: (rewinds.append(1), plain(self))[1])
    read_member(str(path), "eyes/0.png")
    before = len(rewinds)  # the list was read, and the stream went back once
    assert before == 1
    names = list(FILES)
    for place in range(1, len(names), 2):  # as two threads that take turns
        for member in names[place : place + 2][::-1]:
            read_member(str(path), member)
    assert len(rewinds) == before


def test_read_member__ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "AHEAD_BYTES", 16 * 260)
    path = _made(tmp_path, "a.tar.gz")
    assert read_member(str(path), "eyes/29.png") == FILES["eyes/29.png"]
    kept = archives._opened(str(path))
    assert isinstance(kept, archives._Tar)
    assert 0 < kept._ahead_bytes <= 16 * 260
    assert read_member(str(path), "eyes/1.png") == FILES["eyes/1.png"]


def test_read_member__a_changed_archive_is_opened_anew(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a.png": b"one"})
    assert read_member(str(path), "a.png") == b"one"
    _zip(path, {"a.png": b"another"})
    assert read_member(str(path), "a.png") == b"another"


def test_read_member__few_handles_are_kept(tmp_path: Path) -> None:
    for number in range(archives.KEPT + 5):
        path = _zip(tmp_path / f"{number}.zip", {"a.png": b"x"})
        read_member(str(path), "a.png")
    assert len(archives._kept) <= archives.KEPT


def test_read_member__spellings(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"eyes\\b.png": b"windows", "./c.png": b"dot"})
    assert read_member(str(path), "eyes/b.png") == b"windows"
    assert read_member(str(path), "c.png") == b"dot"
    raw = path.read_bytes()
    assert b"eyes" in raw
    utf8 = _zip(tmp_path / "u.zip", {"aaa.png": b"x"})  # a name in UTF-8 that does not say so, as some programs write
    utf8.write_bytes(utf8.read_bytes().replace(b"aaa.png", "\u00fcb.png".encode()[:3] + b".png"))
    assert read_member(str(utf8), "üb.png") == b"x"


@pytest.mark.parametrize("name", KINDS)
def test_read_member__says_why_not(tmp_path: Path, name: str) -> None:
    path = _made(tmp_path, name)
    with pytest.raises(UndecodableImage, match=r"^is not in the archive$"):
        read_member(str(path), "eyes/99.png")
    with pytest.raises(UndecodableImage, match=r"^is not in the archive$"):
        read_member(str(path), "../../etc/passwd")
    with pytest.raises(UndecodableImage, match="archive inside an archive"):
        read_member(str(path), "inner.zip!a.png")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UndecodableImage, match="archive"):
        read_member(str(path), "eyes/20.png")


def test_read_member__bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _zip(tmp_path / "a.zip", {"a.bmp": bytes(2_000_000), "b.bmp": random.Random(0).randbytes(2_000_000)})
    monkeypatch.setattr(archives, "RATIO_MATTERS", 1_000_000)
    with pytest.raises(UndecodableImage, match="decompression bomb"):
        read_member(str(path), "a.bmp")
    assert len(read_member(str(path), "b.bmp")) == 2_000_000
    monkeypatch.setattr(archives, "MAX_BYTES", 1_000_000)
    with pytest.raises(UndecodableImage, match="too large"):
        read_member(str(path), "b.bmp")
    monkeypatch.setattr(archives, "MAX_LIST_BYTES", 60)
    os.utime(path, (0, 0))
    with pytest.raises(UndecodableImage, match="too many members"):
        read_member(str(path), "b.bmp")
    tar = _tar(tmp_path / "a.tar.gz", {"a.bmp": bytes(2_000_000)})
    with pytest.raises(UndecodableImage, match="decompression bomb"):
        read_member(str(tar), "a.bmp")
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 30)
    monkeypatch.setattr(archives, "RATIO_MATTERS", 4_000_000)
    os.utime(tar, (0, 0))
    assert len(read_member(str(tar), "a.bmp")) == 2_000_000
    many = _tar(tmp_path / "b.tar.gz", {f"{place}.bmp": bytes(500_000) for place in range(10)})
    with pytest.raises(UndecodableImage, match="decompression bomb"):
        read_member(str(many), "0.bmp")


def test_read_member__a_size_that_lies_is_damage(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a.png": b"x" * 1000})
    raw = bytearray(path.read_bytes())
    directory = raw.rfind(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = struct.pack("<I", 10)
    path.write_bytes(raw)
    with pytest.raises(UndecodableImage, match="is damaged in its archive"):
        read_member(str(path), "a.png")


def test_read_member__encrypted_and_unknown_packing(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a.png": b"x" * 1000})
    raw = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.find(mark) + place] |= 1
    path.write_bytes(raw)
    with pytest.raises(UndecodableImage, match=r"^is encrypted: unpack the archive"):
        read_member(str(path), "a.png")
    other = _zip(tmp_path / "b.zip", {"a.png": b"x" * 1000})
    raw = bytearray(other.read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        raw[raw.find(mark) + place] = 99
    other.write_bytes(raw)
    with pytest.raises(UndecodableImage, match="method that cannot be read"):
        read_member(str(other), "a.png")


def test_read_member__links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    for name in ("soft.png", "hard.png"):
        with pytest.raises(UndecodableImage, match=r"^is a link in the archive"):
            read_member(str(path), name)
    with pytest.raises(UndecodableImage, match="device"):
        read_member(str(path), "pipe.png")
    info = zipfile.ZipInfo("soft.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UndecodableImage, match=r"^is a link in the archive"):
        read_member(str(tmp_path / "a.zip"), "soft.png")


def test_list_members__images_only(tmp_path: Path) -> None:
    files = {"b.png": b"", "a/c.JPG": b"", "notes.txt": b"", "__MACOSX/._b.png": b"", ".hidden/d.png": b""}
    assert list_members(_zip(tmp_path / "a.zip", files), (".png", ".jpg")) == ["a.zip!a/c.JPG", "a.zip!b.png"]
    assert list_members(_tar(tmp_path / "a.tar", files), (".png", ".jpg")) == ["a.tar!b.png", "a.tar!a/c.JPG"]


def test_list_members__odd_names_can_be_read_back(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n1.png")
    path = _tar(tmp_path / "a.tar", {odd: b"here"})
    (address,) = list_members(path, (".png",))
    assert address == "a.tar!caf%E9\n1.png"
    assert read_member(str(path), address.split("!", 1)[1]) == b"here"


def test_list_members__says_why_not(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"a.zip: is in a damaged archive"):
        list_members(tmp_path / "a.zip", (".png",))
    with pytest.raises(UserError, match="holds no image files"):
        list_members(_zip(tmp_path / "b.zip", {"a.txt": b""}), (".png",))
    with pytest.raises(UserError, match="cannot be read"):
        list_members(tmp_path / "none.zip", (".png",))


SETTINGS = RowSettings(size=32, crop="none", encoding="png")


def _source(path: Path, name: str) -> Source:
    return Source(name=name, path=str(path / name), fetched=None)


@pytest.mark.parametrize("name", KINDS)
def test_curate_row__a_member_is_as_good_as_a_file(tmp_path: Path, name: str) -> None:
    png = encode_png(np.random.Generator(np.random.Philox(0)).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "a.png").write_bytes(png)
    _made(tmp_path, name, {"x.png": b"other", "in/a.png": png})
    assert curate_row(_source(tmp_path, f"{name}!in/a.png"), {}, SETTINGS) == curate_row(
        _source(tmp_path, "a.png"), {}, SETTINGS
    )


def test_curate_row__why_a_member_cannot_be_read(tmp_path: Path) -> None:
    reason = curate_row(_source(tmp_path, "none.zip!a.png"), {}, SETTINGS)["reason"]
    assert reason == "is in an archive that is missing"
    url = Source(name="https://host/a.zip!a.png", path=None, fetched=None)
    assert curate_row(url, {}, SETTINGS)["reason"] == "is in an archive behind a URL: fetch the archive first"


def test_curate_row__odd_files(tmp_path: Path) -> None:
    png = encode_png(np.full((40, 40, 3), 90, np.uint8))
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png)
    (tmp_path / "new\nline.png").write_bytes(png)
    for name in ("caf%E9.png", "new\nline.png"):
        assert curate_row(_source(tmp_path, name), {}, SETTINGS)["reason"] is None
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dot.png").write_bytes(encode_png(np.full((1, 1, 3), 90, np.uint8)))
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "vast.png", "wb") as file:
        file.truncate(2 << 30)
    reasons = {
        "a": "is a symbolic link that leads in a circle",
        "pipe": "is a pipe or a device, not a file",
        "dot.png": "is 1 x 1 px: too small for a photograph",
        "folder": "is a folder, not an image",
        "vast.png": "is too large for one picture (2.1 GB, the limit is 1.1 GB)",
        "zero\0.png": "is missing",
        "b%41.png": "is missing",
    }
    for name, reason in reasons.items():
        assert curate_row(_source(tmp_path, name), {}, SETTINGS)["reason"] == reason
