"""The figures of docs/method.md, from a real run: its losses, and what its two decoders predict of hidden patches.

python benchmarks/method_figures.py demo/run demo/store      # of phantoms; writes docs/images/method_*.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from maskedclip import randomness
from maskedclip.data.store import Store, open_store
from maskedclip.data.transforms import normalise
from maskedclip.evaluation.report_gallery import trained_objective
from maskedclip.evaluation.report_pictures import reconstruct, stored_pixels, varied_rows
from maskedclip.evaluation.report_subject import read_subject
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.distillation import Distillation
from maskedclip.objectives.pretraining import PretrainingObjective

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLOURS = {"clip": "#0072b2", "mim": "#d55e00", "mkd": "#009e73"}
NAMES = {"clip": "contrast, L_clip", "mim": "hidden pixels, L_mim", "mkd": "hidden features, L_mkd"}


def losses(run: Path, out: Path) -> None:
    """The three losses over the optimizer steps, smoothed over 25 of them."""
    steps: dict[str, list[tuple[int, float]]] = {name: [] for name in COLOURS}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "train":
            for name in COLOURS:
                if name in entry:
                    steps[name].append((entry["step"], entry[name]))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), constrained_layout=True)
    for place, name in zip(axes, COLOURS, strict=True):
        x, y = np.asarray(steps[name], np.float64).T
        width = max(1, 25 * len(x) // int(x[-1]))
        place.plot(x, y, color=COLOURS[name], alpha=0.25, linewidth=0.8)
        smooth = np.convolve(y, np.ones(width) / width, "valid")
        place.plot(x[width - 1 :], smooth, color=COLOURS[name], linewidth=1.8)
        place.set_title(NAMES[name], fontsize=10)
        place.set_xlabel("step", fontsize=9)
        place.tick_params(labelsize=8)
        place.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)


@torch.inference_mode()
def predictions(run: Path, store: Store, out: Path) -> None:
    """Rows of pictures: the whole image, what the encoder sees, pixels predicted, and how near the features come."""
    subject = read_subject(run, store, {}, 0)
    objective = trained_objective(subject)
    size = subject.recipe.data.size
    rows = varied_rows(store, store.rows("test"), 4, seed=1)
    image = stored_pixels(store, rows, size)
    keys = torch.from_numpy(randomness.sample_keys(7, 0, rows))
    shown = reconstruct(objective, image, keys)
    near = _nearness(objective, image, keys)
    figure, axes = plt.subplots(len(rows), 4, figsize=(8.4, 2.1 * len(rows)), constrained_layout=True)
    titles = ("whole image", "what the encoder sees", "pixels that h_x predicts", "h_z and g(f(whole)): cosine")
    drawn = None
    for row, places in enumerate(axes):
        for place, picture in zip(places, (shown.original[row], shown.masked[row], shown.painted[row]), strict=False):
            place.imshow(picture)
        drawn = places[3].imshow(near[row], cmap="cividis", vmin=-0.5, vmax=1)
        for place, title in zip(places, titles, strict=True):
            place.set_xticks([])
            place.set_yticks([])
            if row == 0:
                place.set_title(title, fontsize=9)
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=axes[:, 3], shrink=0.6)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(out, dpi=110)
    hidden = near[~np.isnan(near)]
    print(
        f"the same, common part removed: median {np.median(hidden):.2f}, 5th percentile {np.quantile(hidden, 0.05):.2f}"
    )


def _nearness(objective: PretrainingObjective, image: torch.Tensor, keys: torch.Tensor) -> NDArray[np.float64]:
    """Cosine between predicted and target features of hidden patches, NaN at visible ones, (B, h, w).

    The mean of the unit targets over the shown patches is taken from both: what all patches share would make every
    cosine near 1.
    """
    term = objective.terms["mkd"]
    assert isinstance(term, Distillation)
    pixels = normalise(image, objective.mean, objective.std)
    batch = Batch(image=image, keys=keys, num_paired=0)
    views = Views(objective.model, batch, pixels, objective.masker, objective.mask_ratio, progress=1.0)
    predicted = term.decoder(views.masked_tokens, views.mask.restore).float()
    encoder = objective.model.encoder
    target = encoder.patches(objective.model.bridge(encoder(pixels))).float()
    plain = functional.cosine_similarity(predicted, target, dim=-1)[views.mask.is_hidden()]
    print(f"cosine of hidden patches as trained: median {plain.median():.3f}")
    predicted, target = functional.normalize(predicted, dim=-1), functional.normalize(target, dim=-1)
    common = target.mean(dim=(0, 1))
    cosine = functional.cosine_similarity(predicted - common, target - common, dim=-1).masked_fill(
        ~views.mask.is_hidden(), float("nan")
    )
    side = round(cosine.shape[1] ** 0.5)
    return cosine.reshape(-1, side, side).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path)
    args = parser.parse_args()
    losses(args.run, IMAGES / "method_losses.png")
    predictions(args.run, open_store([args.store]), IMAGES / "method_predictions.png")


if __name__ == "__main__":
    main()
