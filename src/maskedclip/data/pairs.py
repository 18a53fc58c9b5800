"""Retrieved texts of images that have none of their own: the file of `maskedclip pair`, and its use by the loader.

One row a pair: `id` of the image in its store, `sha256` of its source file where the store tells it, `text`, `score`
(cosine), `rank` (1 is the best).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip import randomness
from maskedclip.data.sentences import choose_sentences
from maskedclip.data.store import Store
from maskedclip.data.tokens import distinct_tokens
from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
    ]
)
_ABOUT = b"maskedclip.pairs"
_STREAM = 11


def pairs_table(
    store: Store,
    rows: NDArray[np.int64],
    texts: list[str],
    index: NDArray[np.int64],
    score: NDArray[np.float32],
    about: Mapping[str, Any],
) -> pa.Table:
    """The pairs of some rows as a table of `SCHEMA`, images in their order and texts best first.

    Args:
        store: of the images.
        rows: of the store, (n,).
        texts: that were retrieved from.
        index: of the texts of each row, -1 for none, (n, K).
        score: cosines, (n, K).
        about: plain values of how they were made, kept in the table's metadata.
    """
    image, column = np.nonzero(index >= 0)
    chosen = pa.array(rows[image])
    known = "sha256" in store.table.column_names
    sums = store.table.column("sha256").take(chosen).cast(pa.string()) if known else pa.nulls(len(image), pa.string())
    rank = np.cumsum(index >= 0, axis=1)[image, column]
    columns = {
        "id": store.table.column("id").take(chosen),
        "sha256": sums,
        "text": pa.array(texts, pa.string()).take(pa.array(index[image, column])),
        "score": score[image, column],
        "rank": rank,
    }
    return pa.table(columns).cast(SCHEMA).replace_schema_metadata({_ABOUT: json.dumps(dict(about)).encode()})


def read_pairs(path: Path) -> pa.Table:
    """The table of a file of pairs.

    Raises:
        UserError: there is no such file, it is no file of pairs, or it holds none.
    """
    make = "`maskedclip pair RUN --data STORE --out FILE.parquet` makes one"
    if not path.is_file():
        raise UserError(f"data.pairs: {path}: no such file; {make}")
    try:
        table = pq.read_table(path)
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(
            f"data.pairs: {path}: is no file of pairs ({str(error).splitlines()[0][:120]}); {make}"
        ) from None
    if not table.num_rows:
        raise UserError(f"data.pairs: {path}: holds no pair; pair again with a lower --threshold, or without --mutual")
    scores = table.column("score").to_numpy()
    if any(table.column(name).null_count for name in ("id", "text", "score")) or not np.isfinite(scores).all():
        raise UserError(f"data.pairs: {path}: has pairs without id, text or score; {make}")
    return table


def pairs_fingerprint(path: str | None) -> str | None:
    """Changes with the pairs; None without a file of them."""
    if path is None:
        return None
    digest = hashlib.sha256()
    for column in read_pairs(Path(path)).itercolumns():
        digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()[:16]


def about_pairs(path: Path) -> dict[str, Any]:
    """How a file of pairs was made: `model`, `store`, options, hubness; empty where it does not say."""
    return json.loads((pq.read_schema(path).metadata or {}).get(_ABOUT, b"{}"))


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievedTexts:
    """The texts of a store's rows.

    texts: distinct.  start: where each row's begin, (n + 1,).  text: place in `texts`, (m,).  score: cosines, (m,).
    """

    texts: list[str]
    start: NDArray[np.int64]
    text: NDArray[np.int64]
    score: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path, store: Store) -> "RetrievedTexts":
        """Read a file of pairs for a store.

        Raises:
            UserError: it is no file of pairs, or those of images that the store does not hold.
        """
        table = read_pairs(path)
        ids, sums = table.column("id").to_pylist(), table.column("sha256").to_pylist()
        _check_images(path, store, ids, sums)
        encoded = table.column("text").combine_chunks().dictionary_encode()
        order = np.lexsort((table.column("rank").to_numpy(), np.asarray(ids)))
        places: dict[str, list[int]] = {}
        for place in order.tolist():
            places.setdefault(ids[place], []).append(place)
        own = [places.get(name, []) for name in store.ids]
        chosen = np.asarray([place for entry in own for place in entry], np.int64)
        return cls(
            texts=encoded.dictionary.to_pylist(),
            start=np.cumsum([0, *(len(entry) for entry in own)]).astype(np.int64),
            text=encoded.indices.to_numpy().astype(np.int64)[chosen],
            score=table.column("score").to_numpy()[chosen],
        )

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have a text, (B,)."""
        return self.start[rows + 1] > self.start[rows]

    def draw(self, row: int, key: int) -> tuple[str, float] | None:
        """A text of a row and its score; which of several is decided by the sample's key.  None where it has none."""
        first, count = int(self.start[row]), int(self.start[row + 1] - self.start[row])
        if not count:
            return None
        place = first if count == 1 else first + int(randomness.generator(key, _STREAM).integers(count))
        return self.texts[int(self.text[place])], float(self.score[place])


def retrieved_fields(
    retrieved: RetrievedTexts,
    rows: NDArray[np.int64],
    keys: NDArray[np.int64],
    num_paired: int,
    tokenizer: TextTokenizer,
    sentences: str,
) -> dict[str, Tensor]:
    """The fields `retrieved_*` of a batch, by name; paired images have none, since they have a text of their own.

    Args:
        retrieved: of the store.
        rows: of the store, paired ones first, (B,).
        keys: of the samples, (B,).
        num_paired: B_p.
        tokenizer: of the model.
        sentences: `data.sentences`.
    """
    index, score = torch.full((len(rows),), -1), torch.zeros(len(rows))
    texts: list[str] = []
    places: list[int] = []
    for place in range(num_paired, len(rows)):
        drawn = retrieved.draw(int(rows[place]), int(keys[place]))
        if drawn is not None:
            texts.append(choose_sentences(drawn[0], sentences, int(keys[place])))
            places.append(place)
            score[place] = drawn[1]
    # One row at least, to which nobody refers, so that a step without any still has the same parts.
    ids, mask, own = distinct_tokens(texts or [""], tokenizer)
    index[places] = own[: len(places)]
    return {"retrieved_ids": ids, "retrieved_mask": mask, "retrieved_index": index, "retrieved_score": score}


def _check_images(path: Path, store: Store, ids: list[str], sums: list[str | None]) -> None:
    """Refuse pairs of images that the store does not hold."""
    has_sums = "sha256" in store.table.column_names
    held = store.table.column("sha256").to_pylist() if has_sums else [None] * len(store)
    known: dict[str, set[str | None]] = {}
    for name, value in zip(store.ids, held, strict=True):
        known.setdefault(name, set()).add(value)
    strange = [
        name
        for name, value in zip(ids, sums, strict=True)
        if name not in known or (value is not None and None not in known[name] and value not in known[name])
    ]
    if strange:
        images = len(set(strange))
        raise UserError(
            f"data.pairs: {path}: {images:,} of its {len(set(ids)):,} images are not in --data (e.g. {strange[0]}); "
            f"make it again with `maskedclip pair RUN --data {store.folders[0]}`"
        )
