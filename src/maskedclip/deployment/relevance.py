"""Which patches a score rests on: attention rollout, gradient-weighted attention, and removal of patches.

- `rollout`: attention of all layers multiplied, each with half of the identity for the residual path; it knows no
  score (Abnar and Zuidema, "Quantifying attention flow in transformers", arXiv 2005.00928).
- `gradient`: the attention of each layer weighted by the score's gradient with respect to it, positive part, summed
  up from layer to layer (Chefer, Gur and Wolf, "Generic attention-model explainability", arXiv 2103.15679, equations 5
  and 6).  [ours] Their model reads a class token.  Ours reads the mean of the patches, which is one more attention of
  1 / L each: weighted by its gradient in the same way, it is the positive part of the patches' contributions.
- `removal`: the encoder reads random halves of the patches, which is what it was trained on, and a linear model of
  their scores tells what each block of patches adds.  No gradient, no grey square in place of a patch; a hundred times
  the cost.  [ours], after RISE (arXiv 1806.07421) and the Banzhaf value.

All of them lead from the pixels through encoder and bridge.  B images, L patches in h rows and w columns, N tokens with
class and register tokens, D width, H heads.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maskedclip.deployment.maps_blocks import plain_blocks, with_attention
from maskedclip.deployment.maps_target import Target
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.attention import evaluation_kernels
from maskedclip.models.features import to_input
from maskedclip.models.maskedclip import MaskedCLIP

Method = Literal["gradient", "rollout", "removal"]
_BATCH = 8  # images whose attention is held at once
_BLOCKS = 8  # on a side: how many parts of the picture are removed at most, squared
_READ_AT_ONCE = 64


def relevance_map(
    model: Model, images: Tensor, target: Target, *, method: Method = "gradient", draws: int | None = None
) -> NDArray[np.float32]:
    """Relevance of every patch for one score, float32 (B, h, w); see `relevance_maps`."""
    return relevance_maps(model, images, [target], method=method, draws=draws)[:, 0]


def relevance_maps(
    model: Model, images: Tensor, targets: Sequence[Target], *, method: Method = "gradient", draws: int | None = None
) -> NDArray[np.float32]:
    """Relevance of every patch for several scores, which share the forward passes: float32 (B, T, h, w).

    Args:
        model: any, for targets of its outputs.
        images: uint8 (B, 3, S, S).
        targets: the scores, see `text_target`.
        method: `gradient` and `rollout` are 0 or more and sum to 1; `removal` is signed, in units of the score, and
            sums to 0: what a patch adds, beside the mean patch.
        draws: of `removal`: pairs of random halves; None: four for each block.

    Raises:
        UserError: an unknown method, an output that this model lacks, or blocks of a kind that cannot be followed.
    """
    if method not in get_args(Method):
        raise UserError(f"method: {method!r} is none of {', '.join(get_args(Method))}")
    for target in targets:
        if target.output != "encoder" and model.module.image_projection is None:
            raise UserError(f"output: {target.output!r} is none of this model's outputs; it was trained without texts")
    images = images.to(model.device)
    if method == "removal":
        return np.stack([_removal(model, image, targets, draws) for image in images])
    parts = [torch.stack(_attention_maps(model, batch, targets, method), dim=1).cpu() for batch in images.split(_BATCH)]
    return torch.cat(parts).unflatten(2, model.module.encoder.grid).numpy()


@torch.inference_mode()
def visible_scores(model: Model, images: Tensor, targets: Sequence[Target], keep: Tensor | None = None) -> Tensor:
    """Scores of images uint8 (B, 3, S, S) where the encoder reads only the patches `keep` (B, K): float32 (B, T)."""
    module = model.module
    with evaluation_kernels(module):
        tokens = module.encoder(to_input(images.to(model.device), model.preprocessing), keep)
        led = module.bridge(tokens) if any(target.output != "encoder" for target in targets) else tokens
        pooled = {True: module.pool(tokens), False: module.pool_clip(led)}
        return torch.stack([_score(module, pooled[target.output == "encoder"], target) for target in targets], dim=1)


def _score(module: MaskedCLIP, pooled: Tensor, target: Target) -> Tensor:
    """From the pooled last patch tokens (B, D), (B,)."""
    return target.score(module.project_pooled(pooled) if target.output == "projected" else pooled)


# --- attention -------------------------------------------------------------------------------------------------------


def _attention_maps(model: Model, images: Tensor, targets: Sequence[Target], method: Method) -> list[Tensor]:
    """Of each target (B, L), which sums to 1."""
    maps: dict[int, Tensor] = {}
    for bridged in (False, True):
        places = [place for place, target in enumerate(targets) if (target.output != "encoder") == bridged]
        if not places:
            continue
        with torch.enable_grad():
            inputs = to_input(images, model.preprocessing).requires_grad_()
            tokens, stages = followed(model.module, inputs, bridged=bridged)
            patches = model.module.encoder.patches(tokens)
            if method == "rollout":
                halves = [[(layer.mean(dim=1) + _eye(layer)) / 2 for layer in stage] for stage in stages]
                same = _rolled(model.module, halves, torch.ones_like(patches[..., 0]), add=False)
                maps |= dict.fromkeys(places, same)
                continue
            flat = [layer for stage in stages for layer in stage]
            for place in places:
                weigh = model.module.attention if bridged else None
                pooled = patches.mean(dim=1) if weigh is None else weigh(patches)
                score = _score(model.module, pooled, targets[place]).sum()
                *slopes, last = torch.autograd.grad(score, [*flat, patches], retain_graph=place != places[-1])
                weighted = iter([(a * g).clamp_min(0).mean(dim=1) for a, g in zip(flat, slopes, strict=True)])
                layers = [[next(weighted) for _ in stage] for stage in stages]
                contributions = (patches * last).sum(dim=-1).clamp_min(0)
                maps[place] = _rolled(model.module, layers, contributions, add=True)
    return [maps[place] for place in range(len(targets))]


@torch.no_grad()
def _rolled(module: MaskedCLIP, stages: Sequence[Sequence[Tensor]], pooling: Tensor, *, add: bool) -> Tensor:
    """From the pooled patches back through all layers (B, N, N) to the patches of the input, (B, L), sum 1.

    pooling: how much each last patch counts (B, L).  add: a layer adds to what reaches it, or takes its place.
    """
    encoder = module.encoder
    relevance = _eye(stages[0][0])
    for number, stage in enumerate(stages):
        for layer in stage:
            relevance = relevance + layer @ relevance if add else layer @ relevance
        if number == 0:
            relevance = _without_registers(module, relevance)
    reached = relevance[:, encoder.num_class_tokens :].expand(len(pooling), -1, -1)
    rows = torch.einsum("bl,bln->bn", pooling, reached)[:, -encoder.num_patches :]
    return rows / rows.sum(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _without_registers(module: MaskedCLIP, relevance: Tensor) -> Tensor:
    """Drop the rows of register tokens, which the encoder's output lacks: (B, N, M) -> (B, C + L, M)."""
    classes, patches = module.encoder.num_class_tokens, module.encoder.num_patches
    return torch.cat([relevance[:, :classes], relevance[:, -patches:]], dim=1)


def _eye(attention: Tensor) -> Tensor:
    return torch.eye(attention.shape[-1], device=attention.device)[None]


def followed(module: MaskedCLIP, inputs: Tensor, *, bridged: bool) -> tuple[Tensor, list[list[Tensor]]]:
    """The last tokens of normalised images (B, 3, S, S), and the attention of every layer in the open.

    bridged: through the bridge too, or through the encoder alone.

    Returns: tokens (B, C + L, D); for the encoder, then the bridge, its layers' attention (B, H, N, N).

    Raises:
        UserError: a kind of block that is not followed here.
    """
    encoder = module.encoder
    tokens = encoder.vit.norm_pre(encoder._with_prefix(encoder._embed(inputs, None), None))
    stages: list[list[Tensor]] = [[]]
    for block in plain_blocks(encoder.vit.blocks):
        tokens, attention = with_attention(block, tokens)
        stages[0].append(attention)
    tokens = encoder.vit.norm(tokens)
    tokens = torch.cat([tokens[:, : encoder.num_class_tokens], tokens[:, -encoder.num_patches :]], dim=1)
    if bridged:
        stages.append([])
        for block in plain_blocks(module.bridge.blocks):
            tokens, attention = with_attention(block, tokens)
            stages[1].append(attention)
        tokens = module.bridge.norm(tokens)
    return tokens, stages


# --- removal ---------------------------------------------------------------------------------------------------------


def _removal(model: Model, image: Tensor, targets: Sequence[Target], draws: int | None) -> NDArray[np.float32]:
    """What each block of patches adds to the scores of one image uint8 (3, S, S): (T, h, w), each of mean 0."""
    rows, columns = model.module.encoder.grid
    blocks, across = _block_numbers(rows, columns)
    count = int(blocks.max()) + 1
    generator = np.random.Generator(np.random.Philox(count))
    pairs = draws or 4 * count
    orders = np.argsort(generator.random((pairs, count)), axis=1)
    chosen = np.zeros((pairs, count), dtype=bool)
    np.put_along_axis(chosen, orders[:, : max(1, count // 2)], True, axis=1)
    if count < 2:
        return np.zeros((len(targets), rows, columns), dtype=np.float32)
    scores = _scores_of(model, image, targets, np.concatenate([chosen, ~chosen])[:, blocks.ravel()])
    halves = (scores[:pairs] - scores[pairs:]) / 2
    signs = np.where(chosen, 1.0, -1.0)
    effects = np.linalg.lstsq(signs, halves, rcond=None)[0]
    effects = effects - np.average(effects, axis=0, weights=np.bincount(blocks.ravel()))
    table = torch.from_numpy(effects.T.reshape(1, len(targets), -1, across))
    grown = functional.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)
    return grown[0].numpy().astype(np.float32)


def _block_numbers(rows: int, columns: int) -> tuple[NDArray[np.int64], int]:
    """Of each patch its block (h, w), numbered row by row, and how many blocks are in a row; at most 8 x 8 blocks."""
    down, across = min(rows, _BLOCKS), min(columns, _BLOCKS)
    vertical, horizontal = np.arange(rows) * down // rows, np.arange(columns) * across // columns
    return vertical[:, None] * across + horizontal[None, :], across


def _scores_of(
    model: Model, image: Tensor, targets: Sequence[Target], visible: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Scores of one image for each set of visible patches (n, L): (n, T).  Sets of one size are read together."""
    sizes = visible.sum(axis=1)
    scores = np.zeros((len(visible), len(targets)))
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        for start in range(0, len(rows), _READ_AT_ONCE):
            some = rows[start : start + _READ_AT_ONCE]
            keep = torch.from_numpy(np.nonzero(visible[some])[1].reshape(len(some), size)).to(image.device)
            read = visible_scores(model, image[None].expand(len(some), -1, -1, -1), targets, keep)
            scores[some] = read.cpu().numpy()
    return scores
