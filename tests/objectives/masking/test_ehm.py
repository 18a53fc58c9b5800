"""EHM-style masks: whole nodes of a tree that only likeness shapes, from small to large as the run goes on."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.objectives.masking import Mask, MaskContext, _tree, mask_from_scores
from maskedclip.objectives.masking.ehm import HierarchicalMasker, Options, node_count, node_scores
from maskedclip.parts import read_options
from maskedclip.recipe import load_recipe
from tests.objectives.masking.photographs import boundary, keys_of, photographs, stand_in, within_over_across
from tests.stores import TINY


@pytest.fixture(scope="module")
def attention() -> Tensor:
    """Between the 196 patches of eight phantom photographs."""
    return stand_in(photographs(8, 56))


def _mask(attention: Tensor, progress: float, seed: int = 0, ratio: float = 0.75, **options: Any) -> Mask:
    context = MaskContext(keys_of(len(attention), seed), attention.shape[1], progress)
    return mask_from_scores(HierarchicalMasker(Options(**options)).score_of(attention, context), ratio)


def _nodes(attention: Tensor, count: int, seed: int = 0) -> Tensor:
    noise = torch.rand(attention.shape[:2], generator=torch.Generator().manual_seed(seed))
    return _tree.cut(_tree.grow(_tree.distances(attention, noise)), count)


@pytest.mark.parametrize("progress", [0.0, 0.37, 1.0])
@pytest.mark.parametrize(("ratio", "blend"), [(0.75, False), (0.5, True), (0.03, False), (0.99, True)])
def test_ehm__ratio_is_exact(attention: Tensor, progress: float, ratio: float, blend: bool) -> None:
    hidden = _mask(attention, progress, ratio=ratio, blend=blend).is_hidden().sum(dim=1)
    assert (hidden == 196 - max(1, round((1 - ratio) * 196))).all()


def test_ehm__what_is_hidden_grows_together(attention: Tensor) -> None:
    """Within/across late >= 2 x early and boundary down by 30 % or more; on 16 phantoms 2.8 x and 62 %."""
    figures = []
    for progress in (0.0, 1.0):
        masks = [_mask(attention, progress, seed) for seed in range(6)]
        inside = torch.stack([within_over_across(attention, mask) for mask in masks]).mean()
        figures.append((inside.item(), torch.stack([boundary(mask, 14) for mask in masks]).mean().item()))
    (early, long), (late, short) = figures
    assert late >= 2 * early
    assert short <= 0.7 * long


@pytest.mark.parametrize("progress", [0.4, 0.8, 1.0])
def test_ehm__hides_whole_nodes_and_splits_one_at_most(attention: Tensor, progress: float) -> None:
    keys = keys_of(len(attention), 3)
    count = node_count(196, 8, progress)
    nodes = _nodes(attention, count)
    hidden = mask_from_scores(node_scores(nodes, keys), 0.75).is_hidden()
    for image in range(len(nodes)):
        kinds = [set(hidden[image][nodes[image] == node].tolist()) for node in nodes[image].unique()]
        assert len(kinds) == count
        assert sum(len(kind) == 2 for kind in kinds) <= 1
        assert {True} in kinds


def test_node_count__falls_from_all_patches_to_the_least() -> None:
    counts = [node_count(196, 8, step / 10) for step in range(11)]
    assert counts[0] == 196
    assert counts[-1] == 8
    assert counts == sorted(counts, reverse=True)
    assert node_count(196, 8, 0.5) == round((196 * 8) ** 0.5)
    assert node_count(4, 8, 1.0) == 4  # a grid with fewer patches than nodes stays as it is


def test_tree__is_average_linkage_cut_by_the_order_of_merges(attention: Tensor) -> None:
    for count in (1, 2, 7, 50, 195, 196):
        nodes = _nodes(attention, count)
        assert all(len(row.unique()) == count for row in nodes)
    similar = ((attention + attention.transpose(1, 2)) / 2)[0].double().numpy()
    pairs = (1 - similar / similar.max())[np.triu_indices(196, 1)]
    expected = cut_tree(linkage(pairs, "average"), n_clusters=12)[:, 0]
    found = _nodes(attention, 12)[0].numpy()
    assert len(set(zip(found, expected, strict=True))) == 12  # the same partition under other names


def test_tree__tied_heights_still_give_the_number_of_nodes() -> None:
    """All patches alike: a cut by height would give one node."""
    assert all(len(row.unique()) == 9 for row in _nodes(torch.ones(3, 16, 16), 9))


def test_tree__permuting_the_patches_permutes_partition_and_mask(attention: Tensor) -> None:
    order = torch.randperm(196, generator=torch.Generator().manual_seed(1))
    plain = _nodes(attention, 20)
    moved = _nodes(attention[:, order][:, :, order], 20, seed=1)
    for image in range(len(plain)):
        assert len(set(zip(plain[image][order].tolist(), moved[image].tolist(), strict=True))) == 20
    noise, tie = torch.rand(8, 196), torch.rand(8, 196)
    draw = noise.gather(1, _tree.spokesmen(plain, tie))
    assert torch.equal(noise[:, order].gather(1, _tree.spokesmen(moved, tie[:, order])), draw[:, order])


def test_ehm__constant_attention_is_random_masking() -> None:
    """Every patch is hidden as often as any other, and neighbours together no more than by chance."""
    side, images = 8, 600
    mask = _mask(torch.full((images, side**2, side**2), 0.3), 0.5)
    often = mask.is_hidden().float().mean(dim=0)
    expected = images * 0.75
    chi_square = ((often - 0.75).square() * images**2 / (expected * 0.25)).sum().item()
    assert chi_square < 107  # 64 places, p = 0.0005; exact ratios make it smaller, if anything
    by_chance = 2 * side * (side - 1) * 2 * 48 * 16 / (64 * 63)
    assert boundary(mask, side).mean().item() == pytest.approx(by_chance, rel=0.03)


def test_ehm__early_is_random_and_depends_on_keys_alone(attention: Tensor) -> None:
    masker, keys = HierarchicalMasker(Options()), keys_of(8)
    whole = masker.score_of(attention, MaskContext(keys, 196, 0.6))
    part = masker.score_of(attention[2:5].flip(0), MaskContext(keys[2:5].flip(0), 196, 0.6))
    assert torch.equal(part, whole[2:5].flip(0))
    start = masker.score_of(attention, MaskContext(keys, 196, 0.0))
    assert torch.equal(start, masker.score_of(attention.flip(0), MaskContext(keys, 196, 0.0)))
    assert len({tuple(row.tolist()) for row in start}) == 8


def test_ehm__no_gradient_to_attention_and_no_harm_from_spoilt_values(attention: Tensor) -> None:
    tracked = attention[:2].clone().requires_grad_()
    context = MaskContext(keys_of(2), 196, 0.7)
    masker = HierarchicalMasker(Options())
    assert not masker.score_of(tracked, context).requires_grad
    spoilt = torch.full((2, 196, 196), torch.nan)
    assert torch.isfinite(masker.score_of(spoilt, context)).all()  # the loss tells of it; the masking does not crash


def test_ehm__options() -> None:
    assert not Options().needs_teacher
    recipe = load_recipe(["ehm_style", "tiny"], [*TINY, "--objective.masking_options", "{moving_average: true}"])
    assert recipe.objective.needs_teacher
    with pytest.raises(UserError, match="min_nodes: 1"):
        read_options("masking", "ehm", {"min_nodes": 1})
    with pytest.raises(UserError, match=r"nodes: no such option; did you mean min_nodes\?"):
        read_options("masking", "ehm", {"nodes": 8})
    with pytest.raises(UserError, match="needs the views of a step"):
        HierarchicalMasker(Options()).score(MaskContext(keys_of(2), 16, 0.5))


@pytest.mark.parametrize("ratio", ["0", "1"])
def test_ehm__a_ratio_that_hides_nothing_or_all_is_refused(ratio: str) -> None:
    with pytest.raises(UserError, match=r"objective\.mask_ratio"):
        load_recipe(["ehm_style", "tiny"], [*TINY, "--objective.mask_ratio", ratio])
