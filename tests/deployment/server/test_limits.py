"""What a server refuses: strangers, floods, bombs; and what it forgets."""

import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from maskedclip.deployment.model import load
from maskedclip.deployment.server.guard import Guard
from maskedclip.deployment.server.served import RememberingModel, Served
from maskedclip.deployment.server.settings import Settings, read_key, read_pixels, read_size
from maskedclip.errors import UserError
from tests.deployment.server.case import EYE, build_guard, error_of, file

KEY = "0123456789abcdef0123"


@contextmanager
def serving(served: list[Served], settings: Settings) -> Iterator[tuple[TestClient, Guard]]:
    guard = build_guard(served[:1], settings)
    try:
        yield TestClient(guard, base_url="http://127.0.0.1", raise_server_exceptions=False), guard
    finally:
        guard.app.state.engine.close()


@contextmanager
def stuck(guard: Guard) -> Iterator[threading.Event]:
    """The model's thread waits until the block ends."""
    kinds = guard.app.state.engine.queue._kinds
    original, began, go_on = kinds["features:run"], threading.Event(), threading.Event()

    def wait(items: Any) -> Any:
        began.set()
        go_on.wait(20)
        return original(items)

    kinds["features:run"] = wait
    try:
        yield began
    finally:
        go_on.set()
        kinds["features:run"] = original


def metric(client: TestClient, line: str) -> float:
    found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_texts__missing_is_told(trained_run: Path, served: list[Served], index_file: Path) -> None:
    model = RememberingModel(load(trained_run, device="cpu"))
    model.tokenizer = None
    mute = replace(served[0], model=model, classifier=None, card=served[0].card.model_copy(update={"labels": []}))
    with serving([mute], Settings()) as (client, _):
        for path, form in (("findings", {}), ("map", {"text": "x"})):
            error_of(client.post(f"/api/v1/{path}", files=[file()], data=form), 409, "unavailable")
        assert client.post("/api/v1/embed", files=[file()], data={"output": "encoder"}).status_code == 200
        error_of(client.get("/api/v1/search", params={"text": "x"}), 409, "unavailable")  # no index, too
        assert client.get("/api/v1/model").json()["index"] is None


def test_key__is_asked_for_everything_but_page_and_health(served: list[Served]) -> None:
    with serving(served, Settings(api_key=KEY)) as (client, _):
        for path in ("/", "/docs", "/page/app.js", "/health", "/ready", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in ("/api/v1/model", "/metrics", "/api/v1/metrics"):
            error_of(client.get(path), 401, "key")
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "ä" * 20}):
            encoded = {name: value.encode("utf-8") for name, value in headers.items()}
            error_of(client.post("/api/v1/findings", files=[file()], headers=encoded), 401, "key")  # type: ignore[arg-type]
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert client.post("/api/v1/findings", files=[file()], headers=headers).status_code == 200


def test_host__and_origin_of_strangers_are_refused(client: TestClient) -> None:
    error_of(client.get("/", headers={"Host": "evil.example"}), 421, "unknown_host")
    error_of(client.get("/api/v1/model", headers={"Origin": "http://evil.example"}), 403, "foreign_origin")
    error_of(client.post("/api/v1/findings", files=[file()], headers={"Origin": "null"}), 403, "foreign_origin")
    for host in ("localhost:8000", "127.0.0.1", "10.1.2.3:80", "[::1]:8000"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    settings = Settings(host="0.0.0.0", allowed_hosts=("eyes.hospital.example",))
    assert settings.knows_host("Eyes.Hospital.example:443")
    assert not settings.knows_host("hospital.example")
    assert not settings.knows_host(None)
    assert not settings.is_local
    error_of(client.get("/api/v1/model", headers={"Origin": "http://["}), 403, "foreign_origin")


def test_bytes__too_many_are_refused(client: TestClient) -> None:
    before = metric(client, 'maskedclip_rejected_uploads_total{reason="bytes"}')
    assert "1 MB" in error_of(client.post("/api/v1/findings", files=[file(bytes((1 << 20) + 1))]), 413, "too_large")
    error_of(client.post("/api/v1/findings", files=[file(bytes(900_000))] * 4 + [file()]), 400, "bad_form")
    error_of(client.post("/api/v1/map", files=[file()], data={"text": "x" * 9000}), 400, "bad_form")
    error_of(client.post("/api/v1/map", files=[file()], data={"text": "x" * 600}), 422, "field")
    assert metric(client, 'maskedclip_rejected_uploads_total{reason="bytes"}') == before + 1
    assert metric(client, "maskedclip_upload_bytes") == 0


def test_pixels__too_many_are_refused_before_they_are_decoded(client: TestClient) -> None:
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    tiff = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tiff, "tiff")
    huge = bytearray(tiff.getvalue())
    for tag in (256, 257):  # width and height say 60,000
        place = (
            huge.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in huge
            else huge.index(struct.pack("<HH", tag, 3))
        )
        huge[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b","
    gif += struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0\x02\x02L\x01\0;"
    bmp = bytearray(io.BytesIO().getvalue())
    picture = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(picture, "bmp")
    bmp = bytearray(picture.getvalue())
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    began = time.monotonic()
    for bomb in (png(60_000, 60_000), png(1001, 1000), bytes(huge), gif, bytes(bmp)):
        error_of(client.post("/api/v1/findings", files=[file(bomb)]), 413, "too_large")
    assert time.monotonic() - began < 5
    whole = np.zeros((1000, 1000, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(whole).save(picture, "png")
    assert client.post("/api/v1/findings", files=[file(picture.getvalue())]).status_code == 200


def test_dicom__bombs_are_refused(client: TestClient) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate

    def written(dataset: Any) -> bytes:
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()

    plain = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    plain.Rows = plain.Columns = 60_000
    error_of(client.post("/api/v1/findings", files=[file(written(plain))]), 413, "too_large")
    # a small frame, by its own header; the code stream inside asks for 60,000 x 60,000
    inside = pydicom.dcmread(get_testdata_file("JPEG2000.dcm"))
    frame = bytearray(next(pydicom.encaps.generate_frames(inside.PixelData, number_of_frames=1)))
    struct.pack_into(">II", frame, 8, 60_000, 60_000)
    inside.PixelData = encapsulate([bytes(frame)])
    assert "larger than the file says" in error_of(
        client.post("/api/v1/findings", files=[file(written(inside))]), 413, "too_large"
    )
    # the same behind a box, which a decoder skips; and a JPEG with a fill byte before its first marker
    boxed = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(frame)
    filled = b"\xff\xd8\xff\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08" + struct.pack(">HH", 60_000, 60_000) + bytes(5)
    for hidden in (boxed, filled):
        inside.PixelData = encapsulate([hidden])
        assert "larger than the file says" in error_of(
            client.post("/api/v1/findings", files=[file(written(inside))]), 413, "too_large"
        )
    inside.PixelData = encapsulate([b"\0" * 64])
    assert "does not tell its size" in error_of(
        client.post("/api/v1/findings", files=[file(written(inside))]), 422, "unreadable"
    )
    # a file that is deflated as a whole and unpacks to a thousand times its size
    deflated = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated.add_new(0x00091001, "OB", bytes(40 << 20))
    data = written(deflated)
    assert len(data) < 1 << 20
    assert "unpacks" in error_of(client.post("/api/v1/findings", files=[file(data)]), 413, "too_large")


def test_tiff__of_many_channels_is_refused_before_it_is_decoded(client: TestClient) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((64, 64, 60), np.uint8), compression="zlib", planarconfig="contig")
    said = error_of(client.post("/api/v1/findings", files=[file(buffer.getvalue())]), 422, "unreadable")
    assert "60 channels" in said


def test_kept__bombs_are_not_unpacked_for_keeping(served: list[Served], tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    deflated = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated.add_new(0x00091001, "OB", bytes(40 << 20))
    buffer = io.BytesIO()
    deflated.save_as(buffer)
    with serving(served, Settings(keep_uploads=tmp_path, max_bytes=1 << 20)) as (client, _):
        error_of(client.post("/api/v1/findings", files=[file(buffer.getvalue())]), 413, "too_large")
    assert not list(tmp_path.iterdir())


def test_content__decides_and_not_the_name(client: TestClient) -> None:
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(EYE)).convert("RGB").save(jpeg, "jpeg")
    answer = client.post("/api/v1/findings", files=[file(jpeg.getvalue(), "a.dcm")])
    assert answer.json()["results"][0]["photograph"]["kind"] == "JPEG"
    for data, said in (
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"", "empty"),
        (b"<!doctype html><script>", "web page"),
        (EYE[: len(EYE) // 2], "PNG"),
        (b"hello", "text file"),
        (bytes(500), "zeros"),
    ):
        assert said in error_of(client.post("/api/v1/findings", files=[file(data, "a.png")]), 422, "unreadable")


def test_name__of_the_client_is_made_harmless(client: TestClient) -> None:
    for name, shown in (("../../etc/passwd", "passwd"), ("C:\\eyes\\a.png", "a.png"), ("a\u202eb.png", "ab.png")):
        answer = client.post("/api/v1/findings", files=[file(name=name)])
        assert answer.json()["results"][0]["photograph"]["name"] == shown


def test_queue__full_says_when_to_come_again(served: list[Served]) -> None:
    with serving(served, Settings(queue=2, batch=1)) as (client, guard), ThreadPoolExecutor(2) as threads:
        with stuck(guard) as began:
            waiting = threads.submit(client.post, "/api/v1/findings", files=[file(), file()])
            assert began.wait(10)
            response = client.post("/api/v1/findings", files=[file()])
            error_of(response, 429, "busy")
            assert int(response.headers["retry-after"]) >= 1
            assert metric(client, "maskedclip_queue_photographs") == 2
            assert client.get("/health").status_code == 200
        assert waiting.result().status_code == 200
        assert metric(client, "maskedclip_queue_photographs") == 0
        assert metric(client, 'maskedclip_rejected_uploads_total{reason="busy"}') == 1
        assert client.post("/api/v1/findings", files=[file()]).status_code == 200
        error_of(client.post("/api/v1/findings", files=[file()] * 3), 429, "busy")


def test_timeout__ends_a_request_and_not_the_server(served: list[Served]) -> None:
    with serving(served, Settings(timeout=0.4)) as (client, guard):
        with stuck(guard):
            began = time.monotonic()
            error_of(client.post("/api/v1/findings", files=[file()]), 504, "timeout")
            assert time.monotonic() - began < 5
            while client.get("/ready").status_code == 200 and time.monotonic() - began < 5:
                time.sleep(0.05)
            error_of(client.get("/ready"), 503, "not_ready")
        time.sleep(0.1)
        assert client.post("/api/v1/findings", files=[file()]).status_code == 200
        assert client.get("/ready").status_code == 200


def test_uploads__are_forgotten_unless_asked(served: list[Served], tmp_path: Path) -> None:
    with serving(served, Settings(keep_uploads=tmp_path)) as (client, _):
        assert client.get("/api/v1/model").json()["keeps_uploads"] is True
        assert client.post("/api/v1/findings", files=[file(name="../patient-name.png")]).status_code == 200
        assert client.post("/api/v1/findings", files=[file(b"no picture")]).status_code == 422
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == EYE
    assert kept.suffix == ".png"
    assert len(kept.stem) == 32
    assert "patient" not in kept.name
    assert kept.stat().st_mode & 0o077 == 0


def test_uploads__leave_no_file_anywhere(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    opened: list[Any] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **k: opened.append(a) or io.BytesIO())
    large = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)).save(large, "png")
    assert client.post("/api/v1/findings", files=[file(large.getvalue())]).status_code == 200
    assert not list(tmp_path.rglob("*"))
    assert not opened


def test_metrics__count_by_template_and_not_by_address(client: TestClient) -> None:
    client.get("/api/v1/search", params={"text": "secret words"})
    client.get("/page/secret-name")
    text = client.get("/metrics").text
    assert "secret" not in text
    assert 'maskedclip_requests_total{method="GET",route="/api/v1/search",status="200"}' in text
    assert 'maskedclip_batch_size_bucket{kind="features",le="1.0"}' in text
    assert "maskedclip_request_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text


def test_fault__of_ours_tells_nothing(client: TestClient, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("/root/secret/path is broken")

    monkeypatch.setitem(guard.app.state.engine.queue._kinds, "features:run", broken)
    response = client.post("/api/v1/findings", files=[file()])
    assert "secret" not in error_of(response, 500, "fault")
    assert response.headers["x-content-type-options"] == "nosniff"
    monkeypatch.undo()
    assert client.post("/api/v1/findings", files=[file()]).status_code == 200


def test_settings__are_checked(tmp_path: Path) -> None:
    assert read_size("32M") == 32 << 20
    assert read_size("1.5k") == 1536
    assert read_pixels("100M") == 100_000_000
    for read in (read_size, read_pixels):
        with pytest.raises(ValueError, match="no "):
            read("many")
    for wrong in ({"queue": 0}, {"timeout": 0}, {"port": 70_000}, {"timeout": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            replace(Settings(), **wrong)
    assert KEY not in repr(Settings(api_key=KEY))
    for content in ("", "short", "two words-that-are-long-enough here", "ä" * 20):
        (tmp_path / "key").write_text(content)
        with pytest.raises(UserError, match="key"):
            read_key(tmp_path / "key")
    with pytest.raises(UserError, match="no such file"):
        read_key(tmp_path / "none")
    (tmp_path / "key").write_text(KEY + "\n")
    assert read_key(tmp_path / "key") == KEY
