"""Heads that learn from a store's labels: a linear probe on frozen features, or a fine-tuned copy of the encoder.

Both are fitted as `maskedclip evaluate` fits them, on the same rows, so that what was measured is what is saved; only
then come calibration and thresholds, on the validation rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from maskedclip.data.prompts import is_normal
from maskedclip.data.store import Store
from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.classifier_calibration import calibrate
from maskedclip.deployment.heads import Head, Kind, Method
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation.evaluate import check_patients
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.finetune import TunedNetwork, fine_tune
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.probe import linear_heads
from maskedclip.evaluation.tasks import UNKNOWN, Task, read_tasks
from maskedclip.models.maskedclip import MaskedCLIP, ModelConfig
from maskedclip.models.saving import SavedModel, weights_fingerprint
from maskedclip.objectives.privileged import PrivilegedHead

LEARNT_FROM = ("encoder", "bridge", "projected")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lesson:
    """What is learnt: the tasks (all binary, or one of several classes) on rows of the store, and their splits."""

    store: Store
    rows: NDArray[np.int64]
    splits: NDArray[np.str_]
    tasks: Mapping[str, Task]
    left_out: dict[str, str]

    @property
    def kind(self) -> Kind:
        return "independent" if next(iter(self.tasks.values())).kind == "binary" else "exclusive"

    @property
    def patients(self) -> NDArray[np.object_]:
        return self.store.patients[self.rows]


def fit_head(
    model: Model,
    store: Store,
    *,
    labels: Sequence[str] = (),
    method: Method = "linear",
    output: str = "encoder",
    splits: Sequence[str] = ("train",),
    settings: FineTuneSettings | None = None,
    seed: int = 0,
) -> Classifier:
    """Fit a head on a store's labels, and calibrate it on the validation rows.

    Args:
        model: whose features, or whose encoder, are taken; a fine-tuned head gets a copy, the model stays as it is.
        store: with splits and labels.
        labels: some binary ones, or one of several classes; none: all binary ones, else the only one there is.
        method: `linear`, `finetune` (every weight) or `lora` (low-rank additions).
        output: the feature that a linear head reads.
        splits: whose rows are learnt from; the validation split chooses and calibrates.
        settings: of fine-tuning; `method` decides theirs.
        seed: as of `evaluate`.

    Raises:
        UserError: there is no such label, nothing can be learnt, a patient is in test and in another split, or the
            fine-tuning fails.
    """
    check_patients(store)
    lesson = _lesson(store, labels, splits)
    if method == "linear":
        classifier = _linear(model, lesson, output, seed)
    elif method in ("finetune", "lora"):
        chosen = replace(settings or FineTuneSettings(), method="lora" if method == "lora" else "full")
        classifier = _tuned(model, lesson, method, chosen, seed)
    else:
        raise UserError(f"--method {method}: give linear, finetune or lora")
    return _calibrated(classifier, lesson, seed)


def privileged_head(
    model: Model,
    head: PrivilegedHead,
    columns: Sequence[str],
    store: Store,
    *,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Classifier:
    """The head that pre-training learnt by the loss `privileged_text`, calibrated on a store's validation rows.

    Args:
        model: of the same run.
        head: as trained.
        columns: what its outputs stand for, as the run's `data.labels` names them: NAME, or NAME=CLASS.
        store: with splits and these labels.
        labels: some of the findings, or one label of several classes; none: all findings, else the only label.
        seed: of the bootstrap.

    Raises:
        UserError: the run did not learn such a label, or the store does not have it.
    """
    check_patients(store)
    names = list(dict.fromkeys(column.partition("=")[0] for column in columns))
    wanted = (
        [name.removeprefix("label.") for name in labels] or [name for name in names if name in columns] or names[:1]
    )
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"--labels: {unknown[0]} was not learnt by the run; it knows {', '.join(names)}")
    lesson = _lesson(store, wanted, ("train",))
    places = [place for place, column in enumerate(columns) if column.partition("=")[0] in lesson.tasks]
    weight, bias, inner, offset, outer = (value.cpu().numpy() for value in head.folded())
    if lesson.kind == "independent":
        answers = tuple(columns[place] for place in places)
        cuts = _rest_of_normal(answers, np.zeros(len(answers)))
    else:
        of_words = isinstance(next(iter(lesson.tasks.values())).classes[0], str)
        answers = tuple(columns[place].partition("=")[2] if of_words else columns[place] for place in places)
        cuts = np.full(len(answers), np.nan)
    about = {"left_out": {}, "seed": seed}
    plain = _learnt_head(answers, lesson, "privileged_text", "encoder", weight[places], bias[places], cuts, about)
    return _calibrated(Classifier(replace(plain, branch=(inner, offset, outer[places])), model), lesson, seed)


def _lesson(store: Store, labels: Sequence[str], splits: Sequence[str]) -> _Lesson:
    known = sorted(set(store.splits.tolist()) - {""})
    for name in splits:
        if name not in known or name == "val":
            why = "chooses and calibrates, and cannot be learnt from" if name == "val" else "is no split of the store"
            raise UserError(f"--split {name}: {why}; it has {', '.join(known) or 'none'}")
    tasks, refused = read_tasks(store.labels)
    chosen, left_out = _chosen(tasks, refused, labels)
    # The rows that `evaluate` learns from, whichever of the labels are asked for: the standardisation is over them.
    sides = np.where(np.isin(store.splits, list(splits)), "train", np.where(store.splits == "val", "val", ""))
    some = np.any([task.known for task in tasks.values()], axis=0)
    rows = np.flatnonzero(some & (sides != ""))
    return _Lesson(
        store=store,
        rows=rows,
        splits=sides[rows],
        tasks={name: tasks[name].on(rows) for name in chosen},
        left_out=left_out,
    )


def _chosen(
    tasks: Mapping[str, Task], refused: Mapping[str, str], labels: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Names of the tasks that one head can answer, and why others stay out."""
    names = [name.removeprefix("label.") for name in labels]
    for name in names:
        if name not in tasks:
            why = refused.get(name, f"is no label of the store; it has {', '.join(tasks) or 'none'}")
            raise UserError(f"--labels: label.{name} {why}")
    if not tasks:
        why = "; ".join(f"label.{name} {reason}" for name, reason in refused.items())
        raise UserError(f"--data: {why or 'the store has no label.* column'}")
    binary = [name for name, task in tasks.items() if task.kind == "binary"]
    left_out = dict(refused) if not names else {}
    if not names:
        names = binary or list(tasks)[:1]
        left_out |= {name: "a head of its own; name it in --labels" for name in tasks if name not in names}
    several = [name for name in names if name not in binary]
    if several and len(names) > 1:
        raise UserError(
            f"--labels: {several[0]} has several classes and needs a head of its own; give --labels {several[0]} alone"
        )
    return names, left_out


def _linear(model: Model, lesson: _Lesson, output: str, seed: int) -> Classifier:
    features = CachedFeatures(model, lesson.store).features(lesson.store, lesson.rows)
    if output not in features:
        raise UserError(f"--output {output}: is none of this model's features ({', '.join(features)})")
    found = linear_heads(features[output], lesson.tasks, lesson.splits, lesson.patients, seed=seed)
    heads = {name: head for name, head in found.items() if not isinstance(head, str)}
    left_out = lesson.left_out | {name: why for name, why in found.items() if isinstance(why, str)}
    _refuse_nothing(heads, left_out)
    if lesson.kind == "independent":
        labels = tuple(heads)
        cuts = _rest_of_normal(labels, np.array([logit(head.prior[1]) for head in heads.values()]))
    else:
        task, own = next((lesson.tasks[name], head) for name, head in heads.items())
        labels = _class_names(task, own.present)
        cuts = np.full(len(labels), np.nan)
    return Classifier(
        _learnt_head(
            labels,
            lesson,
            "linear",
            output,
            np.concatenate([head.weight for head in heads.values()]),
            np.concatenate([head.bias for head in heads.values()]),
            cuts,
            {"c": {name: head.c for name, head in heads.items()}, "left_out": left_out, "seed": seed},
        ),
        model,
    )


def _rest_of_normal(labels: tuple[str, ...], cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cuts of findings (T,), NaN for a normal label beside them: it is present where no other is."""
    normals = np.array([is_normal(name) for name in labels])
    return cuts if normals.all() else np.where(normals, np.nan, cuts)


def _tuned(model: Model, lesson: _Lesson, method: Method, settings: FineTuneSettings, seed: int) -> Classifier:
    done = fine_tune(model, lesson.store, lesson.tasks, lesson.rows, lesson.splits, settings, seed=seed, keep=True)
    left_out = lesson.left_out | {name: answer for name, answer in done.answers.items() if isinstance(answer, str)}
    _refuse_nothing(done.networks, left_out)
    tuned, record = done.networks[0], done.records[0]
    network, own = tuned.network, tuned.labels
    if own.binary:
        labels = tuple(task.name for task in own.tasks)
        cuts = _rest_of_normal(labels, logit(np.array(own.cuts())))
    else:
        labels = _class_names(own.tasks[0], own.present.tolist())
        cuts = np.full(len(labels), np.nan)
    head = _learnt_head(
        labels,
        lesson,
        method,
        "encoder",
        network.head.weight.detach().cpu().numpy().astype(np.float64),
        network.head.bias.detach().cpu().numpy().astype(np.float64),
        cuts,
        {"training": record, "left_out": left_out, "seed": seed},
    )
    norm = (network.norm.weight, network.norm.bias)
    weight, bias = (value.detach().cpu().numpy().astype(np.float64) for value in norm)
    return Classifier(replace(head, norm=(weight, bias)), _tuned_model(model, tuned), base=model.fingerprint)


def _tuned_model(model: Model, tuned: TunedNetwork) -> Model:
    """The fine-tuned encoder as a model of its own, without texts."""
    before = model.module.config
    config = ModelConfig(
        image_encoder=before.image_encoder,
        image_encoder_options=before.image_encoder_options,
        size=tuned.size,
        bridge_depth=0,
        bridge_heads=before.bridge_heads,
    )
    encoder = tuned.network.encoder.cpu().requires_grad_(False)
    module = MaskedCLIP(config, encoder, None).eval()
    stored = max(model.preprocessing.stored_size, tuned.size)
    preprocessing = replace(model.preprocessing, size=tuned.size, stored_size=stored)
    return Model(SavedModel(module, None, preprocessing, weights_fingerprint(module, preprocessing)), model.device)


def _learnt_head(
    labels: tuple[str, ...],
    lesson: _Lesson,
    method: Method,
    output: str,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    cuts: NDArray[np.float64],
    about: dict[str, Any],
) -> Head:
    count = len(labels)
    splits, numbers = np.unique(lesson.splits, return_counts=True)
    data = {
        "data": lesson.store.fingerprint,
        "stores": [folder.name for folder in lesson.store.folders],
        "rows": dict(zip(splits.tolist(), numbers.tolist(), strict=True)),
        "columns": list(lesson.tasks),
    }
    return Head(
        labels=labels,
        kind=lesson.kind,
        method=method,
        output=output,
        weight=weight,
        bias=bias,
        slopes=np.ones(count),
        intercepts=np.zeros(count),
        calibrated=np.zeros(count, bool),
        cuts=cuts,
        about=data | about,
    )


def _calibrated(classifier: Classifier, lesson: _Lesson, seed: int) -> Classifier:
    """Calibrated on the validation rows, where there are any."""
    head = classifier.head
    validation = lesson.splits == "val"
    if head.kind == "independent":
        truth = np.stack([lesson.tasks[name].truth for name in head.labels], axis=1)
        validation &= (truth != UNKNOWN).any(axis=1)
    else:
        task = next(iter(lesson.tasks.values()))
        names = _class_names(task, range(len(task.classes)))
        place = np.array([head.labels.index(name) if name in head.labels else UNKNOWN for name in names])
        truth = np.where(task.truth == UNKNOWN, UNKNOWN, place[task.truth])
        validation &= truth != UNKNOWN
    if not validation.any():
        why = "the store has no validation rows: probabilities are as fitted, and there is no abstention"
        return Classifier(replace(head, about=head.about | {"note": why}), classifier.model, base=classifier.base)
    # A linear head's features are in the cache; a fine-tuned encoder's are computed once, and not kept.
    reader = CachedFeatures(classifier.model, lesson.store) if head.method == "linear" else classifier.model
    features = reader.features(lesson.store, lesson.rows[validation])
    new = calibrate(
        head,
        classifier.scores(features),
        truth[validation],
        lesson.patients[validation],
        strict=False,
        recut=False,
        where=str(lesson.store.folders[0]),
        seed=seed,
    )
    return Classifier(new, classifier.model, base=classifier.base)


def _class_names(task: Task, present: Sequence[int]) -> tuple[str, ...]:
    """Classes as labels: words as they are, grades with the label's name."""
    return tuple(
        value if isinstance(value := task.classes[place], str) else f"{task.name}={value}" for place in present
    )


def _refuse_nothing(found: Any, left_out: Mapping[str, str]) -> None:
    if not found:
        raise UserError("--data: nothing can be learnt: " + "; ".join(f"{k}: {why}" for k, why in left_out.items()))
