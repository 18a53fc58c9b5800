"""What is searched for: texts, pictures, rows of the file and mixtures of these; from flags or a table of queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskedclip.deployment.search import Hit, SearchIndex, compose
from maskedclip.errors import UserError

if TYPE_CHECKING:
    from maskedclip.deployment.composed import RetrievalHead
    from maskedclip.deployment.model import Model

_COLUMNS = ("text", "image", "id", "without", "weight", "name")


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query.

    text: what shall be there.  image: a photograph, or `id`: a row of the file in its place.  without: what shall not
    be there.  weight: share of the text, 0 to 1.  name: what the query is called in results.  head: name of a trained
    head that puts picture and text together; it knows their shares itself.
    """

    text: str | None = None
    image: Path | None = None
    id: str | None = None
    without: str | None = None
    weight: float = 0.5
    name: str = ""
    head: str = ""

    def __post_init__(self) -> None:
        if not (self.text or self.image or self.id):
            raise UserError("a query needs a text (--text), a picture (--image) or a row of the file (--id)")
        if self.image and self.id:
            raise UserError(f"--image {self.image} and --id {self.id}: give one of them, the picture of a query")
        if not 0 <= self.weight <= 1:
            raise UserError(f"--weight {self.weight:g}: is outside 0 (picture only) to 1 (text only)")
        if self.head and not (self.text and (self.image or self.id)):
            raise UserError("--head: puts a picture and a text together; give --text with --image or --id")
        if self.head and self.weight != 0.5:
            raise UserError("--weight: a head knows the share of the text itself; leave it out")
        if self.head and self.without:
            raise UserError('--without: a head reads one text; say it in --text, e.g. "now without drusen"')

    @property
    def has_words(self) -> bool:
        """Whether a text tower is needed."""
        return bool(self.text or self.without)

    @property
    def title(self) -> str:
        """The query in words."""
        parts = [self.image.name if self.image else f"row {self.id}" if self.id else ""]
        if self.text:
            mixed = f" (by {self.head})" if self.head else f" ({self.weight:g})" if parts[0] else ""
            parts.append(f'{"+ " if parts[0] else ""}"{self.text}"{mixed}')
        if self.without:
            parts.append(f'− "{self.without}" ({self.weight:g})')
        words = " ".join(part for part in parts if part)
        return f"{self.name}: {words}" if self.name else words

    def to_json(self) -> dict[str, Any]:
        """The parts that were given."""
        found = {"name": self.name, "text": self.text, "image": self.image and str(self.image), "id": self.id}
        found |= {"without": self.without}
        if self.head:
            return {key: value for key, value in found.items() if value} | {"head": self.head}
        mixed = {"weight": self.weight} if self.without or (self.text and (self.image or self.id)) else {}
        return {key: value for key, value in found.items() if value} | mixed


@dataclass(frozen=True, kw_only=True)
class Result:
    """A query, its own picture (JPEG, None for texts), what was found, and a remark for the reader."""

    query: Query
    picture: bytes | None
    hits: list[Hit]
    remark: str = ""


def combine(
    texts: Sequence[str],
    images: Sequence[Path],
    ids: Sequence[str],
    *,
    without: str | None = None,
    weight: float = 0.5,
) -> list[Query]:
    """Queries of what was given on a command line; one picture goes with each text, and one text with each picture.

    Raises:
        UserError: several texts and several pictures, or nothing at all.
    """
    shared = {"without": without, "weight": weight}
    pictures: list[dict[str, Any]] = [{"image": image} for image in images] + [{"id": id} for id in ids]
    if not texts:
        return [Query(**part, **shared) for part in pictures or [{}]]
    if not pictures:
        return [Query(text=text, **shared) for text in texts]
    if len(texts) > 1 and len(pictures) > 1:
        raise UserError(
            f"{len(texts)} texts and {len(pictures)} pictures: give one of either, or a table of queries (--queries)"
        )
    return [Query(text=text, **part, **shared) for text in texts for part in pictures]


def read_queries(path: Path, *, weight: float = 0.5) -> list[Query]:
    """Queries of a table with the columns text, image (beside the table), id, without, weight, name; any of them.

    Raises:
        UserError: the table cannot be read, or a row is no query; with its number.
    """
    import csv

    if not path.is_file():
        raise UserError(f"--queries {path}: no such file; a CSV with the columns {', '.join(_COLUMNS)}, any of them")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            known = [name for name in reader.fieldnames or [] if name in _COLUMNS]
            if not {"text", "image", "id"} & set(known):
                raise UserError(f"--queries {path}: needs a column text, image or id in its first line")
            rows = [{name: (row[name] or "").strip() for name in known} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--queries {path}: is no CSV in UTF-8 ({error}); save it as such") from None
    if not rows:
        raise UserError(f"--queries {path}: has no rows")
    found = []
    for number, row in enumerate(rows, 2):
        given = {name: value for name, value in row.items() if value}
        try:
            share = float(given.pop("weight", weight))
            image = given.pop("image", None)
            picture = {"image": path.parent / image} if image else {}
            found.append(Query(**given, **picture, weight=share))  # type: ignore[arg-type]
        except ValueError as error:  # a UserError is one
            raise UserError(f"--queries {path}: row {number}: {error}") from None
    return found


def encode(
    queries: Sequence[Query], index: SearchIndex, model: "Model | None", head: "RetrievalHead | None" = None
) -> np.ndarray:
    """Directions of queries, float32 (Q, E), unit length.

    Args:
        queries: one or several.
        index: for the rows that are queries, and the output that is compared.
        model: the one that made the index; None will do where all queries are rows.
        head: puts picture and text of all queries together, instead of a weighted mean.

    Raises:
        UserError: an unknown row, an unreadable picture, or a text where the output has none.
    """
    words = [word for query in queries for word in (query.text, query.without) if word]
    images = list(dict.fromkeys(query.image for query in queries if query.image))
    if words and index.output != "projected":
        raise UserError(f"--output {index.output}: texts are only comparable with `projected`; leave --output away")
    if (words or images) and model is None:
        raise UserError("--model: name the run whose `embed` wrote the file, to read texts and photographs")
    if head is not None and model is not None:
        from maskedclip.deployment.composed_query import composed_directions

        return composed_directions(queries, index, model, head)
    directions: dict[Any, np.ndarray] = {}
    if words and model is not None:
        listed = list(dict.fromkeys(words))
        directions |= zip(listed, model.encode_text(listed), strict=True)
    if images and model is not None:
        directions |= zip(images, model.encode_image(images, index.output), strict=True)

    def of_row(id: str) -> np.ndarray:
        vector = index.vector(index.row(id))
        if not vector.any():
            raise UserError(f"{index.path}: the row {id!r} has no vector")
        return vector

    return np.stack(
        [
            compose(
                directions[query.image] if query.image else of_row(query.id) if query.id else None,
                directions[query.text] if query.text else None,
                query.weight,
                without=directions[query.without] if query.without else None,
            )
            for query in queries
        ]
    )


def answer(
    queries: Sequence[Query],
    index: SearchIndex,
    model: "Model | None",
    *,
    top: int = 10,
    where: str | None = None,
    other_patients: bool = False,
    head: "RetrievalHead | None" = None,
) -> list[Result]:
    """Search for queries.  A row that is a query is not found by itself; with a head, nor is the same picture.

    Args:
        queries: one or several.
        index: what is searched.
        model: see `encode`.
        top: hits a query.
        where: a filter.
        other_patients: leave out the rows of the patient of a query's picture, where it is a row of the file, the file
            that a row was made of, or the same picture as one.
        head: see `encode`.

    Raises:
        UserError: see `encode` and `SearchIndex.search`.
    """
    directions = encode(queries, index, model, head)
    unwanted: list[set[int]] = []
    remarks = []
    for query in queries:
        row, remark = (index.row(query.id), "") if query.id else (None, "")
        skip = set() if row is None else {row}
        if (other_patients or head is not None) and query.image and model is not None:
            row = index.row_of_file(query.image)
            if row is None:
                row = index.copy_of(model.encode_image(query.image, index.output)[0])
            if row is None and other_patients:
                remark = "no row is this picture, so no patient was left out"
            elif row is not None:
                skip = {row}
        if other_patients and row is not None:
            skip = index.same_patient(row)
            name = index.table.column("id")[row].as_py()
            if skip == {row} and not _patient(index, row):
                remark = f"the picture is row {name}, whose patient is not known: only this row was left out"
            else:
                remark = f"the picture is row {name}, patient {_patient(index, row)}: {len(skip)} rows were left out"
        unwanted.append(skip)
        remarks.append(remark)
    found = index.search(directions, top, where, leave_out=unwanted)
    return [
        Result(query=query, picture=_picture(query, index), hits=hits, remark=remark)
        for query, hits, remark in zip(queries, found, remarks, strict=True)
    ]


def _patient(index: SearchIndex, row: int) -> str:
    known = index.table.column("patient")[row].as_py() if "patient" in index.columns else None
    return "" if known is None else str(known)


def _picture(query: Query, index: SearchIndex) -> bytes | None:
    if query.id:
        return index.picture(query.id)
    if query.image:
        from maskedclip.data.imaging import UndecodableImage, decode
        from maskedclip.deployment.search_pictures import to_thumbnail

        try:
            return to_thumbnail(decode(query.image.read_bytes()), 256)
        except UndecodableImage:
            return None
    return None
