"""What `evaluate` wrote, read for pairing: each model's scores on the same test rows.  n test rows, m of them known."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.errors import UserError
from maskedclip.evaluation.dense_table import DENSE_SCHEMA, DENSE_TABLE
from maskedclip.evaluation.draws_table import DRAWS_TABLE, DrawnMeans, read_draws
from maskedclip.evaluation.evaluated_rows import TEST_SCHEMA, TEST_TABLE

MACRO = "macro"
Key = tuple[str, str, str]  # protocol, feature, label or "macro"

RANK_SCHEMA = pa.schema(
    [
        ("direction", pa.string()),
        ("id", pa.string()),  # of the image, or the text itself
        ("patient", pa.string()),  # null for a text, which belongs to many
        ("rank", pa.int64()),
        ("text", pa.string()),  # of an image; null for a text
    ]
)
_COLUMNS = ("protocol", "feature", "label", "class", "id", "patient", "score", "truth")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One label, or one class of a label, on the rows where it is known.

    rows (m,): positions among `Predictions.ids`, rising; score (m,) finite; truth (m,): has the finding, or the class.
    """

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    truth: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """One direction of retrieval.

    ids (q,) of the queries; patients (q,), '' for none; ranks (q,), from 1; texts (q,): the text of each image, None
    where the queries are texts or the evaluation is from before the texts were kept.
    """

    ids: NDArray[np.object_]
    patients: NDArray[np.object_]
    ranks: NDArray[np.int64]
    texts: NDArray[np.object_] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The scores in one folder.

    ids (n,): all test rows in the order of the store; patients (n,), '' where none is known; complete: whether that is
    so, else (of an earlier version) they are those that predictions.parquet names;
    scores: by key, then by class (None for a binary label); ranks: by direction, empty where none were kept; dense:
    the table of each image's figures of the dense probe, None where there is none; drawn: k-shot and label efficiency.
    """

    folder: Path
    ids: NDArray[np.object_]
    patients: NDArray[np.object_]
    scores: Mapping[Key, Mapping[str | None, Scores]]
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    dense: pa.Table | None = None
    drawn: DrawnMeans = field(default_factory=DrawnMeans)
    complete: bool = False


def read_predictions(folder: Path) -> Predictions:
    """The scores of one evaluation.

    Raises UserError: no predictions.parquet, one that is no table of predictions, a row that stands twice, a score
    that isn't finite.
    """
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise UserError(f"{folder}: has no predictions.parquet; give a folder that 'maskedclip evaluate' wrote")
    with _readable(path):
        scores = _predictions(folder, pq.read_table(path))
    dense = _dense(folder)
    if dense is not None and not len(scores.ids):  # nothing but the dense probe was evaluated
        _, first = np.unique(dense.column("id").to_numpy(), return_index=True)
        rows = dense.take(np.sort(first))
        patients = rows.column("patient").fill_null("").to_numpy()
        scores = replace(scores, ids=rows.column("id").to_numpy(), patients=patients)
    read = replace(scores, ranks=_ranks(folder), dense=dense, drawn=_drawn(folder))
    every = folder / TEST_TABLE
    if not every.is_file():
        return read
    with _readable(every):
        rows = pq.read_table(every).select(TEST_SCHEMA.names).cast(TEST_SCHEMA)
    ids = rows.column("id").to_numpy()
    whole = replace(scores, ids=ids, patients=rows.column("patient").fill_null("").to_numpy())
    if strangers := set(scores.ids) - set(ids):
        raise UserError(f"{every}: lacks {len(strangers)} rows that were scored; evaluate again")
    return replace(on_rows_of(whole, read), complete=True)


def comparable_rows(evaluations: Sequence[Predictions]) -> list[Predictions]:
    """All with all test rows, or where one is of an earlier version all with the rows that were scored."""
    if all(part.complete for part in evaluations):
        return list(evaluations)
    return [_scored_rows(part) for part in evaluations]


def _scored_rows(part: Predictions) -> Predictions:
    if not part.complete or not part.scores:
        return part
    used = np.zeros(len(part.ids), dtype=bool)
    for classes in part.scores.values():
        for scores in classes.values():
            used[scores.rows] = True
    return on_rows_of(replace(part, ids=part.ids[used], patients=part.patients[used]), part)


def read_results(folder: Path) -> dict[str, Any]:
    """The results of one evaluation as JSON.

    Raises UserError: no results.json, or one that `evaluate` can't have written.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no results.json; give a folder that 'maskedclip evaluate' wrote")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(folder, str(error)) from error
    about = results.get("about") if isinstance(results, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("store"), str):
        raise damaged(folder, "the store is not named in 'about'")
    return results


def damaged(folder: Path, why: str) -> UserError:
    """The error of a results.json that `evaluate` can't have written."""
    return UserError(f"{folder / 'results.json'}: is damaged ({why}); remove the folder and evaluate again")


def check_paired(first: Predictions, other: Predictions) -> None:
    """Refuse, as a UserError, two evaluations on different test rows or patients."""
    where = f"{first.folder} and {other.folder}"
    differing = len(set(first.ids) ^ set(other.ids))
    if differing:
        raise UserError(
            f"{where}: {differing} test rows are in one only; evaluate both models on the same store, with the same "
            "labels"
        )
    if dict(zip(first.ids, first.patients, strict=True)) != dict(zip(other.ids, other.patients, strict=True)):
        raise UserError(f"{where}: the test rows' patients differ; evaluate both models on the same store")


def on_rows_of(first: Predictions, other: Predictions) -> Predictions:
    """`other` with its rows in the order of `first`, which has all that it was scored on."""
    if np.array_equal(first.ids, other.ids):
        return other
    place = {key: row for row, key in enumerate(first.ids)}
    moved = np.array([place.get(key, -1) for key in other.ids], dtype=np.int64)
    scores = {
        key: {value: _sorted(moved[part.rows], part.score, part.truth) for value, part in classes.items()}
        for key, classes in other.scores.items()
    }
    return replace(other, ids=first.ids, patients=first.patients, scores=scores)


def rank_table(
    images: NDArray[np.int64],
    texts: NDArray[np.int64],
    ids: Sequence[str],
    patients: Sequence[str],
    keys: Sequence[str],
    own: NDArray[np.int64],
) -> pa.Table:
    """The ranks of both directions in RANK_SCHEMA, as an evaluation keeps them for paired differences of recall.

    images (q,), texts (T,): the ranks that `image_to_text_ranks` and `text_to_image_ranks` gave; ids, patients: of
    the q images; keys: the T distinct texts; own (q,): index of each image's text among them.
    """
    columns = {
        "direction": ["image_to_text"] * len(images) + ["text_to_image"] * len(texts),
        "id": [*ids, *keys],
        "patient": [*(patient or None for patient in patients), *([None] * len(texts))],
        "rank": np.concatenate([images, texts]),
        "text": [*(keys[text] for text in own.tolist()), *([None] * len(texts))],
    }
    return pa.Table.from_pydict(columns, schema=RANK_SCHEMA)


def _predictions(folder: Path, table: pa.Table) -> Predictions:
    columns = {name: table.column(name).combine_chunks() for name in _COLUMNS}
    codes, ids = _encoded(columns["id"])
    patients = np.full(len(ids), "", dtype=object)
    patients[codes] = columns["patient"].fill_null("").to_numpy(zero_copy_only=False)
    score = columns["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    truth = columns["truth"].to_numpy(zero_copy_only=False).astype(np.float64)
    scores: dict[Key, dict[str | None, Scores]] = {}
    for rows in _runs([columns[name] for name in _COLUMNS[:4]]):
        protocol, feature, label, value = (columns[name][int(rows[0])].as_py() for name in _COLUMNS[:4])
        where = f"{folder / 'predictions.parquet'}: {protocol}/{feature}/{label}"
        broken = int((~np.isfinite(score[rows]) | ~np.isfinite(truth[rows])).sum())
        if broken:
            raise UserError(f"{where}: {broken} of {len(rows)} scores are not finite; evaluate a model that is")
        part = _sorted(codes[rows], score[rows], truth[rows] > 0)
        if (np.diff(part.rows) == 0).any():
            twice = ids[part.rows[:-1][np.diff(part.rows) == 0][0]]
            raise UserError(f"{where}: row {twice} stands twice; evaluate on stores that share no image")
        scores.setdefault((protocol, feature, label), {})[value] = part
    return Predictions(folder=folder, ids=ids, patients=patients, scores=scores)


def _ranks(folder: Path) -> dict[str, Ranks]:
    """The rank of every query's answer, where the evaluation kept them: retrieval.parquet."""
    path = folder / "retrieval.parquet"
    if not path.is_file():
        return {}
    with _readable(path):
        return _ranks_by_direction(pq.read_table(path))


def _drawn(folder: Path) -> DrawnMeans:
    """The means over draws, where the evaluation kept them: draws.parquet."""
    path = folder / DRAWS_TABLE
    if not path.is_file():
        return DrawnMeans()
    with _readable(path):
        return read_draws(pq.read_table(path))


def _dense(folder: Path) -> pa.Table | None:
    """Every image's figures of the dense probe, where the evaluation kept them: dense.parquet."""
    path = folder / DENSE_TABLE
    if not path.is_file():
        return None
    with _readable(path):
        return pq.read_table(path).select(DENSE_SCHEMA.names).cast(DENSE_SCHEMA)


def _ranks_by_direction(table: pa.Table) -> dict[str, Ranks]:
    columns = {name: table.column(name).combine_chunks() for name in RANK_SCHEMA.names if name in table.column_names}
    ids = columns["id"].to_numpy(zero_copy_only=False)
    patients = columns["patient"].fill_null("").to_numpy(zero_copy_only=False)
    ranks = columns["rank"].to_numpy(zero_copy_only=False).astype(np.int64)
    texts = columns["text"].to_numpy(zero_copy_only=False) if "text" in columns else None
    found = {}
    for rows in _runs([columns["direction"]]):
        own = None if texts is None or any(text is None for text in texts[rows]) else texts[rows]
        found[columns["direction"][int(rows[0])].as_py()] = Ranks(
            ids=ids[rows], patients=patients[rows], ranks=ranks[rows], texts=own
        )
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What a damaged or foreign file raises, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is not a table of predictions ({said}); evaluate again") from error


def _encoded(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Codes from 0 in order of appearance (n,), and the value of each code."""
    encoded = column.dictionary_encode()
    return (
        encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        encoded.dictionary.to_numpy(zero_copy_only=False),
    )


def _runs(columns: list[pa.Array]) -> list[NDArray[np.int64]]:
    """The rows that agree in all columns (null is a value), one array a combination, in order of appearance."""
    if len(columns[0]) == 0:
        return []
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        encoded = column.dictionary_encode(null_encoding="encode")
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy(zero_copy_only=False)
    _, first, groups = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return [parts[group] for group in np.argsort(first, kind="stable")]


def _sorted(rows: NDArray[np.int64], score: NDArray[np.float64], truth: NDArray[np.bool_]) -> Scores:
    order = np.argsort(rows, kind="stable")
    return Scores(rows=rows[order], score=score[order], truth=truth[order])
