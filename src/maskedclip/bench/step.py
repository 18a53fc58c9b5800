"""How long a training step takes, how long its parts take alone, and how far that is from what the device can do."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskedclip.bench.timing import matrix_rate, medians, peak_rate
from maskedclip.data.transforms import normalise
from maskedclip.models.attention import plain_is_faster, set_attention
from maskedclip.models.maskedclip import MaskedCLIP, build_model
from maskedclip.models.text import TextEncoder, bert_from_config, small_bert_config
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import Recipe
from maskedclip.training.compilation import compile_modules
from maskedclip.training.memory import keep_freed_memory
from maskedclip.training.optimizer import make_optimizer, parameter_groups, set_learning_rates
from maskedclip.training.parallel import precise_fabric
from maskedclip.training.step import Stepper

_WORDS = ["moderate non proliferative retinopathy", "normal fundus", "drusen", "cataract", "glaucoma with wide cup"]


@dataclass
class Workbench:
    """A run without data, loop or folder: a batch of noise, and the step that training takes."""

    recipe: Recipe
    device: torch.device
    fabric: Fabric
    objective: PretrainingObjective
    stepper: Stepper
    batch: Batch

    def step(self) -> None:
        """One training step on the same batch."""
        self.stepper(self.batch, 0.5)


def make_workbench(recipe: Recipe, *, texts: int | None = None, tokens: int = 64) -> Workbench:
    """Build what a recipe describes, without reading weights, stores or the network.

    Args:
        recipe: its weights and text encoder are replaced by untrained ones of the same shape; a text encoder that is
            no local folder has the shape of BERT-base.
        texts: distinct texts of a step; None is one for each paired image.
        tokens: of each text, at most the recipe's context length.
    """
    recipe = recipe.replace(model={"image_weights": None})
    model = _build(recipe)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    fabric = precise_fabric(recipe.training, devices=1)
    keep_freed_memory(fabric.device)
    objective = build_objective(recipe, model)
    set_attention(objective, fused=not plain_is_faster(fabric.device, recipe.training.precision))
    if recipe.training.gradient_checkpointing:
        objective.recompute_blocks()
    module = fabric.setup_module(objective)
    if recipe.training.compile:
        compile_modules(objective)
    groups = parameter_groups(objective, recipe)
    optimizer = make_optimizer(groups, recipe)
    wrapped: Any = fabric.setup_optimizers(optimizer)
    set_learning_rates(optimizer, groups, 0, recipe)
    stepper = Stepper(
        fabric,
        module,
        objective,
        optimizer,
        wrapped,
        clip_norm=recipe.training.clip_norm,
        parts=recipe.training.micro_batches,
        average=None,
        skip_on_device=fabric.device.type == "cuda",
    )
    paired, unpaired = recipe.batch_sizes
    batch = _noise(recipe, paired, unpaired, min(tokens, recipe.data.context_length), texts or paired)
    return Workbench(recipe, fabric.device, fabric, objective, stepper, _moved(batch, fabric.device))


def _build(recipe: Recipe) -> MaskedCLIP:
    """The model, with a text encoder of the recipe's shape and a whole vocabulary, which five sentences do not fill."""
    if not recipe.reads_text:
        return build_model(recipe, [])[0]
    name, chosen = recipe.model.text_encoder, recipe.model
    model, _ = build_model(recipe.replace(model={"text_encoder": "small"}), _WORDS)
    if (Path(name) / "config.json").is_file():
        config = json.loads((Path(name) / "config.json").read_text())
    elif name == "small":
        config = small_bert_config(
            vocabulary=chosen.small_text_vocabulary,
            width=chosen.small_text_width,
            depth=chosen.small_text_depth,
            heads=chosen.small_text_heads,
            positions=recipe.data.context_length,
        )
    else:
        positions = max(512, recipe.data.context_length)
        config = small_bert_config(vocabulary=28_996, width=768, depth=12, heads=12, positions=positions)
    model.text_encoder = TextEncoder(
        bert_from_config(config), chosen.embed_dim, standardise=chosen.projection_norm == "batch"
    )
    return model


def _noise(recipe: Recipe, paired: int, unpaired: int, tokens: int, texts: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = recipe.data.size
    image = torch.randint(0, 256, (paired + unpaired, 3, size, size), dtype=torch.uint8, generator=generator)
    batch = Batch(image.contiguous(memory_format=torch.channels_last), torch.arange(paired + unpaired), paired)
    if recipe.reads_text:
        batch.text_ids = torch.randint(5, 30, (texts, tokens), generator=generator)
        batch.text_mask = torch.ones(texts, tokens, dtype=torch.int64)
        batch.text_index = torch.arange(paired) % texts
        batch.text_key = batch.text_index.clone()
    return batch


def _moved(batch: Batch, device: torch.device) -> Batch:
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)


def step_operations(bench: Workbench) -> int:
    """Multiplications and additions of one step, forward and backward, counted."""
    counter = FlopCounterMode(display=False)
    with counter:
        bench.step()
    return counter.get_total_flops()


def measure_step(bench: Workbench, *, rounds: int = 7) -> dict[str, Any]:
    """Images a second, time over the sum of the parts timed alone, and share of what the device can do."""
    parts = step_parts(bench)
    operations = step_operations(bench)
    whole, *alone = medians([bench.step, *parts.values()], bench.device, rounds=rounds, warm=2)
    images = len(bench.batch.image)
    dtype = torch.float32 if bench.recipe.training.precision == "32-true" else torch.bfloat16
    rate, peak = matrix_rate(bench.device, dtype), peak_rate(bench.device)
    found: dict[str, Any] = {
        "images_per_second": images / whole,
        "seconds": whole,
        "parts": dict(zip(parts, alone, strict=True)),
        "overhead": whole / sum(alone),
        "operations": operations,
        "operations_per_second": operations / whole,
        "matrix_rate": rate,
        "share_of_matrix_rate": operations / whole / rate,
        "mfu": None if peak is None else operations / whole / peak,
    }
    if bench.device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(bench.device)
    return found


def step_parts(bench: Workbench) -> dict[str, Callable[[], object]]:
    """The passes of a step, each to be run alone, forward and backward, on what it gets in a step."""
    objective, model, batch = bench.objective, bench.objective.model, bench.batch
    image = normalise(batch.image, objective.mean, objective.std)
    views = Views(model, batch, image, objective.masker, objective.mask_ratio, 0.5, None, objective.decoded_share)
    paired, mask = batch.num_paired, views.mask if bench.recipe.masks else None
    context = bench.fabric.autocast

    def trained(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def act() -> None:
            with context():
                out = forward()
            out.backward(torch.full_like(out, 1e-3))

        return act

    parts: dict[str, Callable[[], object]] = {
        "normalise": lambda: normalise(batch.image, objective.mean, objective.std)
    }
    if mask is not None:
        parts["masked pass"] = trained(lambda: model.encoder(image, mask.keep))
    if paired and bench.recipe.reads_text:
        parts["paired pass"] = trained(lambda: model.bridge(model.encoder(image[:paired])))
        parts["texts"] = trained(lambda: model.text_encoder.pool(batch.text_ids, batch.text_mask))  # type: ignore[union-attr, arg-type]
    if "mkd" in objective.terms and len(image) > paired and objective.teacher is None:

        def target() -> None:
            with torch.no_grad(), context():
                model.bridge(model.encoder(image[paired:]))

        parts["target of unpaired images"] = target
    parts |= _losses(bench, views, trained)
    parts["optimizer"] = _optimizer(bench)
    return parts


def _losses(
    bench: Workbench, views: Views, trained: Callable[[Callable[[], Tensor]], Callable[[], None]]
) -> dict[str, Callable[[], object]]:
    """Decoders and losses on features that are given."""
    objective = bench.objective
    with torch.no_grad(), bench.fabric.autocast():
        given = {"masked_tokens": views.masked_tokens} if bench.recipe.masks else {}
        if "clip" in objective.terms:
            given |= {"pooled_image": views.pooled_image, "pooled_text": views.pooled_text}
        if "mkd" in objective.terms:
            given["target_patches"] = views.target_patches
    names = {"clip": "contrastive loss", "mim": "image decoder", "mkd": "feature decoder"}

    def loss(term: nn.Module) -> Tensor:
        fresh = Views(
            views.model, views.batch, views.image, views.masker, views.mask_ratio, 0.5, None, views.decoded_share
        )
        learns = {"masked_tokens", "pooled_image", "pooled_text"}
        vars(fresh).update({name: value.detach().requires_grad_(name in learns) for name, value in given.items()})
        return sum(term(fresh)[0].values())  # type: ignore[return-value]

    return {names.get(name, name): trained(lambda term=term: loss(term)) for name, term in objective.terms.items()}


def _optimizer(bench: Workbench) -> Callable[[], None]:
    stepper = bench.stepper
    gradients = [
        (parameter, torch.full_like(parameter, 1e-6))
        for parameter in bench.objective.parameters()
        if parameter.requires_grad
    ]

    def act() -> None:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        stepper.fabric.clip_gradients(stepper.module, stepper.wrapped, max_norm=1.0, error_if_nonfinite=False)
        stepper.wrapped.step()
        stepper.wrapped.zero_grad(set_to_none=True)

    return act
