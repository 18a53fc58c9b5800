"""Small stores of phantom volumes: a body in air, as CT and as MRI, half of them with a bright ball inside."""

from pathlib import Path

import numpy as np

from maskedclip.data.volume_store import curate_volumes
from tests.data.volumes_given import write_nifti

VOLUME_TINY = [
    *("--data.size", "16", "--data.batch_unpaired", "6", "--data.workers", "0"),
    *("--model.image_encoder_options", '{"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3}'),
    *("--model.image_decoder_width", "24", "--model.image_decoder_heads", "2"),
    *("--training.steps", "6", "--training.checkpoint_every", "2", "--training.log_every", "1"),
    *("--training.validate_every", "0", "--training.tensorboard", "false"),
]
"""Overrides of `volume_tiny` that make a step take milliseconds."""


def draw_volume(number: int, size: int, modality: str, *, ball: bool) -> np.ndarray:
    """A body: Hounsfield units for `ct`, arbitrary units with zeros outside for the others, int16."""
    random = np.random.Generator(np.random.Philox(key=np.asarray([number, 11], np.uint64)))
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    centre, radii = random.uniform(-0.1, 0.1, 3), random.uniform(0.6, 0.85, 3)
    away = (((places - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(axis=0)
    wave = np.sin(places * random.uniform(3, 6, 3)[:, None, None, None]).sum(axis=0)
    outside, body, bright, shell = (-1000, 40, 500, 800) if modality == "ct" else (0, 300, 800, 120)
    volume = np.where(away < 1, body + 60 * wave, outside)
    volume[(away > 0.8) & (away < 1)] = shell
    if ball:
        place = random.uniform(-0.3, 0.3, 3)
        volume[((places - place[:, None, None, None]) ** 2).sum(axis=0) < 0.06] = bright
    return volume.astype(np.int16)


def make_volume_store(folder: Path, *, rows: int = 16, size: int = 20, text: bool = False) -> Path:
    """A store of volumes, one a patient, of the modalities ct and t1; label.ball; a quarter test, a quarter val."""
    given = folder.with_name(folder.name + ".given")
    given.mkdir(parents=True)
    lines = ["image,patient,split,label.ball,modality,text"]
    for number in range(rows):
        modality, ball = ("ct", "t1")[number % 2], number // 2 % 2 == 1
        write_nifti(given / f"v{number}.nii.gz", draw_volume(number, size, modality, ball=ball))
        split = ("train", "train", "val", "test")[number // 4 % 4]
        said = ("A ball." if ball else "No ball.") if text and number % 3 else ""
        lines.append(f"v{number}.nii.gz,p{number},{split},{int(ball)},{modality},{said}")
    (given / "manifest.csv").write_text("\n".join(lines) + "\n")
    curate_volumes(given / "manifest.csv", folder, progress=False)
    return folder
