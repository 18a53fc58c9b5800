import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation.compare import compare_results
from maskedclip.evaluation.compare_groups import GroupComparison, compare_evaluations, compare_groups
from maskedclip.evaluation.compare_read import Predictions, Scores
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.report_names import row_name
from tests.evaluation.compare_case import MODEL, STORE, blurred, evaluated
from tests.evaluation.stand_ins import changed

KEY = ("linear", "encoder", "macro")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("groups")
    models = {
        "clear": [MODEL, blurred(0.2, 1)],
        "blurred": [blurred(2.0, 2), blurred(2.0, 3), blurred(2.0, 4)],
        "blind": [blurred(2.0, 5, text=False)],
    }
    return {
        name: [evaluated(model, root / f"{name}-{seed}") for seed, model in enumerate(group)]
        for name, group in models.items()
    }


@pytest.fixture(scope="module")
def compared(folders: dict[str, list[Path]]) -> GroupComparison:
    return compare_groups(folders, "blurred", replicates=200)


def test_compare_groups__one_seed_each_is_compare_results(folders: dict[str, list[Path]]) -> None:
    first, second = folders["clear"][0], folders["blurred"][0]
    groups = compare_groups({"a": [first], "b": [second]}, "b", replicates=100)
    expected = compare_results(first, second, replicates=100)
    found = {key: estimate for key, estimate in groups.differences["a"].items() if key[0] != "retrieval"}
    assert found == expected
    assert list(found) == list(expected)
    assert len(groups.differences["a"]) == len(expected) + 9


def test_compare_groups__value_is_the_mean_over_the_seeds(
    folders: dict[str, list[Path]], compared: GroupComparison
) -> None:
    for name, group in folders.items():
        results = [json.loads((folder / "results.json").read_text()) for folder in group]
        for label in ("macro", "drusen", "dr_grade"):
            parts = [part["linear"]["encoder"] for part in results]
            seeds = [(part["macro"] if label == "macro" else part["per_label"][label])["auroc"] for part in parts]
            estimate = compared.values[name]["linear", "encoder", label]
            assert estimate.value == pytest.approx(np.mean([seed["value"] for seed in seeds]))
            assert estimate.low < estimate.value < estimate.high
    assert compared.values["clear"][KEY].note == "mean of 5 labels; 2 seeds"
    assert compared.values["blind"][KEY].note == "mean of 5 labels; 1 seed"
    assert compared.differences["clear"][KEY].note == "mean of 5 labels; 2 seeds and 3 seeds"
    assert compared.variances[KEY].freedom == 3


def test_compare_groups__difference_of_any_two(compared: GroupComparison) -> None:
    there, back = compared.difference("clear", "blind", KEY), compared.difference("blind", "clear", KEY)
    assert there is not None
    assert back is not None
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.value == pytest.approx(compared.values["clear"][KEY].value - compared.values["blind"][KEY].value)
    assert compared.difference("blind", "clear", ("zero_shot", "projected", "macro")) is None
    assert ("zero_shot", "projected", "macro") not in compared.differences["blind"]
    assert set(compared.differences) == {"clear", "blind"}


def test_compare_groups__the_same_seeds_are_blocks(
    folders: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"clear": folders["clear"], "blurred": folders["blurred"][:2]}
    same = {"clear": [0, 1], "blurred": [0, 1]}
    plain = compare_groups(groups, "blurred", replicates=200)
    few = compare_groups(groups, "blurred", blocks=same, replicates=200)
    assert few.differences == plain.differences  # one degree of freedom is too few to pair

    monkeypatch.setattr("maskedclip.evaluation.compare_groups.LEAST_FREEDOM", 1)
    blocks = compare_groups(groups, "blurred", blocks=same, replicates=200)
    others = compare_groups(groups, "blurred", blocks={**same, "blurred": [0, 2]}, replicates=200)
    turned = compare_groups(
        {"clear": folders["clear"], "blurred": folders["blurred"][1::-1]},
        "blurred",
        blocks={**same, "blurred": [1, 0]},
        replicates=200,
    )
    assert blocks.values == plain.values  # of one group nothing changes
    assert others.differences == plain.differences  # other seeds are no blocks
    found, expected = blocks.differences["clear"][KEY], plain.differences["clear"][KEY]
    assert (found.value, found.note) == (expected.value, expected.note)
    assert (found.low, found.high) != (expected.low, expected.high)
    again = turned.differences["clear"][KEY]
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


def test_compare_groups__draws_are_paired(tmp_path: Path) -> None:
    """k-shot and label efficiency: the differences of replicates that saw the same draws and patients."""
    protocols = ("fewshot", "label_efficiency")
    for name, model in (("clear", MODEL), ("blurred", blurred(2.0, 2)), ("slightly", blurred(0.05, 2))):
        evaluate(model, STORE, tmp_path / name, protocols=protocols, replicates=60)
    folders = {name: [tmp_path / name] for name in ("clear", "blurred", "slightly")}
    compared = compare_groups(folders, "clear", replicates=60)
    patients = STORE.patients[STORE.splits == "test"]
    assert (compared.n_test, compared.patients) == (len(patients), len(set(patients)))
    results = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in folders}
    for protocol, setting in (("fewshot", "5"), ("label_efficiency", "0.25")):
        key = (protocol, f"encoder, {setting}", "macro")
        for name in folders:
            entry = results[name][protocol]["encoder"][setting]["macro"]["auroc"]
            found = compared.values[name][key]
            assert (found.value, found.low, found.high) == pytest.approx((entry["value"], entry["low"], entry["high"]))
        far, near = (compared.differences[name][key] for name in ("blurred", "slightly"))
        assert far.high < 0
        own = compared.values["slightly"][key]
        assert near.high - near.low < 0.7 * (own.high - own.low)  # what both models meet alike is no part of it
    with pytest.raises(UserError, match="replicates: 50 with seed 0, but means over draws were kept with 60"):
        compare_groups(folders, "clear", replicates=50)
    assert row_name("fewshot", "encoder, 5") == "Few-shot on f (encoder), k = 5"
    assert row_name("label_efficiency", "bridge, 0.25") == "Label efficiency on g(f) (bridge), 25 % of the patients"


@pytest.mark.parametrize("damage", ["no table", "another"])
def test_compare_groups__a_damaged_table_of_draws_is_one_line(tmp_path: Path, damage: str) -> None:
    for name, model in (("a", MODEL), ("b", blurred(0.2, 1))):
        evaluate(model, STORE, tmp_path / name, protocols=("fewshot",), replicates=20)
    path = tmp_path / "b" / "draws.parquet"
    if damage == "another":
        pq.write_table(pa.table({"protocol": ["fewshot"]}), path)
    else:
        path.write_bytes(b"no table")
    with pytest.raises(UserError, match=r"draws\.parquet: is not a table of predictions"):
        compare_groups({name: [tmp_path / name] for name in "ab"}, "a", replicates=20)


@pytest.mark.parametrize("own", [[], [0], [0, 0], [0, 1, 2]])
def test_compare_groups__blocks_are_one_an_evaluation(folders: dict[str, list[Path]], own: list[int]) -> None:
    groups = {"clear": folders["clear"], "blurred": folders["blurred"][:2]}
    with pytest.raises(UserError, match=f"blocks: blurred: {len(own)} given"):
        compare_groups(groups, "blurred", blocks={"clear": [0, 1], "blurred": own}, replicates=10)


def test_compare_groups__order_of_groups_and_seeds_does_not_matter(
    folders: dict[str, list[Path]], compared: GroupComparison
) -> None:
    turned = compare_groups({name: folders[name][::-1] for name in reversed(folders)}, "blurred", replicates=200)
    for name, values in compared.values.items():
        for key, estimate in values.items():
            other = turned.values[name][key]
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((other.value, other.low, other.high))


def test_compare_groups__seeds_widen_the_interval(folders: dict[str, list[Path]]) -> None:
    """Seeds that differ much: the interval of their mean is wider than that of either alone."""
    mixed = [folders["clear"][0], folders["blurred"][0]]
    alone = compare_groups({"a": mixed[:1], "b": mixed[1:]}, "a", replicates=200).values
    together = compare_groups({"a": mixed, "b": folders["blurred"][1:]}, "a", replicates=200).values["a"][KEY]
    widest = max(estimate.high - estimate.low for estimate in (alone["a"][KEY], alone["b"][KEY]))
    assert together.high - together.low > 1.5 * widest


def test_compare_groups__a_protocol_that_some_seeds_lack(folders: dict[str, list[Path]]) -> None:
    groups = {"mixed": [folders["clear"][0], folders["blind"][0]], "blurred": folders["blurred"]}
    compared = compare_groups(groups, "blurred", replicates=20)
    assert compared.values["mixed"]["zero_shot", "projected", "macro"].note == "mean of 5 labels; 1 of 2 seeds"


def test_compare_groups__clear_best(compared: GroupComparison, folders: dict[str, list[Path]]) -> None:
    assert compared.clear_best(KEY) == "clear"
    twins = {name: folders["blurred"][place : place + 1] for place, name in enumerate("ab")}
    assert compare_groups(twins, "a", replicates=100).clear_best(KEY) is None
    assert compared.clear_best(("linear", "encoder", "unheard")) is None


def test_compare_groups__json_is_strict(compared: GroupComparison) -> None:
    written = json.loads(json.dumps(compared.to_json(), allow_nan=False))
    assert written["seeds"] == {"clear": 2, "blurred": 3, "blind": 1}
    part = written["differences"]["clear"]["linear"]["encoder"]
    assert part["macro"]["auroc"]["value"] == compared.differences["clear"][KEY].value
    assert set(part["per_label"]) == {"glaucoma", "drusen", "normal", "dr_grade", "camera"}


def test_compare_groups__faults(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    good, other = folders["clear"][0], folders["blurred"][0]
    with pytest.raises(UserError, match="reference: 'none' is none of a, b"):
        compare_groups({"a": [good], "b": [other]}, "none")
    with pytest.raises(UserError, match="stands twice"):
        compare_groups({"a": [good], "b": [good.parent / "x" / ".." / good.name]}, "a")
    with pytest.raises(UserError, match=r"has no results\.json"):
        compare_groups({"a": [good], "b": [tmp_path]}, "a")
    with pytest.raises(UserError, match="holds no scores of finetune"):
        compare_groups({"a": [good], "b": [other]}, "a", protocols=["finetune"])
    elsewhere = evaluated(MODEL, tmp_path / "e", changed(STORE, fingerprint="store-2"))
    with pytest.raises(UserError, match=r"different stores \(store-1 and store-2\); evaluate both on the same store"):
        compare_groups({"a": [good], "b": [elsewhere]}, "a")
    splits = STORE.splits.copy()
    splits[np.flatnonzero(splits == "test")[:2]] = ""
    fewer = evaluated(MODEL, tmp_path / "g", changed(STORE, splits=splits))
    with pytest.raises(UserError, match="2 test rows are in one only"):
        compare_groups({"a": [good], "b": [fewer]}, "a")


def _trained(
    generator: np.random.Generator, truth: np.ndarray, common: np.ndarray, patients: np.ndarray, spread: float
) -> Predictions:
    """A training: how well it separates the classes is its own luck, and so is part of its errors."""
    score = truth * (1.2 + spread * generator.normal()) + common + 0.5 * generator.normal(size=len(truth))
    scores = Scores(rows=np.arange(len(truth)), score=score, truth=truth)
    ids = np.array([str(row) for row in range(len(truth))], object)
    return Predictions(
        folder=Path("f"), ids=ids, patients=patients, scores={("linear", "encoder", "a"): {None: scores}}
    )


@pytest.mark.parametrize("spread", [0.0, 0.25])
def test_compare_groups__intervals_of_auroc_cover_the_truth(spread: float) -> None:
    """Two eyes a patient, three equal methods of two trainings each: the true difference is 0."""
    generator = np.random.Generator(np.random.Philox(11))
    count, trials = 160, 150
    patients = np.array([f"p{row // 2}" for row in range(count)], object)
    inside = 0
    for _ in range(trials):
        truth = np.repeat(generator.random(count // 2) < 0.35, 2) ^ (generator.random(count) < 0.1)
        shared = np.repeat(generator.normal(size=count // 2), 2) * 0.7
        groups = {}
        for name in "abc":
            common = shared + 0.5 * generator.normal(size=count)
            groups[name] = [_trained(generator, truth, common, patients, spread) for _ in range(2)]
        estimate = compare_evaluations(groups, "a", replicates=200).differences["b"]["linear", "encoder", "macro"]
        inside += estimate.low <= 0 <= estimate.high
    assert 0.91 <= inside / trials <= 0.995
