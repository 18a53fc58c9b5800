"""`maskedclip manifest`: kinds said aloud, faults at once with status 2, and nothing overwritten."""

from pathlib import Path

import numpy as np
import pytest

from maskedclip.cli_manifest import KINDS
from maskedclip.data.manifest import read_manifest
from maskedclip.data.sources.make import SOURCES
from tests.cli_case import refused, status
from tests.data.sources_given import put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "eyes", "glaucoma/p1_l.png", "glaucoma/p2_l.png", "normal/p3_l.png")
    return tmp_path / "eyes"


def test_kinds__are_those_of_the_sources() -> None:
    assert set(KINDS) == set(SOURCES)


def test_manifest__says_what_it_took_the_source_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "caf\udce9").mkdir()
    (folder / "caf\udce9" / "x.png").write_bytes(b"x")
    out = folder / "manifest.csv"
    assert status("manifest", folder, "--out", out, "--patient", r"^(p\d)", "--texts-from-labels") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("kind: classes, class folders (ImageFolder, RETFound) (detected")
    assert "left out: 1 x its path is not UTF-8: rename it, such as 'caf\\\\xe9/x.png'" in said
    assert f"all 1 remarks are in {folder / 'manifest_remarks.csv'}" in said
    assert f"3 rows in {out}" in said
    assert "label.class: glaucoma 2, normal 1" in said
    assert said[-1] == f"next: maskedclip curate {out} --out STORE"
    table = read_manifest(out).table
    assert table.column("patient").to_pylist() == ["p1", "p2", "p3"]
    assert table.column("text").null_count == 0
    assert status("manifest", out, "--check") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no faults; next: maskedclip curate")
    assert "exists already" in refused(capsys, "manifest", folder, "--out", out)


def test_manifest__the_users_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, prompts, second = folder / "a.csv", folder / "prompts.yaml", folder / "b.csv"
    assert status("manifest", folder, "--out", first, "--write-prompts", prompts) == 0
    assert f"2 entries of labels, with their sentences, in {prompts}" in capsys.readouterr().out
    prompts.write_text("glaucoma: [a wide cup]\n")
    assert status("manifest", first, "--out", second, "--texts-from-labels", prompts) == 0
    assert read_manifest(second).table.column("text").to_pylist() == ["a wide cup", "a wide cup", None]
    assert "no entry for normal" in capsys.readouterr().out
    assert "exists already" in refused(capsys, "manifest", first, "--write-prompts", prompts)
    assert "exists already" in refused(
        capsys, "manifest", folder, "--out", folder / "c.csv", "--write-prompts", prompts
    )
    assert not (folder / "c.csv").exists()
    assert status("manifest", first, "--write-prompts", folder / "again.yaml") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"next: edit {folder / 'again.yaml'}")


def test_manifest__joins_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = folder / "reports.csv"
    table.write_text("image_id,report,a,b\np1_l,wide cup,1,0\np9_l,x,1,0\n")
    options = ("--table", table, "--on", "image_id", "--text", "report", "--label", "a", "b")
    assert status("manifest", folder, "--out", folder / "m.csv", *options) == 0
    said = capsys.readouterr().out
    assert "'image_id' is the image's name without suffix" in said
    assert "left out: 1 x row without an image, such as 'reports.csv row 3: p9_l'" in said
    assert read_manifest(folder / "m.csv").table.column("label.a").to_pylist() == [1.0, None, None]


def test_manifest__faults_of_what_was_written_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "train/a/p1_l.png", "test/a/p1_r.png", "test/b/p2_r.png")
    assert "(leakage)" in _whole(capsys, tmp_path, "--out", tmp_path / "m.csv", "--patient", r"p\d")
    assert (tmp_path / "m.csv").exists()
    assert "(leakage)" in _whole(capsys, tmp_path / "m.csv", "--check")


def _whole(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert status("manifest", *arguments) == 2
    return capsys.readouterr().err


def test_manifest__check_tells_all_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("image,split,label.dr\na.png,trian,1\nb.png,val,one\n,test,2\n")
    told = _whole(capsys, tmp_path / "m.csv", "--check")
    assert "3 faults in 3 rows" in told
    assert all(
        part in told for part in ("'trian' is none of train", "'one' is a word", "row 4, column image: is empty")
    )


def test_manifest__refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out manifest.csv to list it, or --check" in refused(capsys, "manifest", folder)
    assert "writes nothing" in refused(capsys, "manifest", folder, "--check", "--out", "x.csv")
    assert "ask for 1 or more" in refused(capsys, "manifest", folder, "--out", folder / "x.csv", "--slices", "-1")
    assert "can't be read" in refused(
        capsys, "manifest", folder, "--out", folder / "x.csv", "--texts-from-labels", "none.yaml"
    )
    np.savez(tmp_path / "v.npz", train_images=np.zeros((1, 4, 9, 9), np.uint8))
    assert "--slices 1" in refused(capsys, "manifest", tmp_path / "v.npz", "--out", tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.shared
def test_manifest__real_photographs_and_their_table(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odir = shared / "data" / "odir"
    options = ("--table", odir / "manifest.csv", "--on", "image", "--allow-outside")
    assert status("manifest", odir / "images", "--out", tmp_path / "m.csv", *options) == 0
    assert "rows: 5,117, 5,117 with text" in capsys.readouterr().out
    mine = read_manifest(tmp_path / "m.csv", allow_outside=True).table
    given = read_manifest(odir / "manifest.csv").table
    assert sorted(mine.column("text").to_pylist()) == sorted(given.column("text").to_pylist())
    paired = dict(zip(given.column("image").to_pylist(), given.column("text").to_pylist(), strict=True))
    places = [Path(image).relative_to(odir.resolve()).as_posix() for image in mine.column("image").to_pylist()]
    assert [paired[place] for place in places] == mine.column("text").to_pylist()
