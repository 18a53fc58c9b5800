"""A few hundred damaged files of every kind: a small run of benchmarks/fuzz.py, in a process with a limit on memory."""

from pathlib import Path

import pytest
from benchmarks.fuzz import SECONDS, all_seeds, damaged, read, run


@pytest.mark.parametrize("kind", ["image", "dicom", "archive", "volume", "manifest"])
def test_seeds__are_sound(kind: str, tmp_path: Path) -> None:
    seeds = all_seeds()[kind]
    if kind in ("image", "archive", "manifest"):
        assert len(seeds) >= 4
    for seed in seeds:
        if kind != "dicom":  # of pydicom's files, test_formats_pydicom tells which have no picture
            assert read(seed, tmp_path) == "read", seed.name


def test_damaged__is_a_function_of_number_and_seed() -> None:
    assert damaged(11) == damaged(11)
    assert len({damaged(number).data for number in range(40)}) == 40
    assert damaged(11, seed=1).data != damaged(11).data


def test_read__damaged_files_give_a_picture_or_a_reason() -> None:
    found = run(list(range(600)), seed=20)
    assert found["faults"] == []
    assert found["files"] == 600
    assert sum(found["refused"].values()) > 300
    assert sum(found["read"].values()) > 60
    assert found["slowest"][0] < SECONDS
