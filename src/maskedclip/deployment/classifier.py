"""What a photograph shows, in words that a user chose or learnt: zero-shot labels, saved probes, fine-tuned encoders.

One class for all of them.  Probabilities say whether they are calibrated, and an answer whether it is certain enough.
Nothing here is a diagnosis.  B photographs, T labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.prompts import Overrides, is_normal, prompts_for, prompts_for_class
from maskedclip.data.store import Store
from maskedclip.deployment.classifier_calibration import calibrate
from maskedclip.deployment.classifier_truth import read_truth
from maskedclip.deployment.heads import Head, Kind
from maskedclip.deployment.heads_saving import read_head, save_head
from maskedclip.deployment.model import Model, Photograph, load
from maskedclip.errors import UserError
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.zero_shot import class_embedding, normal_prompts


@dataclass(frozen=True)
class Answer:
    """One label of one photograph.

    probability: 0 to 1, calibrated or not as the classifier says.  score: what it was made from, before calibration: a
    cosine, a difference of cosines, or a probe's logit.  certain: whether the confidence reaches what abstention asks
    for.  found: whether the label is called present; of labels that exclude each other, the likeliest one is.
    """

    label: str
    probability: float | None
    score: float
    certain: bool
    found: bool = False


class Classifier:
    """Labels of photographs.

    Attributes: `head`, the numbers behind it; `model`, whose features it reads, which for a fine-tuned head is that
    head's own encoder; `base`, fingerprint of the model that it was made from.
    """

    def __init__(self, head: Head, model: Model, *, base: str | None = None) -> None:
        self.head, self.model = head, model
        self.base = model.fingerprint if base is None else base

    @property
    def labels(self) -> tuple[str, ...]:
        """What it can say."""
        return self.head.labels

    @property
    def kind(self) -> Kind:
        """`exclusive`: just one label holds; `independent`: each holds or not."""
        return self.head.kind

    @property
    def calibrated(self) -> bool:
        """Whether all its probabilities were calibrated on validation rows."""
        return bool(self.head.calibrated.all())

    @property
    def output(self) -> str:
        """Which of `model`'s features it reads: `encoder`, `bridge` or `projected`."""
        return self.head.output

    def scores(self, features: Mapping[str, NDArray]) -> NDArray[np.float64]:
        """What ranks photographs by a label, (B, T), of features as `model.encode_images` gives them."""
        if self.output not in features:
            raise UserError(f"features: '{self.output}' is missing; there are {', '.join(features) or 'none'}")
        return self.head.scores(features[self.output])

    def probabilities(self, features: Mapping[str, NDArray]) -> NDArray[np.float64]:
        """Of each label, (B, T), in the order of `labels`."""
        return self.head.probabilities(self.scores(features))

    def answers(self, features: Mapping[str, NDArray]) -> list[list[Answer]]:
        """For each photograph its answers, the most probable first; features as `model.encode_images` gives them."""
        scores = self.scores(features)
        parts = (self.head.probabilities(scores), scores, self.head.certain(scores), self.head.found(scores))
        return [
            sorted(
                (
                    Answer(label, float(p), float(s), bool(sure), bool(found))
                    for label, p, s, sure, found in zip(self.labels, *row, strict=True)
                ),
                key=lambda answer: -(answer.probability or 0.0),
            )
            for row in zip(*parts, strict=True)
        ]

    def classify(self, photographs: Photograph | Tensor | Sequence[Photograph]) -> list[list[Answer]]:
        """Answers for photographs, or for a batch uint8 (B, 3, S, S) that `model.preprocess` made.

        Raises:
            UserError: one of them cannot be read as an image.
        """
        return self.answers(self.model.encode_images(photographs))

    def with_calibration(self, store: Store, seed: int = 0) -> "Classifier":
        """The same labels with probabilities, decisions and abstention fitted on a store's validation rows.

        Raises:
            UserError: the store has no column for a label, or too few validation rows.
        """
        truth = read_truth(store, self.labels, self.kind)
        features = CachedFeatures(self.model, store).features(store, truth.rows)
        head = calibrate(
            self.head,
            self.scores(features),
            truth.values,
            store.patients[truth.rows],
            strict=True,
            recut=True,
            where=str(store.folders[0]),
            seed=seed,
        )
        head.about["calibration"] |= {
            "store": store.fingerprint,
            "columns": list(truth.columns),
            "left_out": truth.left_out,
        }
        return Classifier(head, self.model, base=self.base)

    def abstaining(self, share: float) -> "Classifier":
        """The same classifier that leaves the least certain share, as on the validation rows, undecided.

        Raises:
            UserError: the share is outside [0, 1), or no validation rows were seen.
        """
        return Classifier(self.head.abstaining(share), self.model, base=self.base)

    def save(self, folder: Path) -> None:
        """Write it as a new folder that `read_classifier` reads.

        Raises:
            UserError: the folder exists, or cannot be written.
        """
        save_head(folder, self.head, self.model, base=self.base)


def zero_shot_classifier(
    model: Model,
    labels: Sequence[str],
    *,
    kind: Kind = "exclusive",
    prompts: Overrides | None = None,
    calibration: Store | None = None,
    abstain: float = 0.0,
) -> Classifier:
    """A classifier from words alone.

    Labels that exclude each other share a softmax of cosines at the model's own scale.  Independent findings are each
    set against "normal": the score is that of `maskedclip evaluate` (difference of two cosines), the probability
    before calibration the share of the finding at the model's scale.  A label that means "normal" is set against the
    mean of the others.

    Args:
        model: one that was trained with texts.
        labels: names or sentences, e.g. "glaucoma", "normal fundus"; "grade=2" is the second grade of "grade".
        kind: whether labels exclude each other.
        prompts: sentences for some of the labels, instead of the shipped ensembles; "normal" for what findings are set
            against.  Those for other labels are not read.
        calibration: a store whose validation rows calibrate the probabilities; it needs columns for the labels.
        abstain: share of the photographs, the least certain ones, to leave undecided; needs `calibration`.

    Raises:
        UserError: too few labels, one twice, a model without texts, or a store that does not suffice.
    """
    names = tuple(labels)
    twice = [name for name in names if names.count(name) > 1]
    if len(set(names)) < 2 and kind == "exclusive":
        raise UserError("labels: give at least two different ones, e.g. glaucoma,cataract,normal fundus")
    if twice or not names:
        raise UserError(f"labels: {twice[0]!r} is given twice" if twice else "labels: give at least one")
    sentences = {name: _prompts(name, prompts) for name in names}
    towards = np.stack([class_embedding(model.encode_text, sentences[name]) for name in names]).astype(np.float64)
    normals = np.array([is_normal(name) for name in names])
    weight, cuts = towards, np.zeros(len(names))
    about: dict[str, Any] = {"prompts": {name: list(found) for name, found in sentences.items()}}
    if kind == "independent":
        if normals.all():
            raise UserError(f"labels: {names[0]!r} is set against findings; name at least one finding beside it")
        against = normal_prompts(list(names), prompts)
        normal = class_embedding(model.encode_text, against).astype(np.float64)
        others = towards[~normals].mean(axis=0)
        weight = np.where(normals[:, None], towards - others, towards - normal)
        cuts = np.where(normals, np.nan, 0.0)
        about["normal"] = list(against)
    classifier = Classifier(
        Head(
            labels=names,
            kind=kind,
            method="zero_shot",
            output="projected",
            weight=weight,
            bias=np.zeros(len(names)),
            slopes=np.full(len(names), float(model.module.scale.detach())),
            intercepts=np.zeros(len(names)),
            calibrated=np.zeros(len(names), bool),
            cuts=cuts,
            unit=True,
            about=about,
        ),
        model,
    )
    if calibration is not None:
        classifier = classifier.with_calibration(calibration)
    return classifier.abstaining(abstain) if abstain else classifier


def read_classifier(folder: Path, model: Model | None) -> Classifier:
    """A saved head, for the model that it was made from.

    Args:
        folder: what `maskedclip probe --out` or `maskedclip classify --save` wrote.
        model: the head's; may be None for a fine-tuned head, which has its encoder with it.

    Raises:
        UserError: it is no head, it is damaged, a later version wrote it, or it belongs to another model.
    """
    saved = read_head(folder)
    if model is not None and model.fingerprint != saved.base:
        raise UserError(
            f"{folder}: was made for the model {saved.base}, and this is {model.fingerprint}; give that model, or make "
            "a head for this one with `maskedclip probe`"
        )
    if saved.encoder is not None:
        device = "auto" if model is None else str(model.device)
        return Classifier(saved.head, load(saved.encoder, device=device), base=saved.base)
    if model is None:
        raise UserError(f"{folder}: reads the features of the model {saved.base}; give that model's run, too")
    return Classifier(saved.head, model, base=saved.base)


def _prompts(label: str, prompts: Overrides | None) -> list[str]:
    name, equals, value = label.partition("=")
    if equals and not (prompts and label in prompts):
        number = value.strip()
        return prompts_for_class(name, int(number) if number.isdigit() else number, prompts)
    return prompts_for(label, prompts)
