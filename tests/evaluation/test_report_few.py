"""The curves and the table of a report's k-shot and label efficiency."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskedclip.evaluation import report_quality
from maskedclip.evaluation.draws_table import DRAWS_TABLE, DrawnMeans, draws_table
from maskedclip.evaluation.few_shot import few_shot
from maskedclip.evaluation.report_quality import few_labels
from maskedclip.evaluation.report_subject import Evaluation
from maskedclip.evaluation.statistics import cluster_weights
from maskedclip.evaluation.tasks import Task


def _few_shot(folder: Path, *rare: int) -> Evaluation:
    """k-shot of three labels on 80 training and 40 test rows; a label of `rare` has so many training images."""
    random = np.random.Generator(np.random.Philox(0))
    splits = np.array(["train"] * 80 + ["test"] * 40)
    truth = np.tile([0, 1], 60)
    tasks = {name: Task(name=name, kind="binary", classes=(0, 1), truth=truth) for name in ("a", "b", "often")}
    for name, count in zip(tasks, rare, strict=False):
        kept = truth.copy()
        kept[np.flatnonzero((truth == 1) & (splits == "train"))[count:]] = 0
        tasks[name] = Task(name=name, kind="binary", classes=(0, 1), truth=kept)
    features = random.normal(size=(120, 4)) + truth[:, None]
    patients = np.array([str(row) for row in range(120)], dtype=object)
    weights = cluster_weights([None] * 40, replicates=50)
    done = few_shot(features, tasks, splits, patients, weights, draws=3)
    means = {("fewshot", f"encoder, {k}", label): mean for (k, label), mean in done.means.items()}
    pq.write_table(draws_table(DrawnMeans(means=means)), folder / DRAWS_TABLE)
    return Evaluation(name="mine", folder=folder, results={"fewshot": {"encoder": done.section}})


def _drawn(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Mapping[str, list]]:
    """The page's part, and the lines of its chart."""
    kept: dict[str, list] = {}
    monkeypatch.setattr(report_quality, "share_chart", lambda lines, *_, **__: kept.update(lines) or b"")
    subject: Any = SimpleNamespace(main=evaluation, unit="images")
    return few_labels(subject), kept


def test_few_labels__a_curve_is_over_the_same_labels_at_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = _few_shot(tmp_path, 3, 7)
    section = evaluation.results["fewshot"]["encoder"]
    page, lines = _drawn(evaluation, monkeypatch)
    (points,) = lines.values()
    assert [x for x, _ in points] == [1, 5, 10, 20]
    for (_, point), part in zip(points, section.values(), strict=True):
        own = part["per_label"]["often"]["auroc"]
        assert [point[name] for name in ("value", "low", "high")] == pytest.approx(
            [own[name] for name in ("value", "low", "high")]
        )
    assert "Over the 1 of 3 labels that have a value at every point: often." in page
    for note in ("mean of 3 labels", "mean of 2 of 3 labels; undefined: a", "mean of 1 of 3 labels; undefined: a, b"):
        assert note in page
    assert f"<strong>{section['1']['macro']['auroc']['value']:.3f}</strong>" in page

    # An evaluation of an earlier version has no replicates, so no intervals but where nothing is left out.
    (tmp_path / DRAWS_TABLE).unlink()
    (points,) = _drawn(evaluation, monkeypatch)[1].values()
    assert points[0][1]["value"] == pytest.approx(section["1"]["per_label"]["often"]["auroc"]["value"])
    assert [point["low"] is None for _, point in points] == [True, True, False, False]


def test_few_labels__all_labels_or_none_at_a_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = _few_shot(tmp_path, 30, 7, 7)
    page, lines = _drawn(evaluation, monkeypatch)
    assert len(next(iter(lines.values()))) == 4
    assert "Over the 1 of 3 labels" in page
    evaluation = _few_shot(tmp_path, 7, 7, 7)
    section = evaluation.results["fewshot"]["encoder"]
    page, lines = _drawn(evaluation, monkeypatch)
    assert list(lines.values()) == [[(float(k), section[k]["macro"]["auroc"]) for k in ("1", "5")]]
    assert "at every point:" not in page
    assert "undefined (n=40, no label is defined)" in page
