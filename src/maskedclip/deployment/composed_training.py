"""Training and judging a composed-retrieval head on features that frozen encoders gave: stage 2 of arXiv 2308.11485.

N rows of a store, n triplets, d width of the shared space.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.deployment.composed import Combiner, RetrievalHead, contrastive_loss
from maskedclip.deployment.composed_triplets import Triplets
from maskedclip.errors import UserError
from maskedclip.evaluation.retrieval import TIE

RECALL_AT = (1, 5, 10, 50)
_CHOSEN_BY = 10
_QUERIES = 512


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the Combiner is trained.

    The paper takes Adam at 2e-5, batches of 4,096 and 300 epochs for d = 640 and tens of thousands of triplets; the
    defaults here are for hundreds [inferred].  projection, hidden: widths; None: 4 d and 8 d [paper].
    """

    steps: int = 300
    batch: int = 64
    lr: float = 3e-4
    dropout: float = 0.5
    projection: int | None = None
    hidden: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < (2 if name == "batch" else 1):
                raise UserError(f"--{name} {getattr(self, name)}: give {2 if name == 'batch' else 1} or more")
        if not 0 < self.lr < 1:
            raise UserError(f"--lr {self.lr:g}: is outside 0 to 1; e.g. 3e-4")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout:g}: is outside 0 to 1; e.g. 0.5")


@dataclass(frozen=True, eq=False)
class Features:
    """Un-normalised features that encoders gave.

    images: float32 (N, d), of the store's rows.  captions: float32 (U, d) of distinct captions; number: of each one.
    """

    images: NDArray[np.float32]
    captions: NDArray[np.float32]
    number: dict[str, int]

    def of(self, triplets: Triplets) -> tuple[Tensor, Tensor, Tensor]:
        """Reference, caption and target of each triplet, (n, d) each."""
        words = self.captions[[self.number[caption] for caption in triplets.captions]]
        parts = (self.images[triplets.reference], words, self.images[triplets.target])
        return tuple(map(torch.from_numpy, parts))  # type: ignore[return-value]


def train_combiner(
    features: Features, train: Triplets, validation: Triplets | None = None, settings: Settings | None = None
) -> tuple[Combiner, dict[str, Any]]:
    """Train a Combiner; encoders take no part, so they cannot change.

    Args:
        features: of the encoders.
        train: what is learnt from.
        validation: with any, recall at 10 on them is measured ten times, and the best head so far is kept.
        settings: see `Settings`.

    Returns: the head, in evaluation mode, and a record of the training.

    Raises:
        UserError: fewer than two triplets.
    """
    settings = settings or Settings()
    if len(train) < 2:
        raise UserError(f"{len(train)} triplets for training are too few: at least 2, better some hundreds")
    batch, width = min(settings.batch, len(train)), features.images.shape[1]
    losses: list[float] = []
    judged: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(settings.seed)
        head = Combiner(width, projection=settings.projection, hidden=settings.hidden, dropout=settings.dropout)
        optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
        order = torch.zeros(0, dtype=torch.int64)
        for step in range(settings.steps):
            head.train()
            while len(order) < batch:
                order = torch.cat([order, torch.randperm(len(train))])
            chosen, order = order[:batch], order[batch:]
            some = train.on(chosen.numpy())
            right = torch.from_numpy(some.right(some.target))
            image, text, target = features.of(some)
            loss = contrastive_loss(head(image, text), target, right)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            last = step + 1 == settings.steps
            if validation is not None and len(validation) and ((step + 1) % max(1, settings.steps // 10) == 0 or last):
                found = float((ranks(head, features, validation) <= _CHOSEN_BY).mean())
                if not judged or found > max(value for _, value in judged):
                    best = {name: value.clone() for name, value in head.state_dict().items()}
                judged.append((step + 1, found))
    if best:
        head.load_state_dict(best)
    record = {
        "steps": settings.steps,
        "batch": batch,
        "lr": settings.lr,
        "seed": settings.seed,
        "triplets": len(train),
        "loss_first": losses[0],
        "loss_last": float(np.mean(losses[-max(1, len(losses) // 20) :])),
        "validation_recall_at_10": judged,
    }
    return head.eval(), record


@torch.inference_mode()
def ranks(
    head: RetrievalHead | str,
    features: Features,
    triplets: Triplets,
    gallery: NDArray[np.int64] | None = None,
    *,
    leave_out: bool = True,
) -> NDArray[np.int64]:
    """Rank of the best right row for each triplet, from 1, (n,); a tie counts against the head.

    Args:
        head: a head, or `image` or `text`: one part of the query alone.
        features: of the encoders.
        triplets: n of them.
        gallery: rows that are searched, (m,); None: all references and targets of these triplets.
        leave_out: the reference is no part of its own query's gallery; where it is, it is mostly the nearest row.
    """
    rows = np.unique(np.concatenate([triplets.reference, triplets.target])) if gallery is None else gallery
    targets = torch.nn.functional.normalize(torch.from_numpy(features.images[rows]), dim=-1)
    image, text, _ = features.of(triplets)
    found = []
    if isinstance(head, RetrievalHead):
        head.eval()
    for start in range(0, len(triplets), _QUERIES):
        part = slice(start, start + _QUERIES)
        if isinstance(head, RetrievalHead):
            query = head.compose(image[part], text[part])
        else:
            query = torch.nn.functional.normalize({"image": image, "text": text}[head][part], dim=-1)
        scores = (query @ targets.T).numpy()
        some = triplets.on(np.arange(len(triplets))[part])
        right = some.right(rows)
        if leave_out:
            scores = np.where(some.reference[:, None] == rows, -np.inf, scores)
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        found.append(1 + ((scores >= best - TIE) & ~right).sum(axis=1))
    return np.concatenate(found).astype(np.int64)


@torch.inference_mode()
def reference_first(head: RetrievalHead | str, features: Features, triplets: Triplets) -> float:
    """Share of the queries whose nearest row, where nothing is left out, is their own reference."""
    rows = np.unique(np.concatenate([triplets.reference, triplets.target]))
    targets = torch.nn.functional.normalize(torch.from_numpy(features.images[rows]), dim=-1)
    image, text, _ = features.of(triplets)
    if isinstance(head, RetrievalHead):
        query = head.eval().compose(image, text)
    else:
        query = torch.nn.functional.normalize({"image": image, "text": text}[head], dim=-1)
    nearest = rows[torch.cat([(part @ targets.T).argmax(dim=1) for part in query.split(_QUERIES)]).numpy()]
    return float((nearest == triplets.reference).mean())
