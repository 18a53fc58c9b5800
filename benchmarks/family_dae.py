"""DAE on real volumes: what it restores of volumes that it has not seen, and what its features are worth.

    python benchmarks/family_dae.py restore --fold 0 --out OUT      # folds 0, 1, 2 of the nine NIfTI volumes
    python benchmarks/family_dae.py probe --method dae --out OUT    # dae, mae, plain, untrained on AdrenalMNIST3D
    python benchmarks/family_dae.py tell --out OUT                  # the figures, with their intervals

Not part of CI: it reads ../shared/data/volumes and takes minutes.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from maskedclip import randomness
from maskedclip.data.store import Store, open_store
from maskedclip.data.transforms_volume import crop_and_mirror, draw_placement
from maskedclip.data.volume_store import VolumeSettings, curate_volumes
from maskedclip.deployment.model import load
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.corruption import channel_mask
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.targets.disrupted import Disrupted
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import read_newest
from maskedclip.training.pretrain import pretrain

SHARED = Path(__file__).resolve().parents[2] / "shared/data/volumes"
SIZE, CROPS, STEPS, FOLDS = 24, 32, 200, 3
PLAIN = '{"disrupted": {"noise_variance": 0.0, "downsample": 1, "channel_ratio": 0.0, "contrast_weight": 0.0}}'
ALONE = '{"disrupted": {"contrast_weight": 0.0}}'
QUIET = ["--training.validate_every", "0", "--training.tensorboard", "false", "--data.workers", "0"]


def fold_store(out: Path, fold: int) -> Path:
    """The nine volumes with every third one, from `fold` on, held out."""
    folder = out / f"fold{fold}"
    if not folder.is_dir():
        lines = (SHARED / "manifest.csv").read_text().splitlines()
        names = [line.split(",")[0] for line in lines[1:]]
        modality = [line.split(",")[1] for line in lines[1:]]
        table = ["image,patient,split,label.modality"]
        for place, name in enumerate(names):
            split = "test" if place % FOLDS == fold else "train"
            if not (out / name).is_file():
                shutil.copyfile(SHARED / name, out / name)
            table.append(f"{name},{name.removesuffix('.nii.gz')},{split},{modality[place]}")
        manifest = out / f"fold{fold}.csv"
        manifest.write_text("\n".join(table) + "\n")
        curate_volumes(manifest, folder, VolumeSettings(spacing=2.0), progress=False)
    return folder


def trained(recipe: Recipe, store: Path, run: Path) -> PretrainingObjective:
    """The objective of a run with its newest weights; the run is made where it is not there."""
    pretrain(recipe, store, run, resume=True)
    objective = build_objective(recipe, build_model(recipe, [])[0])
    restored, _ = read_newest(run / "checkpoints")
    assert restored is not None
    weights = {
        name.removeprefix("objective/"): value for name, value in restored[0].items() if name.startswith("objective/")
    }
    objective.load_state_dict(weights)
    return objective.eval()


@torch.inference_mode()
def held_out_errors(store: Store, judged: Disrupted, objectives: dict[str, PretrainingObjective]) -> list[dict]:
    """Mean squared error on crops of held-out volumes, disrupted as `judged` disrupts them, against the clean crop."""
    found = []
    names = store.modalities[1]
    for row in store.rows("test").tolist():
        volume = store.image(row)
        keys = randomness.sample_keys(1, row, np.arange(CROPS))
        placed = draw_placement(keys, np.asarray([volume.shape[1:]] * CROPS), SIZE, flip=False)
        clean = crop_and_mirror([volume] * CROPS, placed, SIZE).float()
        own = torch.from_numpy(keys)
        disrupted = judged.disrupt(clean, own)
        coarse = disrupted[..., ::4, ::4, ::4]
        answers = {
            "disrupted input": disrupted,
            "its linear interpolation": functional.interpolate(coarse, size=[SIZE] * 3, mode="trilinear"),
        }
        for name, objective in objectives.items():
            term, encoder = objective.terms["disrupted"], objective.model.encoder
            assert isinstance(term, Disrupted)
            hidden = channel_mask(own, encoder.patch_channels, 0.6, "sample")
            answers[f"{name}, all channels"] = term.restore(encoder, disrupted, None)[0]
            answers[f"{name}, 60 % hidden"] = term.restore(encoder, disrupted, hidden)[0]
        errors = {name: (answer - clean).square().mean(dim=(1, 2, 3, 4)).tolist() for name, answer in answers.items()}
        found.append(
            {
                "volume": str(store.patients[row]),
                "modality": names[int(store.modalities[0][row])],
                "variance": float(clean.var()),
                "errors": errors,
            }
        )
    return found


def restore(out: Path, fold: int) -> None:
    """Train DAE and an autoencoder without disruption on six volumes, and compare them on the other three."""
    store = fold_store(out, fold)
    steps = ["--training.steps", str(STEPS), "--data.size", str(SIZE), "--data.batch_unpaired", "4", *QUIET]
    began = time.monotonic()
    dae = trained(load_recipe(["dae", "volume_tiny"], steps), store, out / f"run-dae-{fold}")
    seconds = time.monotonic() - began
    plain = trained(
        load_recipe(["dae", "volume_tiny"], [*steps, "--objective.terms", PLAIN]), store, out / f"run-plain-{fold}"
    )
    judged = dae.terms["disrupted"]
    assert isinstance(judged, Disrupted)
    found = held_out_errors(open_store(store), judged, {"DAE": dae, "undisrupted": plain})
    (out / f"restore-{fold}.json").write_text(json.dumps({"seconds": seconds, "volumes": found}, indent=1))


def probe(out: Path, method: str, seed: int, size: int = 32) -> None:
    """Pre-train on AdrenalMNIST3D's training volumes and probe its two classes on its test volumes."""
    store = out / "adrenal"
    if not store.is_dir():
        settings = VolumeSettings(cube=size, modality="ct")
        curate_volumes(SHARED / "adrenalmnist3d_64.npz", store, settings, progress=False)
    options = {"patch_size": 8, "depth": 4, "embed_dim": 96, "num_heads": 4}
    common = [
        *("--data.size", str(size), "--data.batch_unpaired", "8", "--seed", str(seed)),
        *("--model.image_encoder_options", json.dumps(options), "--training.steps", "300", *QUIET),
    ]
    terms = {"dae": ALONE, "plain": PLAIN, "untrained": ALONE}
    name = "mae" if method == "mae" else "dae"
    more = [] if method == "mae" else ["--objective.terms", terms[method]]
    if method == "untrained":
        more += ["--training.steps", "0"]
    run = out / f"probe-{method}-{seed}"
    finished = pretrain(load_recipe([name, "volume_tiny"], [*common, *more]), store, run, resume=True)
    opened = open_store(store)
    evaluate(load(finished.run, volumes=True), opened, run / "evaluation", protocols=("linear", "knn"))


def tell(out: Path) -> None:
    """Print the figures; intervals are bootstraps over volumes (restore) or of `evaluate` (probe)."""
    parts = [json.loads(path.read_text()) for path in sorted(out.glob("restore-*.json"))]
    volumes = [entry for part in parts for entry in part["volumes"]]
    if volumes:
        means = {
            name: np.asarray([np.mean(entry["errors"][name]) for entry in volumes]) for name in volumes[0]["errors"]
        }
        random = np.random.default_rng(0)
        draws = random.integers(0, len(volumes), (2000, len(volumes)))
        print(f"{len(volumes)} held-out volumes, {CROPS} crops of {SIZE}^3 each; mean squared error, 95 % interval")
        for name, values in means.items():
            low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
            print(f"{name:28} {values.mean():.4f} ({low:.4f} to {high:.4f})")
        reference = means["DAE, 60 % hidden"]
        for name in (name for name in means if not name.startswith("DAE")):
            low, high = np.percentile((reference - means[name])[draws].mean(axis=1), (2.5, 97.5))
            better = int((reference < means[name]).sum())
            print(
                f"DAE (60 % hidden) minus {name}: {(reference - means[name]).mean():.4f} ({low:.4f} to {high:.4f}), "
                f"lower on {better} of {len(volumes)}"
            )
        for entry in volumes:
            print(
                entry["volume"],
                entry["modality"],
                f"variance {entry['variance']:.3f}",
                {name: round(float(np.mean(values)), 4) for name, values in entry["errors"].items()},
            )
    for path in sorted(out.glob("probe-*/evaluation/results.json")):
        results = json.loads(path.read_text())
        metrics = path.parents[1] / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        rate = json.loads(lines[-1]).get("images_per_second", 0) if lines else 0
        for protocol in ("linear", "knn"):
            macro = results[protocol]["encoder"]["macro"]
            auroc = macro.get("auroc", macro)
            print(path.parents[1].name, protocol, auroc, f"{rate:.0f} volumes/s")


def main() -> None:
    """Run one part."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["restore", "probe", "tell"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--method", choices=["dae", "mae", "plain", "untrained"], default="dae")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "restore":
        restore(args.out, args.fold)
    elif args.part == "probe":
        probe(args.out, args.method, args.seed)
    else:
        tell(args.out)


if __name__ == "__main__":
    main()
