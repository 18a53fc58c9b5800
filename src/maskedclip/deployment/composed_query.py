"""Queries of `search` that a trained head puts together, from photographs or rows of the file and words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maskedclip.deployment.composed import RetrievalHead
from maskedclip.deployment.composed_features import image_directions, text_directions
from maskedclip.deployment.model import Model
from maskedclip.deployment.search import SearchIndex
from maskedclip.deployment.search_query import Query
from maskedclip.deployment.search_vectors import is_vector, open_parquet
from maskedclip.errors import UserError

_OUTPUT = "bridge"


@torch.inference_mode()
def composed_directions(queries: Sequence[Query], index: SearchIndex, model: Model, head: RetrievalHead) -> np.ndarray:
    """Directions of queries that have a picture and a text each, float32 (Q, E), unit length.

    Raises:
        UserError: a query lacks one of them, another output than `projected` is searched, an unknown row, or a file
            without the feature that a row's picture is read from.
    """
    if index.output != "projected":
        raise UserError(f"--output {index.output}: a head's queries are only comparable with `projected`")
    for query in queries:
        if not (query.text and (query.image or query.id)):
            raise UserError(f"--head: the query {query.title!r} has no picture or no text; a head needs both")
    words = list(dict.fromkeys(query.text for query in queries if query.text))
    texts = dict(zip(words, text_directions(model, words), strict=True))
    pictures: dict[Any, np.ndarray] = {}
    files = list(dict.fromkeys(query.image for query in queries if query.image))
    if files:
        pictures |= zip(files, image_directions(model, model.encode_image(files, _OUTPUT)), strict=True)
    ids = list(dict.fromkeys(query.id for query in queries if query.id))
    if ids:
        pictures |= zip(ids, image_directions(model, _of_rows(index, [index.row(id) for id in ids])), strict=True)
    images = torch.from_numpy(np.stack([pictures[query.image or query.id] for query in queries]))
    composed = head.compose(images, torch.from_numpy(np.stack([texts[query.text or ""] for query in queries])))
    return composed.numpy()


def _of_rows(index: SearchIndex, rows: Sequence[int]) -> np.ndarray:
    """The `bridge` features of rows of the file, float32 (n, D)."""
    file = open_parquet(index.path)
    if _OUTPUT not in file.schema_arrow.names or not is_vector(file.schema_arrow.field(_OUTPUT).type):
        raise UserError(
            f"{index.path}: has no output {_OUTPUT}, which a head reads of a row; embed with --outputs "
            "bridge,projected, or give the photograph with --image"
        )
    ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    groups = np.searchsorted(ends, np.asarray(rows), side="right").tolist()
    values: list[list[float] | None] = [None] * len(rows)
    for group in dict.fromkeys(groups):  # a file may hold a million rows, and few are asked with
        column = file.read_row_group(group, columns=[_OUTPUT]).column(_OUTPUT)
        for place, row in enumerate(rows):
            if groups[place] == group:
                values[place] = column[row - int(ends[group])].as_py()  # counted from the group's end
    found = np.array([value if value is not None else [np.nan] for value in values], np.float32)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise UserError(f"{index.path}: a row that is asked with has no {_OUTPUT} feature; embed again")
    return found
