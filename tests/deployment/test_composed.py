"""Composed retrieval: the heads' arithmetic, training on frozen features, triplets, saving."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from maskedclip.data.phantom import draw_phantom
from maskedclip.data.store import open_store
from maskedclip.deployment.composed import Combiner, SumHead, contrastive_loss
from maskedclip.deployment.composed_features import image_directions, text_directions
from maskedclip.deployment.composed_phantoms import draw_additions
from maskedclip.deployment.composed_run import learn
from maskedclip.deployment.composed_saving import read_composed, save_composed
from maskedclip.deployment.composed_training import Features, Settings, ranks, reference_first, train_combiner
from maskedclip.deployment.composed_triplets import Triplets, make_triplets, read_triplets, write_triplets
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError

FINDINGS = 6


def _world(eyes: int = 160, width: int = 64, seed: int = 0) -> tuple[Features, Triplets, np.ndarray]:
    """Features of eyes and of each eye with one finding more; words lie elsewhere, and turned, as in a real space."""
    random = np.random.default_rng(seed)
    looks = random.normal(0, 1, (FINDINGS, width)) * 0.9
    words = 0.35 * looks + random.normal(0, 1, (1, width)) + 0.6 * random.normal(0, 1, (FINDINGS, width))
    images, eye_of, reference, target, captions = [], [], [], [], []
    for eye in range(eyes):
        base = random.normal(0, 1, width)
        first = len(images)
        images.append(base)
        for finding in range(FINDINGS):
            reference.append(first)
            target.append(len(images))
            captions.append(f"now with {finding}")
            images.append(base + looks[finding] + random.normal(0, 0.15, width))
        eye_of += [eye] * (1 + FINDINGS)
    triplets = Triplets(
        reference=np.array(reference),
        target=np.array(target),
        captions=tuple(captions),
        by_labels=np.zeros(len(target), bool),
        state=np.full(len(images), -1),
    )
    number = {f"now with {finding}": finding for finding in range(FINDINGS)}
    features = Features(np.array(images, np.float32), words.astype(np.float32), number)
    return features, triplets, np.array(eye_of)[triplets.target]


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    features, triplets, eye = _world()
    parts = {"train": triplets.on(eye < 100), "val": triplets.on((eye >= 100) & (eye < 120))}
    head, record = train_combiner(features, parts["train"], parts["val"], Settings(lr=1e-3))
    return {"features": features, "test": triplets.on(eye >= 120), "head": head, "record": record, **parts}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_heads__give_unit_vectors_and_shares_between_0_and_1(seed: int, length: float) -> None:
    torch.manual_seed(seed)
    image, text = length * torch.randn(5, 12), torch.randn(5, 12)
    head = Combiner(12).eval()
    with torch.no_grad():
        for composed in (SumHead().compose(image, text), head.compose(image, text)):
            assert torch.allclose(composed.norm(dim=1), torch.ones(5), atol=1e-5)
        share = head.parts(image, text)[1]
    assert share.shape == (5, 1)
    assert ((share >= 0) & (share <= 1)).all()
    if length < 10:
        assert ((share > 0) & (share < 1)).all()


def test_combiner__is_the_papers_formula_and_widths() -> None:
    torch.manual_seed(3)
    head = Combiner(10).eval()
    assert (head.projection, head.hidden, head.dropout) == (40, 80, 0.5)
    image, text = torch.randn(4, 10), torch.randn(4, 10)
    weights = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    i, t = image.double().numpy(), text.double().numpy()
    both = np.maximum(np.concatenate([linear("text_projection", t), linear("image_projection", i)], axis=1), 0)
    added = linear("output", np.maximum(linear("joint", both), 0))
    share = 1 / (1 + np.exp(-linear("share_output", np.maximum(linear("share_hidden", both), 0))))
    expected = added + share * t + (1 - share) * i
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(head.compose(image, text).detach().numpy(), expected, atol=1e-6)
    head.train()
    assert not torch.equal(head.compose(image, text), head.compose(image, text))  # dropout


def test_combiner__without_its_addition_lies_between_image_and_text() -> None:
    torch.manual_seed(1)
    head = Combiner(8).eval()
    image, text = torch.randn(6, 8), torch.randn(6, 8)
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias.zero_()
        added, share = head.parts(image, text)
        assert not added.any()
        on_segment = functional.normalize(image + share * (text - image), dim=-1)
        assert torch.allclose(head.compose(image, text), on_segment, atol=1e-6)
        for bias, end in ((-1e4, image), (1e4, text)):
            head.share_output.bias.fill_(bias)
            assert torch.equal(head.compose(image, text), functional.normalize(end, dim=-1))


def test_loss__is_cross_entropy_from_queries_to_targets() -> None:
    torch.manual_seed(0)
    queries, targets = functional.normalize(torch.randn(5, 7), dim=-1), 3 * torch.randn(5, 7)
    q, t = queries.double().numpy(), targets.double().numpy()
    logits = 100 * q @ (t / np.linalg.norm(t, axis=1, keepdims=True)).T
    shifted = logits - logits.max(axis=1, keepdims=True)
    rows = shifted.diagonal() - np.log(np.exp(shifted).sum(axis=1))
    assert float(contrastive_loss(queries, targets)) == pytest.approx(-rows.mean(), rel=1e-5)
    right = torch.eye(5, dtype=torch.bool)
    right[0, 3] = True
    shifted[0, 3] = -np.inf
    rows = shifted.diagonal() - np.log(np.exp(shifted).sum(axis=1))
    assert float(contrastive_loss(queries, targets, right)) == pytest.approx(-rows.mean(), rel=1e-5)


def test_training__combiner_beats_the_sum_and_the_sum_each_part(trained: dict[str, Any]) -> None:
    at_1 = {
        name: float((ranks(way, trained["features"], trained["test"]) == 1).mean())
        for name, way in {"combiner": trained["head"], "sum": SumHead(), "image": "image", "text": "text"}.items()
    }
    assert at_1["combiner"] > at_1["sum"] + 0.1, at_1  # 0.9 and 0.5 here
    assert at_1["sum"] > max(at_1["image"], at_1["text"]) + 0.1, at_1
    assert trained["record"]["loss_last"] < trained["record"]["loss_first"]
    assert not trained["head"].training


def test_training__without_words_the_reference_comes_back(trained: dict[str, Any]) -> None:
    features, test = trained["features"], trained["test"]
    assert reference_first("image", features, test) == 1
    assert reference_first(trained["head"], features, test) < 0.3  # 0.14 here
    assert (ranks("image", features, test, leave_out=False) > 1).all()


def test_training__depends_on_the_seed_alone(trained: dict[str, Any]) -> None:
    short = Settings(steps=12)
    state = torch.get_rng_state()
    one, two = (train_combiner(trained["features"], trained["train"], None, short)[0] for _ in range(2))
    other = train_combiner(trained["features"], trained["train"], None, replace(short, seed=1))[0]
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.output.weight, other.output.weight)
    assert torch.equal(state, torch.get_rng_state())


def test_ranks__are_those_of_a_plain_search(trained: dict[str, Any]) -> None:
    features, test = trained["features"], trained["test"].on(np.arange(20))
    rows = np.unique(np.concatenate([test.reference, test.target]))
    found = ranks(trained["head"], features, test)
    image, text, _ = features.of(test)
    queries = trained["head"].compose(image, text).detach().double().numpy()
    unit = features.images.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for place in range(len(test)):
        order = sorted(
            (row for row in rows if row != test.reference[place]), key=lambda row: -queries[place] @ unit[row]
        )
        assert found[place] == 1 + order.index(test.target[place])


class _Store:
    """What the triplets ask of a store."""

    def __init__(self, labels: dict[str, list[float]], patients: list[str], splits: list[str]) -> None:
        self.labels = {name: np.array(values, np.float32) for name, values in labels.items()}
        self.patients, self.splits = np.array(patients, object), np.array(splits)
        self.ids = [f"r{row}" for row in range(len(patients))]

    def __len__(self) -> int:
        return len(self.ids)


def _pairs(triplets: Triplets) -> set[tuple[int, str, int]]:
    return set(zip(triplets.reference.tolist(), triplets.captions, triplets.target.tolist(), strict=True))


def test_triplets__differ_by_one_label_and_prefer_the_same_patient() -> None:
    nan = float("nan")
    store: Any = _Store(
        {
            "drusen": [0, 1, 1, 1, nan, 0],
            "hard_exudate": [0, 0, 0, 1, 0, 0],
            "normal": [1, 0, 0, 0, 1, 1],
        },
        ["a", "a", "b", "b", "c", "d"],
        ["train"] * 5 + ["test"],
    )
    made = make_triplets(store)
    assert _pairs(made) == {
        (0, "now with drusen", 1),  # of the same patient, so row 2 is left
        (2, "now with hard exudate", 3),
        (1, "now with hard exudate", 3),
    }
    by_labels = dict(zip(made.reference.tolist(), made.by_labels.tolist(), strict=True))
    assert by_labels == {0: False, 2: False, 1: True}
    both = make_triplets(store, removed=True)
    assert (3, "now without hard exudate", 2) in _pairs(both)
    assert _pairs(made) <= _pairs(both)
    rows = np.arange(6)
    right = made.right(rows)
    assert right[made.reference == 1].tolist() == [[False, False, False, True, False, False]]
    with pytest.raises(UserError, match="differ by just one"):
        make_triplets(_Store({"drusen": [0, 1]}, ["a", "b"], ["train", "test"]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no label of the store"):
        make_triplets(store, ["cupping"])


def test_triplets__any_row_with_the_labels_is_right_across_patients() -> None:
    store: Any = _Store({"drusen": [0, 1, 1, 0]}, ["a", "b", "c", "d"], ["train"] * 4)
    made = make_triplets(store, targets=1)
    assert len(made) == 2
    assert made.by_labels.all()
    assert (made.right(np.arange(4))[:, [1, 2]]).all()
    assert not made.right(np.arange(4))[:, [0, 3]].any()
    again = make_triplets(store, targets=1)
    assert _pairs(made) == _pairs(again)


def test_triplets__are_read_as_they_were_written(trained_store: Path, tmp_path: Path) -> None:
    store = open_store(trained_store)
    made = make_triplets(store)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        write_triplets(file, made, store.ids)
    assert _pairs(read_triplets(tmp_path / "t.csv", store)) == _pairs(made)


def test_phantoms__are_the_same_eye_with_one_finding_more() -> None:
    image, additions = draw_additions(5, 3, "left", 64)
    plain = draw_phantom(5, 3, "left", 64)
    assert np.array_equal(image, plain.image)
    names = [entry.finding for entry in additions]
    assert len(names) == len(set(names)) >= 3
    assert not any(plain.findings[name] for name in names)
    for entry in additions:
        changed = np.abs(entry.image.astype(int) - image.astype(int)).max(axis=2) > 12
        assert changed.any(), entry.finding
        if entry.finding in ("haemorrhage", "hard_exudate", "cotton_wool_spot", "drusen"):
            assert changed.mean() < 0.4, entry.finding  # the rest stays where it is


def test_features__are_the_projections_before_unit_length(trained_model: Model) -> None:
    words = ["Normal fundus.", "A red lesion."]
    raw = text_directions(trained_model, words)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 1e-3
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.allclose(unit, trained_model.encode_text(words), atol=1e-5)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = trained_model.encode_images(images)
    raw = image_directions(trained_model, found["bridge"])
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.allclose(unit, found["projected"], atol=1e-5)


def test_learn__leaves_the_encoders_as_they_were(trained_store: Path, trained_model: Model) -> None:
    before = {name: value.clone() for name, value in trained_model.module.state_dict().items()}
    store = open_store(trained_store)
    done = learn(trained_model, store, make_triplets(store), settings=Settings(steps=5))
    after = trained_model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in trained_model.module.parameters())
    assert done.report is not None
    assert set(done.report["recall"]) == {"combiner", "sum", "image", "text"}
    assert {"combiner - sum", "combiner - image", "combiner - text"} == set(done.report["differences"])
    for row in done.report["recall"].values():
        assert all(0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1 for entry in row.values())


def test_saving__gives_the_same_head_and_refuses_another_model(trained_model: Model, tmp_path: Path) -> None:
    head = Combiner(16, projection=20, hidden=24, dropout=0.25).eval()
    save_composed(tmp_path / "head", head, trained_model, {"of": "a test"})
    again = read_composed(tmp_path / "head", trained_model)
    image, text = torch.randn(3, 16), torch.randn(3, 16)
    assert torch.equal(head.compose(image, text), again.compose(image, text))
    save_composed(tmp_path / "sum", SumHead(), trained_model, {})
    assert isinstance(read_composed(tmp_path / "sum", trained_model), SumHead)
    other: Any = SimpleNamespace(fingerprint="f" * 16)
    with pytest.raises(UserError, match="was made for the model"):
        read_composed(tmp_path / "head", other)
    with pytest.raises(UserError, match="exists"):
        save_composed(tmp_path / "head", head, trained_model, {})
    tensors = tmp_path / "head" / "composed.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        read_composed(tmp_path / "head", trained_model)
    about = tmp_path / "sum" / "composed.json"
    for text, told in (("{", "is damaged"), ('{"format": 2}', "update maskedclip"), ("[]", "is damaged")):
        about.write_text(text)
        with pytest.raises(UserError, match=told):
            read_composed(tmp_path / "sum", trained_model)
