"""Windows, archives and frames from the manifest to the store."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from maskedclip.data.curate import curate
from maskedclip.data.store import open_store


def test_curate__windows_archives_and_odd_names(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4000, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(tmp_path / "ramp.png", "folder/ramp.png")
    (tmp_path / "manifest.csv").write_text(
        "image,window_center,window_width\nramp.png,,\nscans.zip!folder/ramp.png,1000,400\n"
    )
    curate(tmp_path / "manifest.csv", tmp_path / "store", size=64, crop="none", encoding="png", progress=False)
    store = open_store(tmp_path / "store")
    whole, windowed = (store.image(row)[0, 32].int().numpy() for row in (0, 1))
    assert (np.diff(whole) >= 0).all()
    assert 110 < whole[32] < 140
    values = ramp[32].astype(float)
    assert (windowed[values < 790] == 0).all()
    assert (windowed[values > 1210] == 255).all()
    middle = int(np.argmin(np.abs(values - 1000)))
    assert abs(int(windowed[middle]) - 127.5) < 25


def test_curate__a_bare_archive_is_the_list_of_its_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for number in range(3):
            path = tmp_path / f"{number}.png"
            Image.fromarray(np.full((32, 32, 3), 40 * number + 30, np.uint8)).save(path)
            archive.write(path, f"eyes/{number}.png")
        archive.writestr("notes.txt", "no image")
    made = curate(tmp_path / "scans.zip", tmp_path / "store", size=32, crop="none", progress=False)
    assert made.counts["stored"] == 3
    store = open_store(tmp_path / "store")
    assert sorted(int(store.image(row).float().mean()) for row in range(3)) == [30, 70, 110]
