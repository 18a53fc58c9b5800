"""Is it learning?  Online probes on the validation split, and signs of collapse (P26)."""

import numpy as np
import torch

from maskedclip.console import say
from maskedclip.data.images import image_batches, stored_image, undecodable
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.evaluation.knn import nearest_neighbours
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.selection import ranking_quality
from maskedclip.evaluation.tasks import Prediction, Task, read_tasks
from maskedclip.models.attention import evaluation_kernels
from maskedclip.models.features import BATCH, stack_features, to_input
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing
from maskedclip.models.volume_features import volume_features
from maskedclip.objectives.distillation import spread
from maskedclip.ranks import everybody, rank_and_world
from maskedclip.recipe import Recipe

_PROBE_C = 0.01
_STREAM = 4


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885): 1 .. min(N, D).

    Args:
        features: (N, D).
    """
    values = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0), compute_uv=False)
    share = values / max(values.sum(), 1e-12) + 1e-12
    return float(np.exp(-(share * np.log(share)).sum()))


class Monitor:
    """Scores the encoder on rows that are fixed for a run: some of the training split, some of the validation split."""

    def __init__(self, store: Store, recipe: Recipe, preprocessing: Preprocessing) -> None:
        """All ranks must make theirs; rows that cannot be decoded are left out, and told.

        Raises:
            UserError: no row that it would look at can be decoded; all ranks raise it.
        """
        self.store, self.preprocessing = store, preprocessing
        limit = recipe.training.validate_rows
        random = np.random.Generator(np.random.Philox(key=np.asarray([recipe.seed, _STREAM], np.uint64)))
        self.tasks: dict[str, Task] = {}
        self._damaged = 0
        self.validation = self._decodable(_some(store.rows("val"), limit, random))
        tasks = read_tasks(store.labels)[0]
        labelled = np.any([task.known for task in tasks.values()], axis=0) if tasks else np.zeros(len(store), bool)
        train = store.rows("train")
        self.train = self._decodable(_some(train[labelled[train]], limit, random))
        if len(self.validation) and len(self.train):
            self.rows = np.concatenate([self.train, self.validation])
            self.splits = np.asarray(["train"] * len(self.train) + ["test"] * len(self.validation))
            self.tasks = {name: task.on(self.rows) for name, task in tasks.items()}
        self.watched = self.validation
        if not len(self.watched):
            self.watched = self._decodable(_some(train, min(limit, 256), random))
        if not len(self.watched):
            raise UserError(
                "--data: no row that the online probes would read can be decoded; the store is damaged, curate it "
                "again, or give --training.validate_every 0"
            )
        if self._damaged and rank_and_world()[0] == 0:
            say(f"online probes leave out rows that cannot be decoded: {self._damaged:,}; curate the store again")

    def _decodable(self, rows: np.ndarray) -> np.ndarray:
        """The rows that can be decoded, tried by all ranks now: one that failed later would leave others waiting."""
        rank, world = rank_and_world()
        mine = rows[rank::world]
        damaged = np.concatenate(everybody(mine[undecodable(self.store, mine)]))
        self._damaged += len(damaged)
        return rows[~np.isin(rows, damaged)]

    @torch.inference_mode()
    def measure(self, model: MaskedCLIP) -> dict[str, float]:
        """k-NN and probe AUROC of the encoder on the validation split, rank and spread of the distillation target.

        The model must be in evaluation mode; computed in float32.
        """
        with evaluation_kernels(model):
            figures = self._spaces(model)
        if self.tasks:
            features = self._features(model)
            patients = self.store.patients[self.rows]
            neighbours = nearest_neighbours(features, self.tasks, self.splits, ks=(20,), default=20)
            probed = linear_probe(features, self.tasks, self.splits, patients, grid=(_PROBE_C,))
            figures |= {
                "knn_auroc": self._macro(neighbours),
                "probe_auroc": self._macro(probed),
                "encoder_rank": effective_rank(features[self.splits == "test"]),
            }
        return {name: value for name, value in figures.items() if np.isfinite(value)}

    def _features(self, model: MaskedCLIP) -> np.ndarray:
        """Of all watched rows, in their order: each rank encodes some, and each row comes back to its place (P12)."""
        rank, world = rank_and_world()
        mine = np.arange(rank, len(self.rows), world)
        parts = everybody((mine, self._own_features(model, self.rows[mine]) if len(mine) else None))
        known = [(places, values) for places, values in parts if values is not None]
        features = np.empty((len(self.rows), known[0][1].shape[1]), np.float32)
        for places, values in known:
            features[places] = values
        return features

    def _own_features(self, model: MaskedCLIP, rows: np.ndarray) -> np.ndarray:
        """Of rows that this rank encodes, (n, D)."""
        if model.reads_volumes:
            return volume_features(model, self.store, rows, self.preprocessing)["encoder"]
        batches = image_batches(self.store, rows, size=self.preprocessing.size, batch=BATCH)
        return stack_features(model, batches, self.preprocessing)["encoder"]

    def _macro(self, predictions: dict[str, Prediction | str]) -> float:
        held_out = self.splits == "test"
        qualities = [
            ranking_quality(self.tasks[name].on(held_out), answer.scores)
            for name, answer in predictions.items()
            if not isinstance(answer, str)
        ]
        defined = [quality for quality in qualities if np.isfinite(quality)]
        return float(np.mean(defined)) if defined else float("nan")

    def _spaces(self, model: MaskedCLIP) -> dict[str, float]:
        """Rank and spread of z on at most 64 images."""
        device = next(model.parameters()).device
        images = [stored_image(self.store, row, self.preprocessing.size) for row in self.watched[:BATCH].tolist()]
        image = torch.stack(images).to(device)
        tokens = model.bridge(model.encoder(to_input(image, self.preprocessing)))
        pooled = model.pool(tokens).cpu().numpy()
        return {"target_spread": float(spread(model.encoder.patches(tokens))), "target_rank": effective_rank(pooled)}


def chosen_figure(figures: dict[str, float], metric: str) -> float:
    """The figure that `training.best_metric` names.

    Raises:
        UserError: there is none of this name.
    """
    if metric not in figures:
        raise UserError(
            f"training.best_metric: {metric} is not among the probes' figures ({', '.join(figures)}); "
            "probes need labels and rows with split val"
        )
    return figures[metric]


def collapse_message(figures: dict[str, float]) -> str | None:
    """A warning when the distillation target has become (nearly) constant, else None."""
    spread_of_target, rank = figures.get("target_spread", 1.0), figures.get("target_rank", 99.0)
    if spread_of_target < 0.05 or rank < 1.5:
        return (
            f"features have collapsed (spread {spread_of_target:.3f}, effective rank {rank:.1f}): "
            "lower objective.mkd_weight or training.lr, and check that the clip loss falls"
        )
    return None


def _some(rows: np.ndarray, limit: int, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= limit else np.sort(random.permutation(rows)[:limit])
