"""The reader's words for what an evaluation names in code."""

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
