"""Signs of collapse are measured as defined, and told."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.saving import Preprocessing
from maskedclip.recipe import load_recipe
from maskedclip.training.monitor import Monitor, collapse_message, effective_rank
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from tests.ranks import run_two_ranks
from tests.stores import TINY, make_store

VALIDATION, TEST = 8, 10
"""The first rows of these splits."""


def _damage(folder: Path, rows: Iterable[int]) -> Path:
    """Spoil the pictures of some rows of a store."""
    start = 0
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        images = table.column("image").to_pylist()
        for row in rows:
            if start <= row < start + len(images):
                images[row - start]["bytes"] = b"rubbish"
        images = pa.array(images, table.schema.field("image").type)
        pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", images), shard)
        start += len(images)
    return folder


def _monitor(folder: Path) -> Monitor:
    preprocessing = Preprocessing(crop="none", stored_size=32, size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Monitor(open_store(folder), load_recipe(["tiny"], TINY), preprocessing)


def test_effective_rank__of_known_spectra() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(400, 8)))[0]
    basis -= basis.mean(axis=0)
    values = np.linalg.svd(basis, compute_uv=False)
    share = values / values.sum()
    assert effective_rank(basis) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert effective_rank(random.normal(size=(5000, 16))) == pytest.approx(16, abs=0.1)
    line = random.normal(size=(100, 1)) @ random.normal(size=(1, 16))
    assert effective_rank(line + 3.0) == pytest.approx(1, abs=1e-3)


def test_collapse_message__is_told_only_when_features_are_constant() -> None:  # P26
    assert collapse_message({"target_spread": 0.4, "target_rank": 9.0}) is None
    for figures in ({"target_spread": 0.01, "target_rank": 9.0}, {"target_spread": 0.4, "target_rank": 1.1}):
        message = collapse_message(figures)
        assert message is not None
        assert "collapsed" in message
        assert "objective.mkd_weight" in message


def test_monitor__leaves_out_what_cannot_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _monitor(make_store(tmp_path / "whole"))
    assert "decoded" not in capsys.readouterr().err
    found = _monitor(_damage(make_store(tmp_path / "s"), [0, VALIDATION, TEST]))
    assert found.validation.tolist() == [row for row in whole.validation.tolist() if row != VALIDATION]
    assert found.train.tolist() == [row for row in whole.train.tolist() if row != 0]
    assert len(found.rows) == len(found.splits) == len(whole.rows) - 2
    assert "online probes leave out rows that cannot be decoded: 2; curate" in capsys.readouterr().err
    with pytest.raises(UserError, match="no row that the online probes would read can be decoded"):
        _monitor(_damage(make_store(tmp_path / "none"), range(48)))


def test_pretrain__validates_where_an_image_is_damaged(tmp_path: Path) -> None:
    folder, options = _damage(make_store(tmp_path / "s"), [VALIDATION]), ["--training.validate_every", "3"]
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *options]), folder, tmp_path / "one")
    said = run_two_ranks(folder, tmp_path / "two", *options)
    assert said.count("online probes leave out rows that cannot be decoded: 1") == 1
    for run in ("one", "two"):
        lines = [entry for entry in RunDirectory(tmp_path / run).read_metrics() if entry["kind"] == "validation"]
        assert [entry["step"] for entry in lines] == [0, 3, 6]
        assert all("probe_auroc" in entry for entry in lines)
