"""Splits by patient that adding rows does not move and whose label rates are alike."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.data.audit.split import make_splits
from maskedclip.data.audit.split_file import split_manifest
from maskedclip.data.manifest import read_manifest
from maskedclip.errors import UserError


def _table(patients: int, seed: int = 0, split: list[str | None] | None = None) -> pa.Table:
    random = np.random.Generator(np.random.Philox(seed))
    rows = 2 * patients
    rare, common = random.random(patients) < 0.04, random.random(patients) < 0.4
    return pa.table(
        {
            "image": [f"{row}.png" for row in range(rows)],
            "patient": [f"p{row // 2}" for row in range(rows)],
            "split": pa.array(split or [None] * rows, pa.string()),
            "label.rare": pa.array(np.repeat(rare, 2).astype(np.float32)),
            "label.common": pa.array(np.repeat(common, 2).astype(np.float32)),
        }
    )


def _by_patient(table: pa.Table, names: np.ndarray) -> dict[str, str]:
    return dict(zip(table.column("patient").to_pylist(), names.tolist(), strict=True))


def test_make_splits__label_rates_are_alike() -> None:
    made = make_splits(_table(1000), val=0.1, test=0.2, seed=0)
    assert made.patients == {"train": 700, "val": 100, "test": 200}
    for entry in made.rates:
        shares = list(entry.shares.values())
        assert max(shares) - min(shares) < 0.012, entry


@given(st.integers(0, 1000), st.integers(3, 60), st.integers(1, 40))
def test_make_splits__adding_rows_never_moves_a_patient(seed: int, before: int, added: int) -> None:  # P24
    first = make_splits(_table(before), val=0.2, test=0.2, seed=seed)
    grown = _table(before + added, seed=1, split=[*first.names.tolist(), *[None] * (2 * added)])
    second = make_splits(grown, val=0.2, test=0.2, seed=seed)
    assert second.names[: 2 * before].tolist() == first.names.tolist()
    assert second.kept == before
    assert (second.names != "").all()


def test_make_splits__independent_of_all_other_rows() -> None:
    small, large = _table(200), _table(500, seed=7).slice(150)
    one, two = (make_splits(table, val=0.1, test=0.2, seed=3, independent=True) for table in (small, large))
    first, second = _by_patient(small, one.names), _by_patient(large, two.names)
    shared = first.keys() & second.keys()
    assert len(shared) == 125
    assert all(first[name] == second[name] for name in shared)
    assert len(set(first.values())) == 3


def test_make_splits__by_seed_not_by_order() -> None:
    table = _table(100)
    turned = table.take(pa.array(np.arange(len(table))[::-1]))
    first = make_splits(table, val=0.1, test=0.2, seed=0)
    assert _by_patient(table, first.names) == _by_patient(turned, make_splits(turned, val=0.1, test=0.2, seed=0).names)
    assert first.names.tolist() != make_splits(table, val=0.1, test=0.2, seed=1).names.tolist()


def test_make_splits__patients_stay_whole_and_rows_without_one_are_their_own() -> None:
    table = _table(50)
    made = make_splits(table, val=0.2, test=0.2, seed=0)
    assert all(len(set(pair)) == 1 for pair in made.names.reshape(-1, 2).tolist())
    alone = table.set_column(1, "patient", pa.array([None] * len(table), pa.string()))
    assert sum(make_splits(alone, val=0.2, test=0.2, seed=0).patients.values()) == len(table)


def test_make_splits__says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="leave some patients for training"):
        make_splits(_table(5), val=0.5, test=0.5, seed=0)
    table = _table(1, split=["train", "test"])
    with pytest.raises(UserError, match="put all its rows into one split"):
        make_splits(table, val=0.1, test=0.1, seed=0)


def _write(path: Path, patients: int) -> Path:
    lines = [f"{row}.png,p{row // 2},{int(row // 2 % 5 == 0)}" for row in range(2 * patients)]
    path.write_text("\n".join(["image,patient,label.dr", *lines]) + "\n")
    return path


def test_split_manifest__keeps_an_earlier_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    split_manifest(_write(tmp_path / "m.csv", 40), first, val=0.1, test=0.2, seed=0)
    grown = _write(tmp_path / "grown.csv", 70)
    made = split_manifest(grown, second, val=0.1, test=0.2, seed=0, keep=first)
    assert made.kept == 40
    old, new = (read_manifest(path).table.column("split").to_pylist() for path in (first, second))
    assert new[:80] == old
    assert set(new) == {"train", "val", "test"}


def test_split_manifest__writes_beside_and_never_over(tmp_path: Path) -> None:
    manifest = _write(tmp_path / "m.csv", 5)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="paths start at the manifest's folder"):
        split_manifest(manifest, tmp_path / "other" / "n.csv", val=0.1, test=0.2, seed=0)
    with pytest.raises(UserError, match="is there already"):
        split_manifest(manifest, manifest, val=0.1, test=0.2, seed=0)
    with pytest.raises(UserError, match="no splits to keep"):
        split_manifest(manifest, tmp_path / "n.csv", val=0.1, test=0.2, seed=0, keep=manifest)
    assert not (tmp_path / "n.csv").exists()
