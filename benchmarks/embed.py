"""`embed` on a folder of photographs, against the loop that a timm user writes: PIL DataLoader, float32, same weights.

    python benchmarks/embed.py PHOTOGRAPHS WEIGHTS.safetensors [--size 112] [--rows 512] [--rounds 5]

PHOTOGRAPHS is a folder; its first files by name are read.  Both give one pooled feature a photograph; `embed` also
finds the fundus field of each, as curation does, and writes Parquet.  The peer's number of workers is the best of 0, 1
and 2.  Median over rounds in alternation of the ratio of rates, with the extremes, for both precisions; start-up, the
same for both, is left out.  Then where the time of one photograph goes, on one thread, and how far bfloat16 is from
float32.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from maskedclip.data.field import find_field
from maskedclip.data.imaging import decode
from maskedclip.deployment.embed import embed
from maskedclip.deployment.external import open_model
from maskedclip.models.features import prepare_pixels
from maskedclip.recipe_sections import IMAGENET_MEAN, IMAGENET_STD

ENCODER = "vit_small_patch14_dinov2"
BATCH = 64


class Photographs(Dataset[torch.Tensor]):
    """Files through Pillow and torchvision's transforms, as in timm's and torchvision's examples."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[row]).convert("RGB"))  # type: ignore[return-value]


def timm_encoder(weights: Path, size: int) -> torch.nn.Module:
    model = timm.create_model(ENCODER, img_size=size, num_classes=0, pretrained=False)
    stored = {name: value.float() for name, value in load_file(weights).items()}
    model.load_state_dict(checkpoint_filter_fn(stored, model))  # type: ignore[arg-type]
    return model.eval()


@torch.inference_mode()
def timm_loop(model: torch.nn.Module, files: list[Path], size: int, workers: int) -> np.ndarray:
    loader = DataLoader(Photographs(files, size), batch_size=BATCH, num_workers=workers)
    return np.concatenate([model.forward_features(batch)[:, 1:].mean(dim=1).numpy() for batch in loader])  # type: ignore[operator]


def rate(work: Callable[[], object], rows: int) -> float:
    begun = time.perf_counter()
    work()
    return rows / (time.perf_counter() - begun)


def told(name: str, ratios: list[float]) -> None:
    print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def milliseconds(work: Callable[[bytes], object], items: list[bytes]) -> float:
    begun = time.perf_counter()
    for item in items:
        work(item)
    return 1000 * (time.perf_counter() - begun) / len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--enlarge", type=int, default=0, help="resize the files to this side first, as a camera's")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    size, files = args.size, sorted(path for path in args.photographs.iterdir() if path.is_file())[: args.rows]
    rows = len(files)
    peer = timm_encoder(args.weights, size)
    model = open_model(f"timm:{ENCODER}={args.weights}", device="cpu", size=size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photographs"
        folder.mkdir()
        for path in files:
            if args.enlarge:
                large = Image.open(path).convert("RGB").resize((args.enlarge,) * 2, Image.Resampling.BICUBIC)
                large.save(folder / f"{path.stem}.jpg", quality=92)
            else:
                shutil.copy2(path, folder / path.name)
        files = sorted(folder.iterdir())
        made = 0

        def ours(precision: str) -> Path:
            nonlocal made
            made += 1
            return embed(model, folder, Path(place) / f"{made}.parquet", precision=precision).out

        few = files[: max(BATCH * 3, rows // 3)]
        timm_loop(peer, files[:BATCH], size, 0)
        rates = {workers: rate(lambda w=workers: timm_loop(peer, few, size, w), len(few)) for workers in (0, 1, 2)}
        workers = max(rates, key=lambda name: rates[name])
        print(f"timm by workers: {', '.join(f'{name}: {value:.1f}/s' for name, value in rates.items())}", flush=True)
        found: dict[str, list[float]] = {"timm": [], "float32": [], "bf16-mixed": []}
        for _ in range(args.rounds):
            found["timm"].append(rate(lambda: timm_loop(peer, files, size, workers), rows))
            for precision in ("float32", "bf16-mixed"):
                found[precision].append(rate(lambda p=precision: ours(p), rows))
        print(f"{rows} photographs at {size} px, {torch.get_num_threads()} threads, {args.rounds} rounds")
        for name, values in found.items():
            print(f"{name}: {statistics.median(values):.1f} photographs/s")
        for name in ("float32", "bf16-mixed"):
            told(f"{name} / timm", [a / b for a, b in zip(found[name], found["timm"], strict=True)])
        exact, mixed = (
            np.stack(pq.read_table(ours(precision)).column("encoder").to_numpy())
            for precision in ("float32", "bf16-mixed")
        )
        cosine = (exact * mixed).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(mixed, axis=1)
        print(f"cosine of bf16-mixed to float32: median {np.median(cosine):.6f}, least {cosine.min():.6f}")
        torch.set_num_threads(1)
        encoded = [path.read_bytes() for path in files[:200]]
        prepared = model.preprocessing
        pixels = {item: decode(item) for item in encoded}
        print(
            "one photograph, one thread: "
            f"decode {milliseconds(decode, encoded):.2f} ms, "
            f"field {milliseconds(lambda item: find_field(pixels[item]), encoded):.2f} ms, "
            f"field, crop, resize {milliseconds(lambda item: prepare_pixels(pixels[item], prepared), encoded):.2f} ms"
        )
        peer_files = Photographs(files[:200], size)
        begun = time.perf_counter()
        for row in range(len(peer_files)):
            peer_files[row]
        print(f"timm's transforms, one thread: {1000 * (time.perf_counter() - begun) / len(peer_files):.2f} ms")


if __name__ == "__main__":
    main()
