"""What a run says of itself before its first step, and writes into environment.json."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskedclip.console import say
from maskedclip.data.pairs import read_pairs
from maskedclip.data.sampler import Pools
from maskedclip.data.store import Store
from maskedclip.models.text import TextTokenizer
from maskedclip.objectives.pretraining import PretrainingObjective
from maskedclip.recipe import Recipe
from maskedclip.training.optimizer import Group


def training_texts(store: Store, pools: Pools, recipe: Recipe) -> list[str]:
    """The distinct texts of the paired images, those that were retrieved and those without images, sorted."""
    if not recipe.reads_text:
        return []
    texts = [text for text, _ in store.texts_of(pools.paired)]
    if recipe.data.pairs is not None:
        texts = sorted({*texts, *read_pairs(Path(recipe.data.pairs)).column("text").to_pylist()})
    return texts if pools.loose is None else sorted({*texts, *pools.loose.texts})


def truncated_share(store: Store, pools: Pools, tokenizer: TextTokenizer | None, texts: list[str]) -> float:
    """Share of the paired images' texts, and of those without images, that are longer than the context."""
    if tokenizer is None or not texts:
        return 0.0
    lengths = zip(texts, tokenizer.lengths(texts), strict=True)
    cut = {text for text, count in lengths if count > tokenizer.length}
    counts = store.texts_of(pools.paired)
    if pools.loose is not None:
        counts = [*counts, *((text, 1) for text in pools.loose.texts)]
    return sum(count for text, count in counts if text in cut) / max(1, sum(count for _, count in counts))


def facts(
    objective: PretrainingObjective, pools: Pools, texts: list[str], truncated: float, device: str, world_size: int
) -> dict[str, Any]:
    """Of data, device and model, for environment.json."""
    model = objective.model
    parts: dict[str, nn.Module | None] = {
        "image_encoder": model.encoder,
        "bridge": model.bridge,
        "text_encoder": model.text_encoder,
        "decoders": objective.terms,
    }
    return {
        "paired_images": len(pools.paired),
        "unpaired_images": len(pools.unpaired),
        "patients_with_text": list(pools.patients_with_text),
        "distinct_texts": len(texts),
        "truncated_texts": truncated,
        "device": device,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "parameters": {
            name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None
        },
    } | ({} if pools.loose is None else {"loose_texts": pools.loose.facts()})


def _announce_lora(recipe: Recipe, groups: list[Group]) -> None:
    trained = sum(parameter.numel() for group in groups for parameter in group.parameters.values())
    say(f"LoRA of rank {recipe.model.lora_rank}: {trained / 1e6:.2f} million parameters are trained, new layers too")
    if recipe.model.image_weights is None and recipe.training.first_stage is None:
        say("warning: model.lora_rank: a fresh image encoder is frozen at random weights; give model.image_weights")


def announce(
    recipe: Recipe,
    pools: Pools,
    tokenizer: TextTokenizer | None,
    texts: list[str],
    truncated: float,
    groups: list[Group],
    frozen: int,
    steps: int,
    device: str,
) -> None:
    """Tell the user what is about to happen: data, texts, effective learning rates (P27), what is frozen."""
    paired, unpaired = recipe.batch_sizes
    say(f"losses: {recipe.objective.summary()}")
    say(f"data: {pools.summary()}; {paired} + {unpaired} a step, {steps} steps on {device}")
    if tokenizer is not None:
        mend = "; raise data.context_length, or data.sentences some" if truncated > 0.01 else ""
        say(f"texts: {len(texts):,} distinct, {tokenizer.length} tokens each; {truncated:.1%} are cut{mend}")
    if pools.loose is not None:
        say(f"texts without images: {pools.loose.summary()}; {recipe.data.batch_texts} a step")
    training = recipe.training
    scaled = f"{training.lr:g} x {paired + unpaired} / 256" if training.scale_lr else "as given"
    rates = ", ".join(f"{group.name} {group.lr:.2e}" for group in groups if "no decay" not in group.name)
    say(f"learning rates at their peak ({scaled}): {rates}")
    if recipe.model.lora_rank:
        _announce_lora(recipe, groups)
    if recipe.data.labels:
        say(f"labels: {', '.join(recipe.data.labels)}")
    if frozen:
        say(f"frozen by training.lr_factors: {frozen / 1e6:.2f} million of the parameters")
