"""Maskings measured on phantom photographs, and drawn: python -m benchmarks.family_maskings {ehm,agent,time,draw} ...

`ehm`: how alike hidden patches are, and how long their boundary is, from many nodes to few.  `agent`: what a Q-agent
hides after a short training.  `time`: milliseconds an image.  `draw`: the picture of docs/family/maskings.md.
"""

import argparse
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from tests.objectives.masking.agent_run import examine, hardness, make_objective, train
from tests.objectives.masking.photographs import boundary, keys_of, photographs, stand_in, within_over_across
from torch import Tensor

from maskedclip.data.phantom import draw_phantom
from maskedclip.data.transforms import normalise
from maskedclip.models.attention_maps import summed_attention, text_response
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import read_model
from maskedclip.objectives.masking import Mask, MaskContext, RandomMasker, _tree, mask_from_scores
from maskedclip.objectives.masking.block import BlockMasker
from maskedclip.objectives.masking.block import Options as BlockOptions
from maskedclip.objectives.masking.ehm import HierarchicalMasker, node_scores
from maskedclip.objectives.masking.ehm import Options as TreeOptions
from maskedclip.objectives.masking.text_guided import response_scores
from maskedclip.recipe_sections import IMAGENET_MEAN, IMAGENET_STD


def whole_numbers(images: Tensor) -> Tensor:
    """[0, 1] -> uint8."""
    return (images * 255).round().byte()


def seen(images: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) as the encoder takes them."""
    return normalise(images, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))


def ehm(arguments: argparse.Namespace) -> None:
    """The table of within/across and boundary, for the stand-in and for encoders of runs."""
    sources = {"stand-in": stand_in(photographs(arguments.images))}
    for run in arguments.runs:
        encoder = read_model(run / "model").model.encoder
        images = photographs(arguments.images, encoder.grid[0] * encoder.patch_size)
        sources[str(run)] = summed_attention(encoder, seen(whole_numbers(images)))
    for name, attention in sources.items():
        patches = attention.shape[1]
        bare = attention - torch.diag_embed(attention.diagonal(dim1=1, dim2=2))
        merges = _tree.grow(_tree.distances(attention, torch.rand(len(attention), patches)))
        counts = sorted({*(patches // 2**power for power in range(5)), 12, 8, 6}, reverse=True)
        columns = [_figures(attention, bare, _tree.cut(merges, count), arguments.draws) for count in counts]
        print(f"{name}: {len(attention)} photographs, {patches} patches, {arguments.draws} draws of masks each")
        print("|nodes|" + "|".join(map(str, counts)) + "|")
        for place, label in enumerate(("within/across", "the same without the diagonal", "boundary length")):
            print(f"|{label}|" + "|".join(f"{column[place]:.2f}" for column in columns) + "|")


def _figures(attention: Tensor, bare: Tensor, nodes: Tensor, draws: int) -> list[float]:
    rows = []
    for draw in range(draws):
        mask = mask_from_scores(node_scores(nodes, keys_of(len(nodes), draw)), 0.75)
        inside = [within_over_across(table, mask).mean().item() for table in (attention, bare)]
        rows.append([*inside, boundary(mask, round(nodes.shape[1] ** 0.5)).mean().item()])
    return np.mean(rows, axis=0).tolist()


def agent(arguments: argparse.Namespace) -> None:
    """What agents have learnt, judged by a reconstructor that saw random blocks only, and by their own."""
    images = whole_numbers(photographs(arguments.images, arguments.size))
    kept = len(images) * 3 // 4
    cases: dict[str, dict[str, Any]] = {"random actions": {"warmup": 1.0}, "the recipe": {}}
    cases |= {"the paper's choices": {"epsilon": 0.0, "reward": "whole", "anchors": "clipped"}, "block 1": {"block": 1}}
    print(f"{kept} photographs of {arguments.size} px, {len(images) - kept} held out, {arguments.steps} steps")
    print("|agent|judge|error, agent|all|hardest|agent/all|correlation|contrast|")
    judge = make_objective(arguments.size, **cases["random actions"])
    train(judge, images[:kept], arguments.steps)
    for name in arguments.cases or cases:
        objective = judge
        if name != "random actions":
            objective = make_objective(arguments.size, **cases[name])
            train(objective, images[:kept], arguments.steps)
        for whose, its in {"random blocks": judge, "its own": objective}.items():
            found = examine(objective, images[kept:], hardness(its, images[kept:]))
            errors = "|".join(f"{figure:.3f}" for figure in (found.agent, found.uniform, found.hardest))
            rest = f"{found.agent / found.uniform:.2f}|{found.correlation:.2f}|{found.contrast:.2f}"
            print(f"|{name}|{whose}|{errors}|{rest}|", flush=True)


def times(arguments: argparse.Namespace) -> None:
    """Milliseconds an image that a masking takes beside the encoder, at 14 x 14 patches."""
    keys = keys_of(arguments.images)
    attention = torch.rand(len(keys), 196, 196) ** 4
    context = MaskContext(keys, 196, 0.5)
    tree = HierarchicalMasker(TreeOptions())
    masker: Any = make_objective(224, 16).masker
    views: Any = SimpleNamespace(image=torch.randn(len(keys), 3, 224, 224))
    cases: dict[str, Callable[[], Any]] = {
        "random": lambda: RandomMasker().score(context),
        "block": lambda: BlockMasker((14, 14), BlockOptions()).score(context),
        "ehm, its attention given": lambda: tree.score_of(attention, context),
        "q_agent": lambda: masker.score(MaskContext(keys, 196, 0.5, views)),
    }
    for name, act in cases.items():
        act()
        spent = []
        for _ in range(7):
            begin = time.perf_counter()
            act()
            spent.append(time.perf_counter() - begin)
        print(
            f"{name}: {min(spent) / len(keys) * 1e3:.2f} ms an image of {len(keys)}, {torch.get_num_threads()} thread"
        )


def draw(arguments: argparse.Namespace) -> None:
    """Rows of phantom photographs, columns of maskings."""
    model = read_model(arguments.runs[0] / "model").model.eval()
    side, size = model.encoder.grid[0], model.encoder.grid[0] * model.encoder.patch_size
    phantoms = [
        (draw_phantom(0, patient, "left", size), draw_phantom(0, patient, "left", 256))
        for patient in arguments.patients
    ]
    images = torch.stack([torch.tensor(small.image) for small, _ in phantoms]).permute(0, 3, 1, 2)
    texts = [_sentences(small) for small, _ in phantoms]
    keys, patches = keys_of(len(images), arguments.seed), side**2
    attention = summed_attention(model.encoder, seen(images))
    tree = HierarchicalMasker(TreeOptions())
    objective = make_objective(size, model.encoder.patch_size)
    train(objective, whole_numbers(photographs(128, size)), arguments.steps)
    masker: Any = objective.masker
    masker.options = replace(masker.options, epsilon=0.0)  # each row as the agent would have it
    views: Any = SimpleNamespace(image=seen(images))

    def mask(scores: Tensor, ratio: float) -> Mask:
        return mask_from_scores(scores, ratio)

    masks = {
        "random, 75 %": mask(RandomMasker().score(MaskContext(keys, patches, 0)), 0.75),
        "block, 50 %": mask(BlockMasker((side, side), BlockOptions()).score(MaskContext(keys, patches, 0)), 0.5),
        "ehm, 75 %\nat 0.3 of the run": mask(tree.score_of(attention, MaskContext(keys, patches, 0.3)), 0.75),
        "ehm, 75 %\nat its end": mask(tree.score_of(attention, MaskContext(keys, patches, 1.0)), 0.75),
        "text_guided, 50 %": mask(response_scores(_responses(model, images, texts)), 0.5),
        "q_agent, 25 %": mask(masker.score(MaskContext(keys, patches, 1.0, views)), 0.25),
    }
    figure, axes = plt.subplots(len(images), 1 + len(masks), figsize=(13.5, 2.15 * len(images)), squeeze=False)
    for row, (_, large) in enumerate(phantoms):
        axes[row, 0].imshow(large.image)
        axes[row, 0].set_ylabel(textwrap.fill(texts[row], 24), fontsize=7)
        for column, (name, found) in enumerate(masks.items(), start=1):
            hidden = found.is_hidden()[row].reshape(side, side).numpy().repeat(256 // side, 0).repeat(256 // side, 1)
            axes[row, column].imshow(np.where(hidden[..., None], np.uint8(205), large.image))
            if row == 0:
                axes[row, column].set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.4)
    figure.savefig(arguments.out, dpi=80)
    print(arguments.out)


def _sentences(phantom: Any) -> str:
    """The sentences of a report that name a finding; all of it where none does."""
    named = [sentence.text for sentence in phantom.sentences if any(claim.low > 0 for claim in sentence.claims)]
    return " ".join(named[:1]) or phantom.text


@torch.no_grad()
def _responses(model: MaskedCLIP, images: Tensor, texts: list[str]) -> Tensor:
    assert model.tokenizer is not None
    assert model.text_encoder is not None
    ids, real = model.tokenizer(texts)
    patches = model.encoder.patches(model.bridge(model.encoder(seen(images))))
    return text_response(model, patches, model.text_encoder.hidden(ids, real), real)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for run in (ehm, agent, times, draw):
        verb = verbs.add_parser(run.__name__, help=run.__doc__)
        verb.set_defaults(run=run)
        verb.add_argument("--images", type=int, default=160 if run is agent else 16)
        verb.add_argument("--runs", type=Path, nargs="*", default=[])
        verb.add_argument("--draws", type=int, default=20)
        verb.add_argument("--steps", type=int, default=300)
        verb.add_argument("--size", type=int, default=32)
        verb.add_argument("--seed", type=int, default=0)
        verb.add_argument("--cases", nargs="*", default=[])
        verb.add_argument("--patients", type=int, nargs="*", default=[1, 2, 3, 4, 5])
        verb.add_argument("--out", type=Path, default=Path("docs/images/family_maskings.png"))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
