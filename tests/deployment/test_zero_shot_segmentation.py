"""Zero-shot segmentation from proposals: the arithmetic of zsseg, masked crops, and `segment --method proposals`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit

from maskedclip import cli_segment
from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.heads import Head
from maskedclip.deployment.heads_saving import save_head
from maskedclip.deployment.maps_dense import dense_features
from maskedclip.deployment.maps_target import text_directions
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.proposals import PROPOSERS, mask_logits, propose
from maskedclip.deployment.proposals_crops import binary_masks, fill_colour, filled, masked_crops
from maskedclip.deployment.segment import Segmenter, Settings
from maskedclip.deployment.zero_shot_segmentation import (
    ProposalSegmenter,
    aggregate,
    ensemble,
    region_means,
    text_probabilities,
)
from maskedclip.errors import UserError
from maskedclip.models.features import to_input
from tests.cli_case import refused, status
from tests.deployment.segmentation_case import COLOURS, SIDE, spots, train, write_store

NAMES = list(COLOURS)
LABELS = [f"{name} lesion" for name in NAMES]


@pytest.fixture(scope="module")
def spotted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model tells five colours of spots apart."""
    folder = tmp_path_factory.mktemp("spotted")
    train(folder / "run", write_store(folder / "store"))
    return folder / "run"


@pytest.fixture(scope="module")
def spotted(spotted_run: Path) -> Model:
    """Its model."""
    return load(spotted_run, device="cpu")


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_aggregate__perfect_masks_and_answers_give_the_truth() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, (9, 11))
    classes = np.array([3, 0, 4, 1, 2])
    logits = mask_logits(np.stack([truth == number for number in classes]))
    scores = aggregate(np.eye(5)[classes], logits)
    assert np.array_equal(scores.argmax(axis=0), truth)
    assert np.allclose(scores[classes], expit(logits), atol=1e-6)  # one proposal a class: a lookup
    soft, probabilities = random.normal(0, 3, (7, 4, 6)), random.random((7, 3))
    slow = sum(probabilities[q, :, None, None] / (1 + np.exp(-soft[q])) for q in range(7))
    assert np.allclose(aggregate(probabilities, soft), slow, atol=1e-6)


def test_ensemble__gives_weight_to_who_knows_better() -> None:
    random = np.random.default_rng(1)
    head, clip = random.uniform(0.01, 1, (6, 4)), random.uniform(0.01, 1, (6, 4))
    seen = np.array([True, False, True, False])
    whole = ensemble(head, clip, seen=seen, weight=1)
    assert np.allclose(whole[:, seen], head[:, seen])
    assert np.allclose(whole[:, ~seen], clip[:, ~seen])
    assert np.allclose(ensemble(head, clip, seen=seen, weight=0.5), ensemble(clip, head, seen=seen, weight=0.5))
    usual = ensemble(head, clip, seen=seen)
    assert np.allclose(usual[:, 0], head[:, 0] ** 0.8 * clip[:, 0] ** 0.2)
    assert np.allclose(usual[:, 1], head[:, 1] ** 0.2 * clip[:, 1] ** 0.8)
    assert np.array_equal(ensemble(head, clip, seen=seen, weight=0), clip)
    assert np.allclose(ensemble(head, clip), head**0.2 * clip**0.8)  # no flag: all unseen
    valid = np.array([True, False, True, True, True, True])
    assert np.allclose(ensemble(head, clip, weight=0.8, valid=valid)[1], head[1] ** 0.2)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(1.01, 2), st.floats(0, 1), st.booleans())
def test_ensemble__rises_with_either_opinion(head: float, clip: float, more: float, weight: float, seen: bool) -> None:
    def value(a: float, b: float) -> float:
        return float(ensemble(np.array([[a]]), np.array([[b]]), seen=[seen], weight=weight)[0, 0])

    assert value(min(head * more, 1), clip) >= value(head, clip) - 1e-12
    assert value(head, min(clip * more, 1)) >= value(head, clip) - 1e-12


def test_text_probabilities__are_a_softmax_of_scaled_cosines() -> None:
    unit = np.array([[1.0, 0.0], [0.6, 0.8]])
    found = text_probabilities(unit[:1], unit)
    assert found[0] == pytest.approx([1 / (1 + np.exp(-40)), np.exp(-40) / (1 + np.exp(-40))])
    assert text_probabilities(unit, unit[:1]).tolist() == [[1.0], [1.0]]  # one label alone


# --- crops -----------------------------------------------------------------------------------------------------------


def test_crops__outside_the_mask_is_the_fill_and_empty_masks_are_dropped() -> None:
    picture, masks = spots(3, ["red", "blue"], 64)
    fill = fill_colour((0.485, 0.456, 0.406))
    assert fill.tolist() == [124, 116, 104]
    image = _tensor(picture)
    cut = filled(image, masks["red"], fill)
    assert (cut[:, torch.from_numpy(~masks["red"])] == torch.from_numpy(fill)[:, None]).all()
    assert torch.equal(cut[:, torch.from_numpy(masks["red"])], image[:, torch.from_numpy(masks["red"])])
    square = np.zeros((64, 64), bool)
    square[10:42, 20:52] = True
    square[10:20, 20:30] = False
    crops, valid = masked_crops(image, np.stack([square, np.zeros_like(square), masks["blue"]]), fill, 32)
    assert valid.tolist() == [True, False, True]
    assert crops.shape == (2, 3, 32, 32)
    assert torch.equal(crops[0], filled(image, square, fill)[:, 10:42, 20:52])  # the tight box, nothing resampled
    none, valid = masked_crops(image, np.zeros((2, 64, 64), bool), fill, 32)
    assert none.shape == (0, 3, 32, 32)
    assert not valid.any()


def test_fill__is_nothing_to_the_encoder(spotted: Model) -> None:
    fill = torch.from_numpy(fill_colour(spotted.preprocessing.mean))
    assert to_input(fill[None, :, None, None].expand(1, 3, 4, 4), spotted.preprocessing).abs().max() < 0.01


def test_crops__tell_regions_apart_that_the_whole_picture_cannot(spotted: Model) -> None:
    directions = text_directions(spotted, LABELS)
    fill = fill_colour(spotted.preprocessing.mean)
    hits: dict[str, list[tuple[bool, bool]]] = {name: [] for name in NAMES}
    for row in range(1000, 1060):
        pair = [NAMES[row % 5], NAMES[(row + 1 + row // 5 % 4) % 5]]
        picture, masks = spots(row, pair)
        crops, _ = masked_crops(_tensor(picture), np.stack([masks[name] for name in pair]), fill, SIDE)
        by_crop = (spotted.encode_images(crops)["projected"] @ directions.T).argmax(axis=1)
        whole = int((spotted.encode_images(_tensor(picture)[None])["projected"] @ directions.T)[0].argmax())
        for place, name in enumerate(pair):
            hits[name].append((NAMES[by_crop[place]] == name, NAMES[whole] == name))
    for name, pairs in hits.items():
        crop, whole = np.mean(pairs, axis=0)
        assert crop > whole, (name, crop, whole)


# --- proposals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_propose__finds_parts_of_like_tokens(proposer: Any) -> None:
    random = np.random.default_rng(0)
    truth = np.zeros((8, 8), int)
    truth[:, 4:], truth[5:, :] = 1, 2
    tokens = (random.normal(0, 1, (3, 24)) * 3)[truth] + random.normal(0, 0.1, (8, 8, 24))
    logits = propose(tokens.astype(np.float32), 3, proposer=proposer)
    assert logits.shape == (3, 8, 8)
    parts = {mask.tobytes() for mask in logits > 0}
    assert parts == {(truth == number).tobytes() for number in range(3)}
    assert np.array_equal(logits, propose(tokens.astype(np.float32), 3, proposer=proposer))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5), st.sampled_from(PROPOSERS))
def test_propose__covers_what_is_inside_once(seed: int, count: int, rows: int, columns: int, proposer: Any) -> None:
    random = np.random.default_rng(seed)
    inside = random.random((rows, columns)) < 0.7
    tokens = random.normal(0, 1, (rows, columns, 6)).astype(np.float32)
    logits = propose(tokens, count, proposer=proposer, inside=inside)
    assert len(logits) <= min(count, inside.sum())
    assert np.array_equal((logits > 0).sum(axis=0), inside.astype(int))


def test_propose__of_nothing_and_of_one_colour() -> None:
    tokens = np.ones((4, 4, 8), np.float32)
    assert propose(tokens, 5).shape == (1, 4, 4)
    assert propose(tokens, 5, inside=np.zeros((4, 4), bool)).shape == (0, 4, 4)
    with pytest.raises(UserError, match="below 1"):
        propose(tokens, 0)
    with pytest.raises(UserError, match="none of kmeans, slic"):
        propose(tokens, 3, proposer="maskformer")  # type: ignore[arg-type]


def test_segmenter__without_proposals_scores_nothing(spotted: Model) -> None:
    directions = text_directions(spotted, LABELS)
    namer = ProposalSegmenter(spotted, LABELS, directions, directions[0])
    found = namer.segment(_tensor(spots(1, ["red"])[0]), None, np.zeros((0, 4, 4), np.float32))
    assert found.scores.shape == (5, 4, 4)
    assert not found.scores.any()
    empty = np.full((2, 4, 4), -6, np.float32)  # masks that hold no pixel are dropped
    found = namer.segment(_tensor(spots(1, ["red"])[0]), None, empty)
    assert np.isfinite(found.scores).all()
    assert not found.scores.any()


def test_segmenter__names_true_masks_rightly(spotted: Model) -> None:
    directions = text_directions(spotted, LABELS)
    namer = ProposalSegmenter(spotted, LABELS, directions, None)
    right = []
    for row in range(2000, 2020):
        pair = [NAMES[row % 5], NAMES[(row + 2) % 5]]
        picture, masks = spots(row, pair)
        found = namer.segment(_tensor(picture), None, mask_logits(np.stack([masks[name] for name in pair])))
        assert found.background is None
        answer = found.scores.argmax(axis=0)
        right += [(answer[masks[name]] == NAMES.index(name)).mean() for name in pair]
    assert np.mean(right) > 0.85  # 0.95 here, chance 0.2


def _head(model: Model, labels: tuple[str, ...], output: str = "encoder") -> Classifier:
    width = model.encode_images(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))[output].shape[1]
    random = np.random.default_rng(0)
    count = len(labels)
    head = Head(
        labels=labels,
        kind="independent",
        method="linear",
        output=output,
        weight=random.normal(0, 0.1, (count, width)),
        bias=np.zeros(count),
        slopes=np.ones(count),
        intercepts=np.zeros(count),
        calibrated=np.zeros(count, bool),
        cuts=np.zeros(count),
    )
    return Classifier(head, model)


@pytest.mark.parametrize("output", ["encoder", "projected"])
def test_segmenter__a_head_has_its_say_on_its_own_labels(spotted: Model, output: str) -> None:
    picture, _ = spots(5, ["red", "green"])
    directions = text_directions(spotted, LABELS)
    head = _head(spotted, ("red lesion", "something else"), output)
    dense = dense_features(spotted, _tensor(picture)[None])
    logits = propose(dense.tokens[0], 4)
    arguments = (spotted, LABELS, directions, None)
    found = ProposalSegmenter(*arguments, head=head, weight=1).segment(_tensor(picture), dense, logits)
    plain = ProposalSegmenter(*arguments).segment(_tensor(picture), dense, logits)
    means = region_means(dense.tokens[0] if output == "encoder" else dense.embeddings[0], logits)
    if output == "projected":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(found.probabilities[:, 0], head.probabilities({output: means})[:, 0], atol=1e-6)
    assert np.allclose(found.probabilities[:, 1:], plain.probabilities[:, 1:])
    off = ProposalSegmenter(*arguments, head=head, weight=0).segment(_tensor(picture), dense, logits)
    assert np.array_equal(off.probabilities, plain.probabilities)


# --- the verb --------------------------------------------------------------------------------------------------------


def test_segment__shares_the_picture_out_among_labels(spotted: Model) -> None:
    picture, _ = spots(7, ["red", "blue"], 64)
    plain = Segmenter(spotted, Settings(labels=LABELS, method="proposals", proposals=6, tiles=[2])).find(picture)
    assert plain.maps.shape == (5, 8, 8)
    masks = np.stack([plain.mask_on_photograph(place) for place in range(5)])
    assert (masks.sum(axis=0) <= 1).all()
    everything = Settings(labels=LABELS, method="proposals", proposals=6, tiles=[2], threshold=0)
    found = Segmenter(spotted, everything).find(picture)
    whole = np.stack([found.mask_on_photograph(place) for place in range(5)])
    assert (whole.sum(axis=0) == 1)[found.visible_on_photograph()].mean() > 0.99  # as the paper: none is left out
    assert (masks <= whole).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (40, 3)])
def test_segment__a_picture_smaller_than_the_patch_grid(spotted: Model, shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 120, np.uint8)
    found = Segmenter(spotted, Settings(labels=["red lesion"], method="proposals")).find(picture)
    assert np.isfinite(found.maps).all()
    assert found.mask_on_photograph(0).shape == shape


def test_segment__writes_them_and_takes_one_label(
    spotted: Model, spotted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = tmp_path / "eye.png"
    Image.fromarray(spots(9, ["red", "white"], 48)[0]).save(eye)
    save_head(tmp_path / "head", _head(spotted, ("red lesion",)).head, spotted, base=spotted.fingerprint)
    asked = ("segment", spotted_run, eye, "--method", "proposals", "--proposals", 5)
    base = (*asked, "--labels", "red lesion", "--out")
    assert status(*base, tmp_path / "one", "--masks", "--maps", "npy") == 0
    assert "next: open" in capsys.readouterr().out
    summary = json.loads((tmp_path / "one" / "segments.json").read_text())
    assert summary["method"] == "proposals"
    assert (tmp_path / "one" / "eye" / "masks" / "red_lesion.png").is_file()
    assert status(*asked, "--head", tmp_path / "head", "--out", tmp_path / "two", "--proposer", "slic", "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"][0]["label"] == "red lesion"
    for number, (options, told) in enumerate(
        [
            (("--against-normal",), "leave it out"),
            (("--proposals", 0), "below 1"),
            (("--head", tmp_path / "head", "--ensemble-weight", 2), "outside 0"),
            (("--reference", eye), "--reference"),
            (("--prompts", tmp_path / "none.safetensors"), "no such file"),
            (("--head", tmp_path / "head", "--size", 64), "leave --size away"),
        ]
    ):
        assert told in refused(capsys, *base, tmp_path / f"no{number}", *options)
        assert not (tmp_path / f"no{number}").exists()
    other = json.loads((tmp_path / "head" / "head.json").read_text())
    (tmp_path / "head" / "head.json").write_text(json.dumps(other | {"model": "0" * 16}))
    assert "was made for the model" in refused(capsys, *base, tmp_path / "o", "--head", tmp_path / "head")


def test_proposers__are_the_same_on_the_command_line() -> None:
    assert cli_segment.PROPOSERS == PROPOSERS


def test_binary_masks__are_cut_at_one_half() -> None:
    logits = np.array([[[2.0, -2.0], [2.0, -2.0]], [[-1.0, -1.0], [-1.0, -1.0]]], np.float32)
    masks = binary_masks(logits, 8)
    assert masks[0, :, :4].all()
    assert not masks[0, :, 4:].any()
    assert not masks[1].any()
    assert binary_masks(logits[:0], 8).shape == (0, 8, 8)
