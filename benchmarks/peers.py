"""The same training step through ours and through its peers: same model, images, batch, precision and threads.

python benchmarks/peers.py                      # installs each peer into its own environment, then measures
python benchmarks/peers.py --only mae --rounds 5 --steps 3

`clip`: ours against open_clip's `train_one_epoch`.  `mae`: ours against the masked autoencoders of lightly (as its
documentation writes the step) and of transformers.  ViT-S/16 at 224 px, batch 32, bf16 autocast on the processor.  Each
system is a process of its own that sleeps while another one works; they take turns, and the figure of a pair is the
ratio of the two times of one round.  The median over the rounds is told.  A table for RESULTS.md is printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TORCH = ["torch==2.14.1", "torchvision==0.29.1"]
PEERS = {
    "open_clip": [*TORCH, "open_clip_torch==3.3.0", "timm==1.0.31", "transformers==5.24.0"],
    "lightly": [*TORCH, "lightly==1.6.0", "timm==1.0.31"],
    "transformers": [*TORCH, "transformers==5.24.0"],
}
PAIRS = {"clip": ["open_clip"], "mae": ["lightly", "transformers"]}
BATCH, SIZE, PATCH, WIDTH, DEPTH, HEADS = 32, 224, 16, 384, 12, 6
TEXT = {"width": 256, "depth": 4, "heads": 4, "tokens": 32, "vocabulary": 8192}
DECODER = {"width": 384, "depth": 4, "heads": 6}
EMBED, MASK_RATIO, CLIP_NORM = 512, 0.75, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- ours ------------------------------------------------------------------------------------------------------------


def ours(method: str) -> Callable[[], None]:
    """The step of `maskedclip pretrain --config clip` or `mae`, from uint8 images on."""
    from maskedclip.bench.step import make_workbench
    from maskedclip.recipe import load_recipe

    paired, unpaired = (BATCH, 0) if method == "clip" else (BATCH // 2, BATCH // 2)
    recipe = load_recipe(
        [method, "vitb16"],
        [
            *("--model.image_encoder", "vit_small_patch16_224", "--data.size", str(SIZE)),
            *("--data.batch_paired", str(paired), "--data.batch_unpaired", str(unpaired)),
            *("--model.text_encoder", "small", "--model.small_text_vocabulary", str(TEXT["vocabulary"])),
            *("--model.embed_dim", str(EMBED), "--model.small_text_width", str(TEXT["width"])),
            *("--model.small_text_depth", str(TEXT["depth"]), "--model.small_text_heads", str(TEXT["heads"])),
            *("--model.image_decoder_width", str(DECODER["width"])),
            *("--model.image_decoder_depth", str(DECODER["depth"])),
            *("--model.image_decoder_heads", str(DECODER["heads"])),
            *("--objective.mask_ratio", str(MASK_RATIO), "--training.accelerator", "cpu"),
        ],
    )
    bench = make_workbench(recipe, tokens=int(TEXT["tokens"]))
    return bench.step


# --- peers -----------------------------------------------------------------------------------------------------------


def _images() -> Any:
    """What a peer's loader hands over: normalised floats."""
    import torch

    pixels = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def open_clip(_: str) -> Callable[[], None]:
    """One batch through open_clip_train.train.train_one_epoch, with the optimizer that its main makes."""
    import tempfile

    import torch
    from open_clip.loss import ClipLoss  # type: ignore[import-not-found]
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip_train.train import train_one_epoch  # type: ignore[import-not-found]
    from transformers import BertConfig

    folder = tempfile.mkdtemp()
    BertConfig(
        vocab_size=TEXT["vocabulary"],
        hidden_size=TEXT["width"],
        num_hidden_layers=TEXT["depth"],
        num_attention_heads=TEXT["heads"],
        intermediate_size=4 * TEXT["width"],
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(folder)
    model = CustomTextCLIP(
        EMBED,
        vision_cfg=CLIPVisionCfg(
            timm_model_name="vit_small_patch16_224",
            timm_model_pretrained=False,
            timm_pool="avg",
            timm_proj="linear",
            image_size=SIZE,
        ),
        text_cfg=CLIPTextCfg(
            hf_model_name=folder,
            hf_tokenizer_name=folder,
            hf_model_pretrained=False,
            hf_pooler_type="mean_pooler",
            hf_proj_type="linear",
            context_length=TEXT["tokens"],
        ),
        output_dict=True,
    )
    bare = [p for name, p in model.named_parameters() if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
    chosen = {id(p) for p in bare}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = torch.optim.AdamW(
        [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}], lr=1e-4, betas=(0.9, 0.95)
    )
    batch = (_images(), torch.randint(5, 30, (BATCH, TEXT["tokens"])))

    class _Loader(list):
        num_batches, num_samples = 1, BATCH

    data = {"train": SimpleNamespace(dataloader=_Loader([batch]), set_epoch=lambda _: None)}
    args = SimpleNamespace(
        device="cpu",
        precision="amp_bf16",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=CLIP_NORM,
        rank=0,
        local_rank=0,
        world_size=1,
        log_every_n_steps=10**9,
        batch_size=BATCH,
        save_logs=False,
        wandb=False,
        logs=None,
    )

    def step() -> None:
        train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, args)

    return step


def _supervised(model: Any, loss: Callable[[], Any]) -> Callable[[], None]:
    """A plain step: autocast, backward, clip, AdamW."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def lightly(_: str) -> Callable[[], None]:
    """The training step of lightly's MAE example."""
    import torch
    from lightly.models import utils  # type: ignore[import-not-found]
    from lightly.models.modules import (  # type: ignore[import-not-found]
        MAEDecoderTIMM,
        MaskedVisionTransformerTIMM,
    )
    from timm.models.vision_transformer import vit_small_patch16_224

    class MAE(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = vit_small_patch16_224()
            self.sequence_length = vit.patch_embed.num_patches + vit.num_prefix_tokens
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=PATCH,
                embed_dim=WIDTH,
                decoder_embed_dim=DECODER["width"],
                decoder_depth=DECODER["depth"],
                decoder_num_heads=DECODER["heads"],
                mlp_ratio=4.0,
                proj_drop_rate=0.0,
                attn_drop_rate=0.0,
            )

        def forward(self, images: Any) -> tuple[Any, Any]:
            keep, hidden = utils.random_token_mask(
                size=(len(images), self.sequence_length), mask_ratio=MASK_RATIO, device=images.device
            )
            encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
            masked = utils.repeat_token(self.decoder.mask_token, (len(images), self.sequence_length))
            masked = utils.set_at_index(masked, keep, encoded.type_as(masked))
            decoded = self.decoder.decode(masked)
            prediction = self.decoder.predict(utils.get_at_index(decoded, hidden))
            target = utils.get_at_index(utils.patchify(images, PATCH), hidden - 1)
            return prediction, utils.normalize_mean_var(target) if hasattr(utils, "normalize_mean_var") else target

    model, images = MAE(), _images()

    def loss() -> Any:
        prediction, target = model(images)
        return torch.nn.functional.mse_loss(prediction.float(), target.float())

    return _supervised(model, loss)


def transformers(_: str) -> Callable[[], None]:
    """ViTMAEForPreTraining with its own loss."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIZE,
        patch_size=PATCH,
        decoder_hidden_size=DECODER["width"],
        decoder_num_hidden_layers=DECODER["depth"],
        decoder_num_attention_heads=DECODER["heads"],
        decoder_intermediate_size=4 * DECODER["width"],
        mask_ratio=MASK_RATIO,
        norm_pix_loss=True,
    )
    model, images = ViTMAEForPreTraining(config), _images()
    return _supervised(model, lambda: model(pixel_values=images).loss)


# --- processes that take turns ---------------------------------------------------------------------------------------


def work(system: str, method: str) -> None:
    """A worker: for each line on stdin, so many steps, and their seconds on stdout."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    import torch

    torch.manual_seed(0)
    step = {"ours": ours, "open_clip": open_clip, "lightly": lightly, "transformers": transformers}[system](method)
    for _ in range(2):
        step()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), file=out, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print((time.perf_counter() - began) / int(line), file=out, flush=True)


class Worker:
    """One system in its own process."""

    def __init__(self, python: Path, system: str, method: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [str(python), str(Path(__file__).resolve()), "--worker", system, "--method", method]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.facts = json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise SystemExit(self.process.stderr.read()[-3000:])
        return line

    def seconds(self, steps: int) -> float:
        """Mean seconds of so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment_of(peer: str, folder: Path) -> Path:
    """The peer's own Python, installed where it is not there yet."""
    place = folder / peer
    python = place / "bin" / "python"
    if not (place / "ready").is_file():
        print(f"installing {peer}: {' '.join(PEERS[peer])}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
        (place / "ready").touch()
    return python


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PAIRS), default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=Path("benchmarks/.environments"))
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="clip", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.method)
        return
    print(f"{os.cpu_count()} cores, {args.threads} threads; {args.rounds} rounds of {args.steps} steps")
    print("\n| step | ours | peer | ours / peer (median of rounds, range) |\n|---|---|---|---|")
    for method, peers in PAIRS.items():
        if args.only in (None, method):
            systems = {"ours": Path(sys.executable)} | {p: environment_of(p, args.environments) for p in peers}
            workers = {name: Worker(python, name, method, args.threads) for name, python in systems.items()}
            taken: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(args.rounds):
                for name, worker in workers.items():
                    taken[name].append(worker.seconds(args.steps))
            for worker in workers.values():
                worker.end()
            for peer in peers:
                ratios = [mine / theirs for mine, theirs in zip(taken["ours"], taken[peer], strict=True)]
                mine, theirs = (statistics.median(taken[name]) for name in ("ours", peer))
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                print(f"| {method} | {mine * 1000:.0f} ms | {peer} {theirs * 1000:.0f} ms | {spread} |", flush=True)


if __name__ == "__main__":
    main()
