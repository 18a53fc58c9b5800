"""Privileged text: what it reads in training, what it leaves alone, and that inference reads images alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from maskedclip.data.label_columns import resolve_labels
from maskedclip.data.loader import StepDataset
from maskedclip.data.pairs import pairs_table
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.deployment.classifier import read_classifier
from maskedclip.deployment.heads_privileged import read_privileged_head
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.targets.privileged_text import PrivilegedText, text_targets
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import SENTENCES, TINY, make_store

PLAIN = ["--model.lora_rank", "0", "--model.projection_norm", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("privileged") / "s")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """Two texts for three of four images, whatever they show."""
    import pyarrow.parquet as pq

    store = open_store(folder)
    rows = np.arange(len(store))
    index = np.stack([rows % 4, (rows + 1) % 4], axis=1)
    index[rows % 4 == 3] = -1
    score = np.tile(np.asarray([0.5, 0.25], np.float32), (len(rows), 1))
    path = folder.parent / "pairs.parquet"
    pq.write_table(pairs_table(store, rows, SENTENCES, index, score, {"top": 2}), path)
    return path


def _recipe(folder: Path, pairs: Path | None, *options: str) -> Recipe:
    given = [] if pairs is None else ["--data.pairs", str(pairs)]
    return resolve_labels(load_recipe(["clipit_style", "tiny"], [*TINY, *PLAIN, *given, *options]), open_store(folder))


def _parts(folder: Path, recipe: Recipe) -> tuple[PretrainingObjective, Batch]:
    store = open_store(folder)
    model, tokenizer = build_model(recipe, SENTENCES)
    host = StepDataset(store, make_pools(store, recipe), recipe, tokenizer)[0]
    return build_objective(recipe, model), Batch.from_host(host)


def _views(objective: PretrainingObjective, batch: Batch) -> Views:
    return objective._views(batch, 0.5)


def _term(objective: PretrainingObjective) -> PrivilegedText:
    term = objective.terms["privileged_text"]
    assert isinstance(term, PrivilegedText)
    return term


def test_targets__are_the_own_text_or_the_retrieved_one(folder: Path, pairs: Path) -> None:
    objective, batch = _parts(folder, _recipe(folder, pairs))
    assert batch.text_index is not None
    assert batch.retrieved_index is not None
    assert batch.retrieved_ids is not None
    assert batch.retrieved_mask is not None
    assert (batch.retrieved_index[: batch.num_paired] == -1).all()
    target, known = text_targets(_views(objective, batch), moves=False)
    text_encoder = objective.model.text_encoder
    assert text_encoder is not None
    with torch.no_grad():
        own = text_encoder(batch.text_ids, batch.text_mask)[batch.text_index]
        found = text_encoder(batch.retrieved_ids, batch.retrieved_mask)
    torch.testing.assert_close(target[: batch.num_paired], own)
    for place in range(batch.num_paired, len(batch.image)):
        index = int(batch.retrieved_index[place])
        assert bool(known[place]) == (index >= 0)
        torch.testing.assert_close(target[place], found[index] if index >= 0 else torch.zeros_like(target[place]))
    assert 0 < int(known[batch.num_paired :].sum()) < len(batch.image) - batch.num_paired
    assert not target.requires_grad


def test_loss__is_labels_and_distance_of_the_texts_there_are(folder: Path, pairs: Path) -> None:
    recipe = _recipe(folder, pairs, "--objective.terms", '{"privileged_text": {"cosine_weight": 0.5}}')
    objective, batch = _parts(folder, recipe)
    assert batch.labels is not None
    batch.labels[1, 0] = float("nan")
    views = _views(objective, batch)
    losses, report = _term(objective)(views)
    with torch.no_grad():
        head = _term(objective).head
        logits, predicted = head(objective.model.pool(objective.model.encoder(views.image)))
        target, has_text = text_targets(views, moves=False)
        plain = functional.binary_cross_entropy_with_logits(logits, batch.labels.nan_to_num(0), reduction="none")
        label = plain[~batch.labels.isnan()].mean()
        cosine = (functional.normalize(predicted[has_text], dim=1) * target[has_text]).sum(dim=1).mean()
        known = ~batch.labels[has_text].isnan()
        own = functional.binary_cross_entropy_with_logits(
            head.text_branch(target)[has_text], batch.labels[has_text].nan_to_num(0), reduction="none"
        )[known].mean()
    expected = label + 0.5 * (1 - cosine) + own
    assert losses["privileged_text"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert report["privileged_cosine"].item() == pytest.approx(cosine.item(), rel=1e-4)


@pytest.mark.parametrize("literal", [False, True])
def test_loss__moves_the_text_only_where_it_is_literal(folder: Path, pairs: Path, literal: bool) -> None:
    options = json.dumps({"privileged_text": {"literal": literal}})
    objective, batch = _parts(folder, _recipe(folder, pairs, "--objective.terms", options))
    losses, _ = _term(objective)(_views(objective, batch))
    losses["privileged_text"].backward()
    text_encoder = objective.model.text_encoder
    assert text_encoder is not None
    moved = [p.grad is not None and bool((p.grad != 0).any()) for p in text_encoder.parameters()]
    assert any(moved) == literal
    for module in (objective.model.encoder, _term(objective).head):
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())


def test_loss__leaves_the_shared_text_with_its_gradient(folder: Path, pairs: Path) -> None:
    """Contrast reads the same embedding, whichever loss asks first."""
    objective, batch = _parts(folder, _recipe(folder, pairs))
    views = _views(objective, batch)
    _term(objective)(views)
    assert views.text_embedding.requires_grad


def test_loss__does_not_depend_on_the_order_of_the_batch(folder: Path, pairs: Path) -> None:
    objective, batch = _parts(folder, _recipe(folder, pairs))
    paired = batch.num_paired
    order = torch.cat([torch.randperm(paired), paired + torch.randperm(len(batch.image) - paired)])
    moved = replace(
        batch,
        **{
            name: getattr(batch, name)[order]
            for name in ("image", "keys", "labels", "retrieved_index", "retrieved_score")
        },
        text_index=batch.text_index[order[:paired]],  # type: ignore[index]
        text_key=batch.text_key[order[:paired]],  # type: ignore[index]
    )
    with torch.no_grad():
        first, second = (_term(objective)(_views(objective, each))[0]["privileged_text"] for each in (batch, moved))
    assert second.item() == pytest.approx(first.item(), rel=1e-5)


def test_inference__reads_no_text(folder: Path, pairs: Path) -> None:
    """Swapping all texts changes the loss and leaves the logits as they are, bit by bit."""
    objective, batch = _parts(folder, _recipe(folder, pairs))
    assert batch.text_ids is not None
    assert batch.retrieved_ids is not None
    swapped = replace(batch, text_ids=batch.text_ids.flip(0, 1), retrieved_ids=batch.retrieved_ids.flip(0, 1))
    logits, losses = [], []
    with torch.no_grad():
        for each in (batch, swapped):
            views = _views(objective, each)
            logits.append(_term(objective).head(PrivilegedText.features(views))[0])
            losses.append(_term(objective)(views)[0]["privileged_text"].item())
    assert torch.equal(logits[0], logits[1])
    assert abs(losses[0] - losses[1]) > 1e-4


def test_build__refuses_what_it_cannot_learn(folder: Path, pairs: Path) -> None:
    for options, told in (
        (["--data.labels", "[]"], "data.labels: objective.terms.privileged_text learns labels"),
        (["--objective.clip_weight", "0"], "nothing trains the space of the texts"),
        (["--training.micro_batches", "2"], "training.micro_batches: 2"),
    ):
        with pytest.raises(UserError, match=told):
            _parts(folder, _recipe(folder, pairs, *options))
    with pytest.raises(UserError, match=r"cosine_weight: -1.0 is negative"):
        load_recipe(["clipit_style"], ["--objective.terms", '{"privileged_text": {"cosine_weight": -1}}'])


@pytest.fixture(scope="module")
def run(folder: Path, pairs: Path) -> Path:
    """Sixty steps; long enough for held-out texts to be predicted better than at first."""
    recipe = load_recipe(
        ["clipit_style", "tiny"],
        [*TINY, "--model.lora_rank", "0", "--data.pairs", str(pairs), "--training.steps", "60"],
    )
    path = folder.parent / "run"
    pretrain(recipe, folder, path)
    return path


def test_training__held_out_texts_are_predicted_better(folder: Path, run: Path) -> None:
    """FAMILY.md, A: the mean cos(t, t_hat) on images that training did not see rises from the start."""
    store = open_store(folder)
    rows = np.flatnonzero(store.splits == "test")

    def closeness(path: Path) -> float:
        model = load(path, device="cpu")
        from maskedclip.models.saving import read_decoders
        from maskedclip.objectives.privileged import PrivilegedHead

        prefix = "privileged_text.head."
        saved = {k.removeprefix(prefix): v for k, v in read_decoders(path / "model").items() if k.startswith(prefix)}
        pooled = torch.from_numpy(model.features(store, rows)["encoder"])
        with torch.no_grad():
            _, predicted = PrivilegedHead.of_tensors(saved)(pooled)
        true = torch.from_numpy(model.encode_text([store.texts[row] or "" for row in rows]))
        return functional.cosine_similarity(predicted, true, dim=1).mean().item()

    start = folder.parent / "start"
    recipe = load_recipe(["clipit_style", "tiny"], [*TINY, "--model.lora_rank", "0", "--training.steps", "0"])
    pretrain(recipe, folder, start)
    assert closeness(run) > closeness(start) + 0.2


def test_head__is_saved_and_answers_as_it_was_trained(folder: Path, run: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    classifier = read_privileged_head(run, store)
    assert classifier.labels == ("red", "green")
    assert classifier.head.method == "privileged_text"
    classifier.save(tmp_path / "head")
    again = read_classifier(tmp_path / "head", load(run, device="cpu"))
    from maskedclip.models.saving import read_decoders
    from maskedclip.objectives.privileged import PrivilegedHead

    prefix = "privileged_text.head."
    saved = {k.removeprefix(prefix): v for k, v in read_decoders(run / "model").items() if k.startswith(prefix)}
    features = load(run, device="cpu").features(store, np.arange(6))
    with torch.no_grad():
        logits, _ = PrivilegedHead.of_tensors(saved)(torch.from_numpy(features["encoder"]))
    np.testing.assert_allclose(again.scores(features), logits.numpy(), atol=1e-4)
    one = read_privileged_head(run, store, labels=["green"])
    np.testing.assert_allclose(one.scores(features)[:, 0], logits[:, 1].numpy(), atol=1e-4)
    with pytest.raises(UserError, match="--labels: blue was not learnt by the run; it knows red, green"):
        read_privileged_head(run, store, labels=["blue"])


def test_head__of_another_recipe_is_one_line(folder: Path, tmp_path: Path) -> None:
    pretrain(load_recipe(["clip", "tiny"], [*TINY, "--training.steps", "0"]), folder, tmp_path / "clip")
    with pytest.raises(UserError, match="holds no head of the loss privileged_text"):
        read_privileged_head(tmp_path / "clip", open_store(folder))
