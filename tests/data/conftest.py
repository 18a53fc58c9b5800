"""Shared by the tests of curation."""

from pathlib import Path

import numpy as np
import pytest

from maskedclip.data.imaging import encode_png
from tests.data.curate_case import eye


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve images of six patients, every third without text, two with masks."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = ["image,text,patient,split,label.dr,label.kind,mask.disc,eye"]
    for index in range(12):
        (folder / "images" / f"{index}.png").write_bytes(encode_png(eye(index)))
        text = "" if index % 3 == 2 else ["normal fundus", "drusen"][index % 2]
        split = ["train", "val", "test"][(index // 2) % 3]
        mask = ""
        if index < 2:
            mask = f"disc{index}.png"
            disc = np.zeros((90, 120), np.uint8)
            disc[40:50, 55:65] = 255
            (folder / mask).write_bytes(encode_png(disc))
        kind = "" if index == 3 else "a"
        lines.append(f"images/{index}.png,{text},p{index // 2},{split},{index % 5},{kind},{mask},left")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"
