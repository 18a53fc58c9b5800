"""Volumes for tests: a body, written as NIfTI and as a DICOM series."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

nibabel: Any = pytest.importorskip("nibabel")
SHAPE = (10, 12, 14)


def body() -> np.ndarray:
    """A body in RAS: 100 inside, with a mark of 300 at the patient's right, of 500 in front and of 700 at the head."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:8, 2:10, 2:12] = 100
    voxels[8, 5, 6], voxels[5, 10, 6], voxels[5, 5, 12] = 300, 500, 700
    return voxels


def write_nifti(path: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(
        body() if voxels is None else voxels, np.diag([2.0, 1, 3, 1]) if affine is None else affine
    )
    path.write_bytes(gzip.compress(image.to_bytes()) if path.suffix == ".gz" else image.to_bytes())
    return path


def write_series(
    folder: Path, *, gap: float = 3.0, drop: int | None = None, rename: bool = True, **elements: Any
) -> Path:
    """The body as an axial series, in files whose names tell no order."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SHAPE[2]):
        if index == drop:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{index}"
        dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.PatientID = "1.9", 4, "p7"
        dataset.InstanceNumber = index + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]  # rows to the left, columns to the back
        dataset.ImagePositionPatient = [-9 * 2.0, -11 * 1.0, index * gap]
        dataset.PixelSpacing, dataset.SliceThickness = [1.0, 2.0], 9.0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -24
        pixels = body()[::-1, ::-1, index].T + 24  # (rows, columns): from the front, from the right
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / f"{(index * 5) % 14}.dcm", enforce_file_format=True)
    return folder
