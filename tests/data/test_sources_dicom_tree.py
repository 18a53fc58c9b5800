"""A DICOM tree with reports: headers only, every file that is no picture listed with the reason (P8, P21)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskedclip.data.manifest import ManifestError
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, remarks_of, rows_of

pydicom = pytest.importorskip("pydicom")


def _dicom(path: Path, *, picture: bool = True, **tags: Any) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(f"1.2.{sum(path.name.encode())}")
    dataset.Modality = "CR"
    if picture:
        dataset.Rows = dataset.Columns = 16
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 7, 1, 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        pixels = np.random.Generator(np.random.Philox(len(path.name))).integers(0, 256, 256, np.uint8)
        dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients, three studies, four pictures; a file without suffix; a structured report; a text file."""
    folder = tmp_path / "export"
    a: dict[str, Any] = {"PatientID": "p1", "AccessionNumber": "A1", "StudyInstanceUID": "1.1"}
    _dicom(folder / "s1" / "IM1", WindowCenter=[40, 300], WindowWidth=[400, 1500], ImageLaterality="L", **a)
    _dicom(folder / "s1" / "im2.dcm", **a)
    _dicom(folder / "s2" / "im3.dcm", PatientID="p1", AccessionNumber="A2", StudyInstanceUID="1.2")
    _dicom(folder / "s3" / "im4.dcm", PatientID="p2", AccessionNumber="", StudyInstanceUID="1.3")
    _dicom(folder / "s3" / "report.dcm", picture=False, Modality="SR", PatientID="p2")
    (folder / "readme.txt").write_text("an export")
    (folder / "broken.dcm").write_bytes(b"\x08\0" + b"\xff" * 40)
    return folder


def test_make_manifest__headers(tree: Path, tmp_path: Path) -> None:
    made = make(tree, tmp_path / "m.csv")
    assert made.kind == "dicom"
    rows = rows_of(made.path)
    assert [(row["image"], row["patient"], row["AccessionNumber"], row["StudyInstanceUID"]) for row in rows] == [
        ("export/s1/IM1", "p1", "A1", "1.1"),
        ("export/s1/im2.dcm", "p1", "A1", "1.1"),
        ("export/s2/im3.dcm", "p1", "A2", "1.2"),
        ("export/s3/im4.dcm", "p2", None, "1.3"),
    ]
    assert (rows[0]["WindowCenter"], rows[0]["WindowWidth"], rows[0]["Laterality"]) == ("40", "400", "L")
    remarks = remarks_of(made)
    assert remarks["s3/report.dcm"] == (False, "is a DICOM file without a picture (SR)")
    assert set(remarks) == {"s3/report.dcm", "broken.dcm"}
    assert "passed over 1 files that are not DICOM" in made.notes
    assert curated(made.path).counts["stored"] == 4


@pytest.mark.parametrize(
    ("column", "on"),
    [
        ("AccessionNumber", None),
        ("accession_number", None),
        ("exam", "exam=AccessionNumber"),
        ("Accession", "Accession"),
    ],
)
def test_make_manifest__reports_join(tree: Path, tmp_path: Path, column: str, on: str | None) -> None:
    (tmp_path / "r.csv").write_text(f"{column},report,site\nA1,two views,x\nA2,clear,\nA9,nobody,y\n,blank,z\n")
    made = make(tree, tmp_path / "m.csv", table=tmp_path / "r.csv", text="report", on=on)
    rows = rows_of(made.path)
    assert [row["text"] for row in rows] == ["two views", "two views", "clear", None]
    assert [row["patient"] for row in rows] == ["p1", "p1", "p1", "p2"]
    assert [row["site"] for row in rows] == ["x", "x", None, None]
    remarks = remarks_of(made)
    assert remarks["r.csv row 4: A9"] == (False, "row without an image")
    assert remarks["r.csv row 5"] == (False, "row with an empty column to join on")
    assert remarks["s3/im4.dcm"] == (True, "no row of r.csv describes it: unpaired")
    assert curated(made.path).counts["paired"] == 3


def test_make_manifest__studies_by_uid_and_only_matched(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("StudyInstanceUID,text,patient,label.effusion\n1.3,effusion,pseudonym,1\n")
    made = make(tree, tmp_path / "m.csv", table=tmp_path / "r.csv", only_matched=True)
    (row,) = rows_of(made.path)
    assert (row["image"], row["text"], row["patient"]) == ("export/s3/im4.dcm", "effusion", "pseudonym")
    assert row["label.effusion"] == 1.0
    assert remarks_of(made)["s1/IM1"] == (False, "no row of r.csv describes it")


def test_make_manifest__refusals(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("exam,text\nA7,x\n")
    with pytest.raises(UserError, match="--on COLUMN=AccessionNumber; it has exam, text"):
        make(tree, tmp_path / "m.csv", table=tmp_path / "r.csv")
    with pytest.raises(UserError, match="say which tag the column is"):
        make(tree, tmp_path / "m.csv", table=tmp_path / "r.csv", on="exam")
    with pytest.raises(UserError, match="is the AccessionNumber of a file, such as 'A1'"):
        make(tree, tmp_path / "m.csv", table=tmp_path / "r.csv", on="exam=AccessionNumber")
    (tmp_path / "twice.csv").write_text("AccessionNumber,text\nA1,x\nA2,y\nA1,addendum\n")
    with pytest.raises(ManifestError, match=r"rows 2, 4, column AccessionNumber: 'A1' is in 2 different rows"):
        make(tree, tmp_path / "m.csv", table=tmp_path / "twice.csv")
    assert not (tmp_path / "m.csv").exists()


def test_make_manifest__pydicoms_own_files(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    names = ["CT_small.dcm", "MR_small.dcm", "reportsi.dcm", "no_meta.dcm", "rtplan.dcm", "badVR.dcm"]
    paths = {name: get_testdata_file(name, download=False) for name in names}
    for name, path in paths.items():
        if path is not None:
            (tmp_path / name).write_bytes(Path(str(path)).read_bytes())
    made = make(tmp_path, tmp_path / "m.csv")
    listed = {row["image"] for row in rows_of(made.path)} | set(remarks_of(made))
    assert listed == {name for name, path in paths.items() if path is not None}
    assert {"CT_small.dcm", "MR_small.dcm"} <= {row["image"] for row in rows_of(made.path)}
    assert remarks_of(made)["no_meta.dcm"][1] == "is not DICOM, though it is called so"
    assert remarks_of(made)["reportsi.dcm"][1] == "is a DICOM file without a picture (SR)"
