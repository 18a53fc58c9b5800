"""How often intervals over patients and seeds hold the truth: simulated studies of methods that are equal.

python -m benchmarks.coverage_seeds [--simulations 1000] [--replicates 200]

A patient's value is what all trainings share, what a method makes of it, what a seed does to all methods, what a
training does to all patients, and a training's own error.  The interval is that of the difference of two methods'
means, whose truth is 0.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from maskedclip.console import bar
from maskedclip.evaluation.compare_seeds import (
    LEAST_FREEDOM,
    SeedVariance,
    block_variance,
    estimate_with_seeds,
    mean_over_seeds,
    seed_variance,
)
from maskedclip.evaluation.statistics import Distribution, difference

PATIENTS = 200
METHOD, OWN = 0.5, 0.5
SETTINGS = [(11, 2), (2, 2), (2, 3), (2, 5)]
RATIOS = (0.0, 1.2, 3.0)
COLUMNS = (
    "a study's, seeds paired",
    "--group",
    "patients alone",
    "both drawn again",
)


def coverage(methods: int, seeds: int, ratio: float, *, simulations: int, replicates: int) -> NDArray[np.float64]:
    """Share of the intervals that hold 0, one for each of COLUMNS.

    ratio: error of the difference from the seeds over that from the patients.  A seed does to all methods as much as a
    training does by itself, where it is above 0.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([methods, seeds, round(10 * ratio)])))
    from_patients = np.sqrt(2 * (METHOD**2 + OWN**2 / seeds) / PATIENTS)
    between = ratio * from_patients / np.sqrt(2 / seeds)
    inside = np.zeros(len(COLUMNS))
    for _ in range(simulations):
        values = _values(generator, methods, seeds, between)
        weights = generator.multinomial(PATIENTS, np.full(PATIENTS, 1 / PATIENTS), size=replicates) / PATIENTS
        drawn = np.einsum("msp,rp->msr", values, weights)
        made = {str(m): [_distribution(values[m, s], drawn[m, s]) for s in range(seeds)] for m in range(methods)}
        delta = difference(mean_over_seeds(made["0"]), mean_over_seeds(made["1"]))
        blocks = block_variance([dict(enumerate(parts)) for parts in made.values()], range(seeds))
        pooled = seed_variance(made)
        paired = blocks if blocks.freedom >= LEAST_FREEDOM else pooled
        for place, variance in enumerate((paired, pooled, SeedVariance())):
            estimate = estimate_with_seeds(delta, variance, 2 / seeds)
            inside[place] += estimate.low <= 0 <= estimate.high
        picked = generator.integers(0, seeds, (2, replicates, seeds))
        again = [
            np.take_along_axis(drawn[m].T, picked[m], axis=1).mean(axis=1)  # (R,)
            for m in range(2)
        ]
        low, high = np.percentile(again[0] - again[1], [2.5, 97.5])
        inside[3] += low <= 0 <= high
    return inside / simulations


def _values(generator: np.random.Generator, methods: int, seeds: int, between: float) -> NDArray[np.float64]:
    """By method, seed and patient."""
    return (
        generator.normal(size=PATIENTS)
        + METHOD * generator.normal(size=(methods, 1, PATIENTS))
        + between * generator.normal(size=(1, seeds, 1))
        + between * generator.normal(size=(methods, seeds, 1))
        + OWN * generator.normal(size=(methods, seeds, PATIENTS))
    )


def _distribution(values: NDArray[np.float64], replicates: NDArray[np.float64]) -> Distribution:
    return Distribution(value=float(values.mean()), replicates=replicates, n=PATIENTS, support=PATIENTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=200)
    wanted = vars(parser.parse_args())
    began = time.perf_counter()
    lines = [f"| methods x seeds | ratio | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    with bar("coverage", len(SETTINGS) * len(RATIOS)) as progress:
        for methods, seeds in SETTINGS:
            for ratio in RATIOS:
                rates = coverage(methods, seeds, ratio, **wanted)
                lines.append(
                    f"| {methods} x {seeds} | {ratio:g} | {' | '.join(f'{100 * rate:.1f}' for rate in rates)} |"
                )
                progress.advance()
    print("Share of 95 % intervals that hold the truth, in per cent\n")
    print("\n".join(lines), "\n")
    print(f"{wanted['simulations']} simulations, {PATIENTS} patients: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
