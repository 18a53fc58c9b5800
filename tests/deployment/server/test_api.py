"""The interface: answers equal those of the library, errors are plain, nothing of the machine leaks."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from maskedclip.data.store import open_store
from maskedclip.deployment.maps import similarity_maps
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.search import open_index
from maskedclip.deployment.server.served import RememberingModel, Served
from maskedclip.deployment.server.settings import Settings
from tests.deployment.server.case import EYE, LABELS, build_guard, error_of, file, with_own_head
from tests.stores import draw


def test_embed__alone_equals_the_model_to_the_bit(client: TestClient, trained_model: Model) -> None:  # P10
    answer = client.post("/api/v1/embed", files=[file()]).json()
    expected = trained_model.encode_images(EYE)
    assert answer["fingerprint"] == trained_model.fingerprint
    for name in ("encoder", "bridge", "projected"):
        assert np.array_equal(np.asarray(answer["results"][0]["features"][name], np.float32), expected[name][0])


def test_embed__in_a_batch_equals_the_model_to_rounding(client: TestClient, trained_model: Model) -> None:
    eyes = [draw(row, 48, row % 4) for row in range(4)]
    answer = client.post("/api/v1/embed", files=[file(eye) for eye in eyes], data={"output": ["encoder"]}).json()
    for eye, result in zip(eyes, answer["results"], strict=True):
        assert list(result["features"]) == ["encoder"]
        np.testing.assert_allclose(
            result["features"]["encoder"], trained_model.encode_image(eye)[0], rtol=1e-4, atol=1e-6
        )


def test_findings__equal_the_classifier(client: TestClient, served: list[Served]) -> None:
    answer = client.post("/api/v1/findings", files=[file(), file(name="../../second.png")]).json()
    classifier = served[0].classifier
    assert classifier is not None
    expected = classifier.classify(EYE)[0]
    assert answer["model"] == "run"
    assert answer["calibrated"] is False
    assert answer["kind"] == "independent"
    assert [result["photograph"]["name"] for result in answer["results"]] == ["eye.png", "second.png"]
    for result in answer["results"]:
        assert [entry["label"] for entry in result["findings"]] == [entry.label for entry in expected]
        assert [entry["probability"] for entry in result["findings"]] == pytest.approx(
            [entry.probability for entry in expected], rel=1e-4
        )
        assert [entry["found"] for entry in result["findings"]] == [entry.found for entry in expected]
        assert result["abstained"] is False


def test_findings__of_the_second_model(client: TestClient, served: list[Served]) -> None:
    assert [model["name"] for model in client.get("/api/v1/model").json()["models"]] == ["run", "second"]
    answer = client.post("/api/v1/findings", files=[file()], data={"model": "second"}).json()
    classifier = served[1].classifier
    assert classifier is not None
    expected = {entry.label: entry.score for entry in classifier.classify(EYE)[0]}
    assert {entry["label"]: entry["score"] for entry in answer["results"][0]["findings"]} == pytest.approx(expected)
    message = error_of(client.post("/api/v1/findings", files=[file()], data={"model": "third"}), 404, "unknown_model")
    assert "run, second" in message


def test_findings__of_a_head_with_its_own_encoder_that_abstains(served: list[Served]) -> None:
    one = with_own_head(served[0], served[1].model)
    guard = build_guard([one], Settings())
    answer = TestClient(guard, base_url="http://127.0.0.1").post("/api/v1/findings", files=[file()]).json()
    guard.app.state.engine.close()
    assert one.classifier is not None
    expected = {entry.label: entry.probability for entry in one.classifier.classify(EYE)[0]}
    result = answer["results"][0]
    assert answer["calibrated"] is True
    assert result["abstained"] is True
    assert {entry["label"]: entry["probability"] for entry in result["findings"]} == pytest.approx(expected)
    assert not any(entry["certain"] for entry in result["findings"])


def test_encode_text__is_remembered_and_the_same(served: list[Served], trained_run: Path) -> None:
    model, plain = RememberingModel(load(trained_run, device="cpu")), served[0].model
    first = model.encode_text(["drusen", "a red lesion", "drusen"])
    np.testing.assert_allclose(first, plain.encode_text(["drusen", "a red lesion", "drusen"]), atol=1e-6)
    assert np.array_equal(model.encode_text("a red lesion")[0], first[1])
    assert np.array_equal(model.encode_image(EYE, "projected"), plain.encode_image(EYE, "projected"))


def test_map__equals_the_library_and_lies_where_the_model_looked(client: TestClient, trained_model: Model) -> None:
    wide = io.BytesIO()
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[10:30, 20:40] = 200
    Image.fromarray(picture).save(wide, "png")
    found = client.post(
        "/api/v1/map", files=[file(wide.getvalue())], data={"text": "something", "contrast": "false"}
    ).json()
    expected = similarity_maps(trained_model, trained_model.preprocess(wide.getvalue())[None], ["something"])[0, 0]
    np.testing.assert_allclose(found["grid"], expected, rtol=1e-4, atol=1e-6)
    assert found["photograph"]["size"] == {"width": 96, "height": 48}
    assert found["photograph"]["region"] == {"left": 0, "top": -24, "width": 96, "height": 96}
    layer = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"]))))
    assert layer.shape == (48, 96, 4)
    inside = np.clip(1.5 * (expected[1:3] - found["low"]) / (found["high"] - found["low"]), 0, 1) * 255
    drawn = layer[12::24, 12::24, 3]  # beside the centres of the patches that lie in the picture
    np.testing.assert_allclose(drawn, inside, atol=40)
    plain = client.post("/api/v1/map", files=[file()], data={"text": LABELS[0], "draw": "false"}).json()
    assert plain["image"] == ""
    assert plain["contrast"] is True


def test_similar__finds_the_row_itself_with_its_report(
    client: TestClient, trained_store: Path, index_file: Path, trained_model: Model
) -> None:
    store = open_store(trained_store)
    answer = client.post("/api/v1/similar", files=[file(bytes(store.image_bytes(7)))], data={"top": "3"}).json()
    first = answer["cases"][0]
    assert answer["searched"] == 48
    assert len(answer["cases"]) == 3
    assert first["id"] == store.ids[7]
    assert first["score"] == pytest.approx(1)
    assert first["report"] == store.text(7)
    assert set(first["columns"]) == {"label.red", "label.green"}  # the patient is not shown
    assert Image.open(io.BytesIO(base64.b64decode(first["thumbnail"]))).format == "JPEG"
    words = client.get("/api/v1/search", params={"text": "a red lesion", "top": 5}).json()
    expected = open_index(index_file).search(trained_model.encode_text("a red lesion"), 5)[0]
    assert [case["score"] for case in words["cases"]] == pytest.approx([hit.score for hit in expected], rel=1e-4)


def test_similar__filters_by_what_is_shown_only(client: TestClient) -> None:
    form = {"text": "green lesion", "filter": "label.red = 1", "weight": "0.7"}
    answer = client.post("/api/v1/similar", files=[file()], data=form).json()
    assert {case["columns"]["label.red"] for case in answer["cases"]} == {1.0}
    for where in ("patient = 'p3'", "split = 'test'"):  # an answer would tell who is who
        response = client.get("/api/v1/search", params={"text": "x", "filter": where})
        assert "patient" not in error_of(response, 422, "filter").replace("no column `patient`", "")
    for where in ("label.red =", "1=1; drop table", "label.red = 1 or __import__('os')", "(" * 5000):
        error_of(client.get("/api/v1/search", params={"text": "x", "filter": where[:1000]}), 422, "filter")


def test_preview__of_a_dicom_is_a_png(client: TestClient) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = str(get_testdata_file("CT_small.dcm"))
    data = Path(path).read_bytes()
    response = client.post("/api/v1/preview", files=[file(data, "a.jpg")])
    assert response.headers["content-type"] == "image/png"
    dataset = pydicom.dcmread(path)
    assert Image.open(io.BytesIO(response.content)).size == (dataset.Columns, dataset.Rows)
    found = client.post("/api/v1/findings", files=[file(data, "a.jpg")]).json()
    assert found["results"][0]["photograph"]["kind"] == "DICOM"


def test_fields__that_do_not_fit_are_named(client: TestClient) -> None:
    assert "text" in error_of(client.post("/api/v1/map", files=[file()]), 422, "field")
    assert "file" in error_of(client.post("/api/v1/findings", files={"other": b"x"}), 422, "field")
    assert "weight" in error_of(client.post("/api/v1/similar", files=[file()], data={"weight": "nan"}), 422, "field")
    error_of(client.post("/api/v1/map", files=[file()], data={"text": "\x00 \n"}), 422, "text")
    error_of(client.post("/api/v1/embed", files=[file()], data={"output": "bytes"}), 422, "output")
    error_of(client.get("/api/v1/nothing"), 404, "not_found")
    error_of(client.get("/api/v1/findings"), 405, "method")
    error_of(client.post("/api/v1/findings", json={"file": "x"}), 415, "unsupported")
    error_of(
        client.post("/api/v1/findings", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data"}),
        400,
        "bad_form",
    )


def test_page__files_and_nothing_else(client: TestClient) -> None:
    assert b"not a diagnosis" in client.get("/").content
    for name in ("app.js", "style.css", "icon.svg"):
        assert client.get(f"/page/{name}").status_code == 200
    for name in (
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/%2e%2e/model.py",
        "..%5c..%5capp.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "index.html%00.js",
        "__init__.py",
        "",
    ):
        response = client.get(f"/page/{name}")
        assert response.status_code == 404, name
        assert "maskedclip.deployment" not in response.text


def test_headers__forbid_what_a_page_does_not_need(client: TestClient) -> None:
    for path in ("/", "/page/app.js", "/api/v1/model", "/api/v1/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    assert client.options("/api/v1/findings", headers={"Origin": "http://127.0.0.1"}).status_code == 405


def test_page__has_no_foreign_address_and_no_inline_script(client: TestClient) -> None:
    for path in ("/", "/docs", *(f"/page/{name}" for name in ("app.js", "api.js", "style.css", "photograph.js"))):
        text = client.get(path).text.replace("http://127.0.0.1:8000", "").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert " style=" not in text
        assert "<script>" not in text
        assert " onclick=" not in text


def test_openapi__describes_every_address(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    addresses = {path.removeprefix("/api/v1/") for path in described["paths"]}
    assert addresses == {
        *("findings", "map", "similar", "search", "embed", "preview", "model", "health", "ready", "metrics")
    }
    form = described["paths"]["/api/v1/findings"]["post"]["requestBody"]["content"]
    assert set(form) == {"multipart/form-data"}
    assert "429" in described["paths"]["/api/v1/findings"]["post"]["responses"]
    docs = client.get("/docs").text
    for path in described["paths"]:
        assert path in docs


def test_about__tells_what_is_known_and_no_path(client: TestClient, trained_run: Path) -> None:
    response = client.get("/api/v1/model")
    about = response.json()
    card = about["models"][0]
    assert card["outputs"] == {"encoder": 48, "bridge": 48, "projected": 16}
    assert card["labels"] == list(LABELS)
    assert card["trained_on"]["paired_images"] > 0
    assert about["index"] == 48
    assert about["index_model"] == "run"
    assert about["keeps_uploads"] is False
    assert str(trained_run.parent) not in response.text
    assert "p1" not in str(card["trained_on"].values())
