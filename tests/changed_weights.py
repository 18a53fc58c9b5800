"""A model folder whose weights somebody changed in place."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def change_weights(folder: Path) -> None:
    """Add noise to every floating tensor of FOLDER/weights.safetensors, as an average of two runs would."""
    draw = np.random.default_rng(0)
    tensors = load_file(folder / "weights.safetensors")
    changed = {
        name: (value + 0.05 * draw.standard_normal(value.shape)).astype(value.dtype)
        if np.issubdtype(value.dtype, np.floating)
        else value
        for name, value in tensors.items()
    }
    save_file(changed, folder / "weights.safetensors")
