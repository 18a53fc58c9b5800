"""One photograph has one feature, wherever it enters: probe, Python, `embed`, scikit-learn, an export, the server."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient

from maskedclip.data.store import open_store
from maskedclip.deployment.embed import embed
from maskedclip.deployment.estimator import ImageEncoder
from maskedclip.deployment.export import Wanted, export
from maskedclip.deployment.exported import open_exported
from maskedclip.deployment.model import Model
from maskedclip.evaluation.feature_cache import CachedFeatures
from tests.cli_case import status

ROWS = 6


def test_feature__is_the_same_at_every_entrance(
    trained_run: Path, trained_store: Path, trained_model: Model, client: TestClient, tmp_path: Path
) -> None:  # P10, P13
    pytest.importorskip("onnxruntime")
    store = open_store(trained_store)
    rows = np.arange(ROWS)
    stored = [bytes(store.image_bytes(int(row))) for row in rows]
    for row, data in enumerate(stored):
        (tmp_path / f"{row}.png").write_bytes(data)

    probe = CachedFeatures(trained_model, store, tmp_path / "cache").features(store, rows)
    found = {name: {"python": values} for name, values in trained_model.encode_images(stored).items()}
    for source, name in ((trained_store, "store"), (tmp_path, "folder")):
        embed(trained_model, source, tmp_path / f"{name}.parquet")
        table = pq.read_table(tmp_path / f"{name}.parquet").slice(0, ROWS)
        for output in found:
            found[output][f"embed a {name}"] = np.asarray(table.column(output).to_pylist(), np.float32)
    for output in found:
        found[output]["scikit-learn"] = ImageEncoder(trained_run, output=output).fit_transform(stored)
    for kind in ("onnx", "torch"):
        export(trained_run, tmp_path / kind, Wanted(format=kind, check=trained_store))
        exported = open_exported(tmp_path / kind).encode_images(torch.stack([*map(trained_model.preprocess, stored)]))
        for output, values in exported.items():
            found[output][kind] = values
    answers = [client.post("/api/v1/embed", files=[("file", ("eye.png", data, "image/png"))]) for data in stored]
    for output in found:
        features = [answer.json()["results"][0]["features"][output] for answer in answers]
        found[output]["server"] = np.asarray(features, np.float32)

    assert set(found) == set(probe) == {"encoder", "bridge", "projected"}
    for output, entrances in found.items():
        for entrance, values in entrances.items():
            expected = probe[output]
            limit = 1e-4 * np.abs(expected).max()
            assert np.abs(values - expected).max() <= limit, f"{output} by {entrance}"


def test_classify__gives_the_probabilities_of_the_server(
    trained_run: Path, client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_store: Path
) -> None:
    store = open_store(trained_store)
    (tmp_path / "eye.png").write_bytes(bytes(store.image_bytes(0)))
    answer = client.post("/api/v1/findings", files=[("file", ("eye.png", bytes(store.image_bytes(0)), "image/png"))])
    served = {entry["label"]: entry["probability"] for entry in answer.json()["results"][0]["findings"]}
    labels = ",".join(served)
    assert status("classify", trained_run, tmp_path / "eye.png", "--labels", labels, "--findings", "--json") == 0
    told = json.loads(capsys.readouterr().out)["probabilities"]
    assert told == pytest.approx(served, rel=1e-4)
