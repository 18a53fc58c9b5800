"""How often 95 % intervals hold the truth: simulated patients with two eyes that share part of everything.

python benchmarks/coverage.py [--simulations 1000] [--replicates 500] [--seed 0]

Each simulation draws a test set from a model whose AUROC is known, and asks each method for its interval.  Both eyes
share most of what makes them ill, and of what disturbs their scores; the second model's errors are correlated with
the first's.  A rate of 0.95 has a standard error of 0.007 over 1,000 simulations.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from maskedclip.console import bar
from maskedclip.evaluation import metrics
from maskedclip.evaluation.calibration import calibration_error
from maskedclip.evaluation.delong import delong_area, delong_difference
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.scoring import label_metrics
from maskedclip.evaluation.statistics import (
    Distribution,
    class_supports,
    cluster_weights,
    paired_difference,
    with_point,
)
from maskedclip.evaluation.tasks import Prediction, Task

EYES = 2
SHARED = 0.7  # of the variance, by the eyes of a patient
LIKENESS = 0.8  # correlation of the two models' errors
BEHIND = 0.05  # by which the second model's AUROC is lower
TOO_SURE = 1.5  # factor on the logit of the probabilities whose calibration is judged


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Patients in the test set, share of positive eyes, and the first model's true AUROC."""

    patients: int
    prevalence: float
    auroc: float


SETTINGS = [
    Setting(patients=patients, prevalence=prevalence, auroc=auroc)
    for patients in (50, 100, 300)
    for prevalence in (0.1, 0.3)
    for auroc in (0.75, 0.95)
]
# What a clinic's own small set may look like.
SMALL = [Setting(patients=25, prevalence=0.3, auroc=0.85), Setting(patients=25, prevalence=0.5, auroc=0.85)]
OTHERS = [
    Setting(patients=100, prevalence=0.3, auroc=0.85),
    Setting(patients=300, prevalence=0.1, auroc=0.85),
]
METHODS = {
    "clustered": "AUROC, patient-clustered bootstrap, as reported",
    "percentiles": "AUROC, the same replicates, percentiles",
    "images": "AUROC, bootstrap of images as if independent",
    "difference": "difference of two models, paired bootstrap, as reported",
    "delong": "AUROC, clustered DeLong",
    "delong_difference": "difference of two models, clustered DeLong",
}


def simulate(generator: np.random.Generator, setting: Setting) -> tuple[NDArray, NDArray, NDArray]:
    """Truth (n,) and the scores of two models (n,), n = 2 x patients, the eyes of a patient one after the other."""

    def noise() -> NDArray:
        patient = np.repeat(generator.normal(size=setting.patients), EYES)
        return np.sqrt(SHARED) * patient + np.sqrt(1 - SHARED) * generator.normal(size=setting.patients * EYES)

    truth = noise() < norm.ppf(setting.prevalence)
    errors = noise()
    others = LIKENESS * errors + np.sqrt(1 - LIKENESS**2) * noise()
    return truth, errors + truth * _shift(setting.auroc), others + truth * _shift(setting.auroc - BEHIND)


def coverage(setting: Setting, *, simulations: int, replicates: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """By method: how often its interval holds the truth, and the mean width.

    Sets without two patients of each class, whose intervals are undefined, are drawn again.
    """
    patients = [str(eye // EYES) for eye in range(setting.patients * EYES)]
    # The draws of patients do not depend on the data, so all simulations share them.
    clustered = with_point(cluster_weights(patients, replicates=replicates, seed=seed))
    images = with_point(cluster_weights([None] * len(patients), replicates=replicates, seed=seed))
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in METHODS}
    for truth, first, second in _sets(setting, simulations, seed):
        one, other = (_distribution(truth, score, clustered) for score in (first, second))
        area = delong_area(truth, first, clusters=patients)
        test = delong_difference(truth, first, second, clusters=patients)
        difference = paired_difference(one, other)
        percentiles = Distribution(value=one.value, replicates=one.replicates, n=one.n)
        plain = _distribution(truth, first, images).estimate()
        intervals = {
            "clustered": (one.estimate().low, one.estimate().high),
            "percentiles": (percentiles.estimate().low, percentiles.estimate().high),
            "images": (plain.low, plain.high),
            "difference": (difference.low, difference.high),
            "delong": (area.low, area.high),
            "delong_difference": (test.low, test.high),
        }
        for name, (low, high) in intervals.items():
            true = BEHIND if "difference" in name else setting.auroc
            found[name].append((bool(low <= true <= high), high - low))
    return {name: (float(np.mean(parts, axis=0)[0]), float(np.mean(parts, axis=0)[1])) for name, parts in found.items()}


def coverage_of_other_metrics(
    setting: Setting, *, simulations: int, replicates: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """By metric of a binary label: how often its interval holds the value on a very large set, and the mean width."""
    patients = [str(eye // EYES) for eye in range(setting.patients * EYES)]
    weights = cluster_weights(patients, replicates=replicates, seed=seed)
    large = Setting(patients=500_000, prevalence=setting.prevalence, auroc=setting.auroc)
    truth, score, _ = simulate(np.random.Generator(np.random.Philox(seed)), large)
    true = _true_values(truth, _probability(score, setting))
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in true}
    for truth, score, _ in _sets(setting, simulations, seed):
        probability = _probability(score, setting)
        predicted = (probability > setting.prevalence).astype(np.int64)
        task = Task(name="simulated", kind="binary", classes=(0, 1), truth=truth.astype(np.int64))
        answer = Prediction(scores=probability, predicted=predicted, probabilities=True)
        for name, part in label_metrics(task, answer, weights).items():
            if name in found:
                estimate = part.estimate()
                held = estimate.low <= true[name] <= estimate.high
                found[name].append((bool(held), estimate.high - estimate.low))
    return {name: (float(np.mean(parts, axis=0)[0]), float(np.mean(parts, axis=0)[1])) for name, parts in found.items()}


def _sets(setting: Setting, simulations: int, seed: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Test sets with two patients of each class."""
    key = [seed, setting.patients, round(1000 * setting.prevalence), round(1000 * setting.auroc)]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    made = 0
    while made < simulations:
        truth, first, second = simulate(generator, setting)
        eyes = truth.reshape(-1, EYES)
        if min(eyes.any(axis=1).sum(), (~eyes).any(axis=1).sum()) >= 2:
            made += 1
            yield truth, first, second


def _distribution(truth: NDArray, score: NDArray, rows: NDArray) -> Distribution:
    support = class_supports(truth.astype(np.int64), 2, rows)[1]
    return Distribution.from_rows(metrics.auroc(truth, score, rows), len(truth), bounds=SHARE, support=support)


def _shift(auroc: float) -> float:
    """Distance of two unit normals of which one is above the other with this probability."""
    return float(np.sqrt(2) * norm.ppf(auroc))


def _probability(score: NDArray, setting: Setting) -> NDArray:
    """What a model that knows the simulation would say, only too sure of it."""
    shift = _shift(setting.auroc)
    return expit(TOO_SURE * (shift * score - shift**2 / 2 + logit(setting.prevalence)))


def _true_values(truth: NDArray, probability: NDArray) -> dict[str, float]:
    predicted = probability > expit(logit(truth.mean()))
    return {
        "auprc": float(metrics.average_precision(truth, probability)[0]),
        "balanced_accuracy": float((predicted[truth].mean() + (~predicted[~truth]).mean()) / 2),
        "sensitivity_at_90_specificity": float(metrics.sensitivity_at_specificity(truth, probability, None, 0.9)[0]),
        "brier": float(metrics.brier(truth, probability)[0]),
        "calibration_error": float(calibration_error(truth, probability)[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    wanted = vars(parser.parse_args())
    began = time.perf_counter()
    lines = [f"| patients | positive | AUROC | {' | '.join(METHODS)} |", f"|---|---|---|{'---|' * len(METHODS)}"]
    others: list[str] = []
    with bar("coverage", len(SETTINGS) + len(SMALL) + len(OTHERS)) as progress:
        for setting in SMALL + SETTINGS:
            lines.append(_line(setting, coverage(setting, **wanted)))
            progress.advance()
        for setting in OTHERS:
            rates = coverage_of_other_metrics(setting, **wanted)
            others = others or [
                f"| patients | positive | AUROC | {' | '.join(rates)} |",
                f"|---|---|---|{'---|' * len(rates)}",
            ]
            others.append(_line(setting, rates))
            progress.advance()
    print("Share of 95 % intervals that hold the truth (mean width)\n")
    print("\n".join(f"{name}: {what}" for name, what in METHODS.items()), "\n")
    print("\n".join(lines), "\n")
    print("\n".join(others), "\n")
    print(
        f"{wanted['simulations']} simulations of {wanted['replicates']} replicates: {time.perf_counter() - began:.0f} s"
    )


def _line(setting: Setting, rates: dict[str, tuple[float, float]]) -> str:
    cells = [f"{rate:.3f} ({width:.3f})" for rate, width in rates.values()]
    return f"| {setting.patients} | {setting.prevalence:.0%} | {setting.auroc} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
