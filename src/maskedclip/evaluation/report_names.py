"""The reader's words for what an evaluation names in code."""

from collections.abc import Iterable

import numpy as np

from maskedclip.evaluation.statistics import Estimate

PROTOCOLS = {
    "linear": "Linear probe",
    "knn": "k-NN",
    "fewshot": "Few-shot",
    "label_efficiency": "Label efficiency",
    "zero_shot": "Zero-shot",
    "retrieval": "Retrieval",
    "dense": "Dense probe",
    "finetune": "Fine-tuning",
    "lora": "LoRA fine-tuning",
}
# What scores the labels of test images, with the name of its curve.  A section that shows one of them shows the first
# that was evaluated: what was trained for the labels, then what only reads the features, then what has no labels.
SCORED = {
    ("finetune", "encoder"): "fine-tuning",
    ("lora", "encoder"): "LoRA",
    ("linear", "encoder"): "probe on f",
    ("linear", "bridge"): "probe on g(f)",
    ("knn", "encoder"): "k-NN on f",
    ("knn", "bridge"): "k-NN on g(f)",
    ("zero_shot", "projected"): "zero-shot",
}
_FEW = 4
_FIRST_OUT = (("knn", "bridge"), ("knn", "encoder"), ("linear", "bridge"))
DIRECTIONS = {
    "image_to_text": "image → text",
    "image_to_text_per_text": "image → text, mean over the texts",
    "text_to_image": "text → image",
}
_SETTINGS = {
    "fewshot": lambda shots: f"k = {shots}",
    "label_efficiency": lambda share: f"{100 * float(share):g} % of the patients",
}
_FEATURES = {"encoder": "f (encoder)", "bridge": "g(f) (bridge)", "projected": "text prompts"}


def row_name(protocol: str, feature: str) -> str:
    """A protocol on a feature, for a reader; "encoder, 5" of a protocol of draws is a feature with a setting."""
    feature, _, setting = feature.partition(", ") if protocol in _SETTINGS else (feature, "", "")
    if setting:
        return f"{row_name(protocol, feature)}, {_SETTINGS[protocol](setting)}"
    name, of = PROTOCOLS.get(protocol, protocol.replace("_", " ")), _FEATURES.get(feature, feature)
    return f"{name}, {of}" if feature == "projected" else f"{name} on {of}"


def few(parts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of SCORED for which there is room where one looks at all of them at once: four, one of each kind first."""
    kept = list(parts)
    for part in _FIRST_OUT:
        if len(kept) > _FEW and part in kept:
            kept.remove(part)
    return kept


def label_name(name: str) -> str:
    """A label's name with spaces."""
    return name.replace("_", " ")


def verdict(difference: Estimate) -> str:
    """What an interval of a difference allows one to say."""
    if np.isnan(difference.value) or np.isnan(difference.low):
        return "undefined"
    if difference.low > 0:
        return "better: the interval is above 0"
    return "worse: the interval is below 0" if difference.high < 0 else "no difference shown: the interval includes 0"
