"""Pictures without a fundus field, in which nothing may be found."""

from pathlib import Path

import numpy as np
from fields_planted import to_bytes, write_words
from PIL import Image
from scipy import ndimage


def close_up(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    side = round(0.68 * disc.shape[0])
    row, column = (round((disc.shape[axis] - side) * random.uniform(0.4, 0.6)) for axis in (0, 1))
    picture = Image.fromarray(disc[row : row + side, column : column + side])
    return np.asarray(picture.resize((480, int(random.integers(320, 481))), Image.Resampling.BICUBIC))


def radiograph(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two dark lungs in a bright trunk, dark air at the sides, letters in a corner."""
    height, width = 560, int(random.integers(460, 640))
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    trunk = 190.0 * (np.abs(x) < 0.42 + 0.06 * y)
    for side in (-1, 1):
        lung = np.hypot((y + 0.02) / 0.36, (x - side * 0.2) / 0.16)
        trunk -= 120 * (1 / (1 + np.exp((lung - 1) * 18)))
    grain = ndimage.gaussian_filter(random.normal(0, 40, (height, width)), 2) + random.normal(0, 4, (height, width))
    grey = to_bytes(ndimage.gaussian_filter(trunk, 4) + 12 + grain)
    return write_words(np.repeat(grey[:, :, None], 3, axis=2), [(10.0, 10.0, "L")], 30, (255, 255, 255))


def histology(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Purple kernels in pink tissue; in half of the pictures the tissue is an island on white glass."""
    tissue = np.full((512, 512, 3), (228, 160, 196), np.float64)
    tissue += 60 * ndimage.gaussian_filter(random.normal(0, 6, (512, 512)), 6)[:, :, None]
    kernels = ndimage.gaussian_filter(random.random((512, 512)) < 0.004, 3.0, output=float) > 0.01
    tissue[kernels] = (98, 60, 140)
    if random.random() < 0.5:
        island = ndimage.gaussian_filter(random.normal(0, 1, (512, 512)), 45)
        tissue[island < np.quantile(island, 0.45)] = 244
    return to_bytes(tissue + random.normal(0, 5, tissue.shape))


def layers(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A bright, bent band in noise, as an optical coherence tomogram."""
    y, x = np.mgrid[:400, :640]
    middle = 200 + 40 * np.cos((x - random.uniform(200, 440)) / 180)
    grey = 25 + 140 * np.exp(-(((y - middle) / 35) ** 2)) + 60 * np.exp(-(((y - middle - 45) / 8) ** 2))
    return np.repeat(to_bytes(grey * random.gamma(4, 0.25, grey.shape))[:, :, None], 3, axis=2)


def even(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    image = np.broadcast_to(random.integers(0, 256, 3), (300, 400, 3)).astype(np.float64)
    return to_bytes(image + random.normal(0, float(random.choice([0, 3, 30])), image.shape))


def shaded(disc: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A soft spot of light without any edge."""
    y, x = np.mgrid[:400, :500]
    away = np.hypot(y - random.uniform(150, 250), x - random.uniform(200, 300)) / random.uniform(80, 160)
    return to_bytes(np.exp(-(away**2))[:, :, None] * random.uniform(60, 240, 3) + random.normal(2, 1, (400, 500, 3)))


OTHERS = {
    "close-ups": close_up,
    "radiographs (drawn)": radiograph,
    "histology (drawn)": histology,
    "tomograms (drawn)": layers,
    "even colours": even,
    "soft spots of light": shaded,
}


def slices(folder: Path, count: int, seed: int) -> list[np.ndarray]:
    """Slices of real volumes, along all three axes, stretched to 8 bits."""
    import nibabel

    random = np.random.Generator(np.random.Philox(seed))
    paths = sorted(
        path for path in folder.glob("*.nii.gz") if not path.stem.startswith(("ct_head_bone", "mricron_aal"))
    )
    chosen = []
    for path in paths:
        volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        volume = volume[..., 0] if volume.ndim == 4 else volume
        low, high = np.percentile(volume, (1, 99.5))
        for _ in range(-(-count // len(paths))):
            axis = int(random.integers(3))
            cut = np.take(volume, int(volume.shape[axis] * random.uniform(0.25, 0.75)), axis=axis)
            grey = to_bytes(np.rot90((cut - low) / max(1e-6, float(high - low)) * 255))
            chosen.append(np.repeat(grey[:, :, None], 3, axis=2))
    return chosen[:count]
