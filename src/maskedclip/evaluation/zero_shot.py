"""Zero-shot classification by prompt ensembles.  m images, E embedding width, K classes.

A class stands where the mean of its prompts' unit text embeddings points.  Nothing is trained, tuned or thresholded
on labels; calibrated probabilities, which learn one or two numbers from validation labels, are a result of their own.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.prompts import NORMAL, Overrides, is_normal, prompts_for, prompts_for_class
from maskedclip.evaluation.knn import unit_rows
from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.evaluation.zero_shot_calibration import calibrate_zero_shot

EncodeText = Callable[[list[str]], NDArray]

# CLIP's scale at the start of training, 1 / 0.07 [ours here]: it sets how soft the class probabilities are.
SCALE = 1 / 0.07


def class_embedding(encode_text: EncodeText, prompts: Sequence[str]) -> NDArray:
    """Mean of the prompts' unit text embeddings, brought back to unit length: (E,)."""
    embedded = unit_rows(encode_text(list(prompts)))
    return unit_rows(embedded.mean(axis=0, keepdims=True))[0]


def zero_shot(
    images: NDArray, tasks: Mapping[str, Task], encode_text: EncodeText, *, prompts: Overrides | None = None
) -> dict[str, Prediction]:
    """Predictions for each task from image embeddings (m, E); `prompts` replaces the ensembles of the labels it names.

    - A finding (binary): image . finding - image . normal, positive where the image is nearer to the finding than
      to "normal fundus".  The common part of all medical sentences cancels.
    - The label `normal` itself: image . normal - mean over the other findings of image . finding, positive where no
      finding is positive; without any other finding, image . normal less its mean over the images, of which only the
      order means something.
    - Several classes: softmax of image . class / 0.07 over the classes.
    """
    unit = unit_rows(images)
    findings = [name for name, task in tasks.items() if task.kind == "binary"]
    towards = {name: unit @ class_embedding(encode_text, prompts_for(name, prompts)) for name in findings}
    normal = unit @ class_embedding(encode_text, normal_prompts(findings, prompts))
    others = [towards[name] for name in findings if not is_normal(name)]
    answers: dict[str, Prediction] = {}
    for name, task in tasks.items():
        if task.kind != "binary":
            answers[name] = _classes(unit, task, encode_text, prompts)
            continue
        scores = towards[name] - normal
        positive = scores > 0
        if is_normal(name):
            scores = towards[name] - (np.mean(others, axis=0) if others else towards[name].mean())
            positive = towards[name] >= np.max(others, axis=0) if others else scores > 0
        answers[name] = Prediction(scores=scores.astype(np.float64), predicted=positive.astype(np.int64))
    return answers


def calibrated_zero_shot(
    images: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    encode_text: EncodeText,
    *,
    prompts: Overrides | None = None,
) -> tuple[dict[str, Prediction], dict[str, Prediction | str]]:
    """Predictions on the test rows, in their order: as `zero_shot` gives them, and calibrated on the validation rows.

    images (n, E), splits (n,) of "train", "val", "test", tasks on the same n rows; training rows are not used.  A
    calibrated label is a sentence where the validation rows do not suffice.
    """
    known: dict[str, NDArray] = {}  # both splits read the same prompts

    def encode(texts: list[str]) -> NDArray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encode_text(new) if new else (), strict=True))
        return np.stack([known[text] for text in texts])

    on = {split: {name: task.on(splits == split) for name, task in tasks.items()} for split in ("val", "test")}
    tested = zero_shot(images[splits == "test"], on["test"], encode, prompts=prompts)
    if not (splits == "val").any():
        return tested, dict.fromkeys(tested, "there is no validation split")
    validated = zero_shot(images[splits == "val"], on["val"], encode, prompts=prompts)
    return tested, calibrate_zero_shot(on["val"], validated, tested)


def normal_prompts(findings: Sequence[str], prompts: Overrides | None) -> list[str]:
    """The prompts of the store's own normal label, which a user may have replaced under its own name."""
    named = [name for name in findings if is_normal(name) and prompts and name in prompts]
    return prompts_for(named[0] if named else NORMAL, prompts)


def _classes(unit: NDArray, task: Task, encode_text: EncodeText, prompts: Overrides | None) -> Prediction:
    embedded = [class_embedding(encode_text, prompts_for_class(task.name, value, prompts)) for value in task.classes]
    logits = SCALE * (unit @ np.stack(embedded).T).astype(np.float64)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return Prediction(scores=scores, predicted=scores.argmax(axis=1))
