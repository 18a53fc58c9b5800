"""A store whose test rows stay unread: choices are made on validation rows, as many as one likes.

What is called "test" here are the validation rows; an eighth of the training patients takes the place of the
validation rows.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.store import Store
from maskedclip.evaluation.selection import patient_folds
from maskedclip.evaluation.statistics import cluster_codes

_FOLDS = 8


class DevelopmentStore:
    """`store` with the splits moved: "val" is "test", one patient of eight of "train" is "val", "test" has no split.

    Rows are numbered as in `store`, so features and images are those of `store`.  Raises nothing: a store without
    validation rows has no test rows here, which `evaluate` refuses.
    """

    def __init__(self, store: Store, *, seed: int = 0) -> None:
        self.store, self._seed = store, seed

    def __len__(self) -> int:
        return len(self.store)

    @property
    def ids(self) -> Sequence[str]:
        """As of the store."""
        return self.store.ids

    @property
    def patients(self) -> NDArray[np.object_]:
        """As of the store."""
        return self.store.patients

    @property
    def texts(self) -> Sequence[str | None]:
        """As of the store."""
        return self.store.texts

    @property
    def labels(self) -> Mapping[str, NDArray]:
        """As of the store."""
        return self.store.labels

    @property
    def fingerprint(self) -> str:
        """Of the store, marked: these results are not comparable with those on its test rows."""
        return f"{self.store.fingerprint}-development"

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """The moved splits, (n,)."""
        given = self.store.splits
        moved = np.full(len(given), "", dtype="<U5")
        train = np.flatnonzero((given == "train") | (given == ""))
        moved[train] = "train"
        if len(train):
            folds = patient_folds(self.store.patients[train], folds=_FOLDS, seed=self._seed)
            if len(np.unique(cluster_codes(self.store.patients[train]))) > 1:
                moved[train[folds == 0]] = "val"
        moved[given == "val"] = "test"
        return moved
