"""What a composed-retrieval head is worth: recall at k beside the plain sum and each part of the query alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskedclip.deployment.composed import Combiner, RetrievalHead, SumHead
from maskedclip.deployment.composed_training import RECALL_AT, Features, ranks, reference_first
from maskedclip.deployment.composed_triplets import Triplets
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import Distribution, cluster_weights, difference, with_point

WAYS = ("combiner", "sum", "image", "text")
_REPLICATES = 1000
_NAMES = {"combiner": "combiner", "sum": "sum", "image": "photograph alone", "text": "words alone"}


def judge(
    head: RetrievalHead, features: Features, triplets: Triplets, patients: NDArray[np.object_], *, seed: int = 0
) -> dict[str, Any]:
    """Recall of a head, of the sum, and of picture and text alone, on the same triplets.

    Args:
        head: trained, or `SumHead`, which is then reported once.
        features: of the encoders.
        triplets: held out.
        patients: of the store's rows (N,); the bootstrap draws the patients of the references.
        seed: of the bootstrap.

    Returns: plain values.  `recall`: by way and "R@k", each {value, low, high, n}, the reference left out of the
        gallery; `with_reference`: the same with it in, values only; `reference_first`: how often it is then the
        nearest; `differences`: of the head to each other way at k = 1 and 10, paired; `gallery`, `triplets`.
    """
    heads: dict[str, RetrievalHead | str] = {"sum": SumHead(), "image": "image", "text": "text"}
    if isinstance(head, Combiner):
        heads = {"combiner": head} | heads
    who = patients[triplets.reference]
    weights = with_point(cluster_weights(who, replicates=_REPLICATES, seed=seed))
    found = {name: ranks(way, features, triplets) for name, way in heads.items()}
    inside = {name: ranks(way, features, triplets, leave_out=False) for name, way in heads.items()}
    gallery = len(np.unique(np.concatenate([triplets.reference, triplets.target])))
    support = float(len(set(who)))
    shares = {
        name: {k: recall(values, k, weights, support) for k in RECALL_AT if k < gallery}
        for name, values in found.items()
    }
    first = next(iter(heads))
    return {
        "triplets": len(triplets),
        "patients": int(support),
        "gallery": gallery,
        "recall": _plain(shares),
        "with_reference": {
            name: {f"R@{k}": float((values <= k).mean()) for k in shares[name]} for name, values in inside.items()
        },
        "reference_first": {name: reference_first(way, features, triplets) for name, way in heads.items()},
        "differences": {
            f"{first} - {name}": {
                f"R@{k}": difference(shares[first][k], shares[name][k]).estimate().to_json()
                for k in (1, 10)
                if k in shares[first]
            }
            for name in heads
            if name != first
        },
    }


def recall(values: NDArray[np.int64], k: int, weights: NDArray, support: float) -> Distribution:
    """Share of ranks (n,) within the first k, under bootstrap weights (1 + R, n)."""
    hits = weights @ (values <= k).astype(np.float64) / weights.sum(axis=1)
    return Distribution.from_rows(hits, len(values), bounds=SHARE, support=support)


def table(report: Mapping[str, Any]) -> list[str]:
    """The report for a terminal, line by line."""
    ks = list(next(iter(report["recall"].values())))
    lines = [f"{'':18}" + "".join(f"{k:>22}" for k in ks)]
    for way, row in report["recall"].items():
        cells = [f"{row[k]['value']:.3f} ({_end(row[k]['low'])}-{_end(row[k]['high'])})" for k in ks]
        lines.append(f"{_NAMES[way]:18}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def verdict(report: Mapping[str, Any], *, tuned: bool = False) -> str | None:
    """A warning where the head is not shown to find more than each simpler way does; None where it is.

    tuned: whether the encoders were trained for it, too.
    """
    first = next(iter(report["recall"]))
    for name, at in report["differences"].items():
        found = at.get("R@1")
        if found is None or (found["low"] is not None and found["low"] > 0):
            continue
        other = name.removeprefix(f"{first} - ")
        mend = "give more triplets" if tuned else "tune the encoders too (--finetune 200)"
        bounds = f" ({_end(found['low'])} to {_end(found['high'])})"
        return (
            f"the {_NAMES[first]} is not shown to find more than {_NAMES[other]} at R@1: "
            f"{found['value']:+.3f}{bounds}; {mend}, or search without it"
        )
    return None


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _plain(shares: Mapping[str, Mapping[int, Distribution]]) -> dict[str, dict[str, Any]]:
    return {name: {f"R@{k}": value.estimate().to_json() for k, value in row.items()} for name, row in shares.items()}
