"""How often the 95 % intervals of recall and of quadratic kappa hold the truth: simulated patients with two eyes.

python -m benchmarks.coverage_others [--simulations 1000] [--replicates 500] [--seed 0]

Recall: ranks are drawn and not computed from embeddings.  An eye has one of a few texts, of which one belongs to 40 %
of the patients; how hard a text is to find, and how clear a patient's eyes are, both move the rank.  Over images the
texts are the same in every simulation, since its interval takes the candidates as given; over texts they are new ones.
Kappa: grades 0 to 4 and a model's answers, noisy in ways that a patient's eyes share.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from benchmarks.coverage import EYES, SHARED
from numpy.typing import NDArray

from maskedclip.console import bar
from maskedclip.evaluation.retrieval import IMAGE_TO_TEXT, PER_TEXT, TEXT_TO_IMAGE, retrieval_figures
from maskedclip.evaluation.scoring import label_metrics
from maskedclip.evaluation.statistics import cluster_weights
from maskedclip.evaluation.tasks import Prediction, Task

GRADES = 5
COMMONEST = 0.4  # of the patients have the commonest text
BOTH = 0.7  # of the patients have one text for both eyes
SPREAD = 1.2  # of the logarithm of a rank
_LARGE = 200_000
Rates = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Patients of the test set; texts to choose among; median rank of an image's own text, which sets the recall."""

    patients: int
    texts: int
    median: float


SETTINGS = [
    Setting(patients=patients, texts=texts, median=median)
    for patients in (50, 150, 500)
    for texts in (20, 80)
    for median in (4.0, 15.0)
]


def coverage_of_recall(setting: Setting, *, simulations: int, replicates: int, seed: int = 0) -> Rates:
    """By kind of recall at 10: how often its interval holds the truth, and the mean width."""
    generator = _generator(seed, setting)
    weights = _weights(setting.patients, replicates, seed)
    fixed = generator.normal(size=setting.texts)  # how hard the texts are that all simulations share
    images_truth = float((_image_ranks(generator, setting, fixed, _LARGE)[0] <= 10).mean())
    many = generator.normal(size=_LARGE)
    per_text, of_texts = (
        float((_ranks(generator, setting, many, clear) <= 10).mean())
        for clear in (generator.normal(size=_LARGE), np.zeros(_LARGE))
    )
    truths = {IMAGE_TO_TEXT: images_truth, PER_TEXT: per_text, TEXT_TO_IMAGE: of_texts}
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in truths}
    for _ in range(simulations):
        for names, hardness in (
            ((IMAGE_TO_TEXT,), fixed),
            ((PER_TEXT, TEXT_TO_IMAGE), generator.normal(size=setting.texts)),
        ):
            ranks, own = _image_ranks(generator, setting, hardness, setting.patients)
            present, compact = np.unique(own, return_inverse=True)
            of_texts = _ranks(generator, setting, hardness[present], np.zeros(len(present)))
            figures = retrieval_figures(ranks, of_texts, compact, weights, seed=seed)
            for name in names:
                figure = figures[name]["recall_at_10"]
                held = figure["low"] <= truths[name] <= figure["high"]
                found[name].append((held, figure["high"] - figure["low"]))
    return _means(found)


def coverage_of_kappa(patients: int, noise: float, *, simulations: int, replicates: int, seed: int = 0) -> Rates:
    """Of quadratic kappa: how often its interval holds the value on a very large set, and the mean width.

    noise: deviation of the model's answer from the truth, in deviations of the truth.
    """
    generator = _generator(seed, patients, round(100 * noise))
    weights = _weights(patients, replicates, seed)
    task, answer = _graded(generator, _LARGE, noise)
    truth = label_metrics(task, answer, np.ones((1, _LARGE * EYES)))["quadratic_kappa"].value
    found: dict[str, list[tuple[bool, float]]] = {"quadratic_kappa": []}
    for _ in range(simulations):
        estimate = label_metrics(*_graded(generator, patients, noise), weights)["quadratic_kappa"].estimate()
        held = bool(estimate.low <= truth <= estimate.high)
        found["quadratic_kappa"].append((held, estimate.high - estimate.low))
    return _means(found)


def _image_ranks(
    generator: np.random.Generator, setting: Setting, hardness: NDArray, patients: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks of the images' own texts and which these are, both (2 x patients,), a patient's eyes side by side."""
    rest = 1 / np.arange(1, setting.texts)
    shares = np.concatenate([[COMMONEST], (1 - COMMONEST) * rest / rest.sum()])
    own = generator.choice(setting.texts, (patients, EYES), p=shares)
    own = np.where(generator.random((patients, 1)) < BOTH, own[:, :1], own).reshape(-1)
    clear = np.repeat(generator.normal(size=patients), EYES)
    return _ranks(generator, setting, hardness[own], clear), own


def _ranks(generator: np.random.Generator, setting: Setting, hardness: NDArray, clear: NDArray) -> NDArray[np.int64]:
    """Ranks from 1, (n,), of queries of which a part is hard, and a part clear."""
    own = generator.normal(size=len(hardness))
    place = np.log(setting.median) + SPREAD * (hardness + np.sqrt(SHARED) * clear + np.sqrt(1 - SHARED) * own) / 2
    return np.minimum(np.exp(place).astype(np.int64) + 1, setting.texts)


def _graded(generator: np.random.Generator, patients: int, noise: float) -> tuple[Task, Prediction]:
    def shared() -> NDArray:
        patient = np.repeat(generator.normal(size=patients), EYES)
        return np.sqrt(SHARED) * patient + np.sqrt(1 - SHARED) * generator.normal(size=patients * EYES)

    severe = shared()
    cuts = np.array([0.3, 0.8, 1.3, 1.8])  # most eyes are healthy, few are worst
    truth, said = (np.digitize(value, cuts) for value in (severe, severe + noise * shared()))
    task = Task(name="grade", kind="ordinal", classes=tuple(range(GRADES)), truth=truth.astype(np.int64))
    return task, Prediction(scores=np.eye(GRADES)[said], predicted=said.astype(np.int64), probabilities=False)


def _weights(patients: int, replicates: int, seed: int) -> NDArray:
    return cluster_weights([str(eye // EYES) for eye in range(patients * EYES)], replicates=replicates, seed=seed)


def _generator(seed: int, *key: object) -> np.random.Generator:
    words = [seed, *(ord(letter) for letter in repr(key))]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def _means(found: dict[str, list[tuple[bool, float]]]) -> Rates:
    return {name: (float(np.mean(parts, axis=0)[0]), float(np.mean(parts, axis=0)[1])) for name, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    wanted = vars(parser.parse_args())
    began = time.perf_counter()
    graded = [(patients, noise) for patients in (50, 150, 500) for noise in (0.3, 1.0)]
    recalls, kappas = [], []
    with bar("coverage", len(SETTINGS) + len(graded)) as progress:
        for setting in SETTINGS:
            rates = coverage_of_recall(setting, **wanted)
            cells = " | ".join(_cell(rate) for rate in rates.values())
            recalls.append(f"| {setting.patients} | {setting.texts} | {setting.median:g} | {cells} |")
            progress.advance()
        for patients, noise in graded:
            (rate,) = coverage_of_kappa(patients, noise, **wanted).values()
            kappas.append(f"| {patients} | {noise} | {_cell(rate)} |")
            progress.advance()
    print("Share of 95 % intervals that hold the truth (mean width)\n")
    print(f"| patients | texts | median rank | {IMAGE_TO_TEXT} | {PER_TEXT} | {TEXT_TO_IMAGE} |")
    print("\n".join(["|---|---|---|---|---|---|", *recalls]), "\n")
    print("\n".join(["| patients | noise | quadratic kappa |", "|---|---|---|", *kappas]), "\n")
    print(
        f"{wanted['simulations']} simulations of {wanted['replicates']} replicates: {time.perf_counter() - began:.0f} s"
    )


def _cell(rate: tuple[float, float]) -> str:
    return f"{rate[0]:.3f} ({rate[1]:.3f})"


if __name__ == "__main__":
    main()
