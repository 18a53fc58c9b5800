"""What a Parquet file of `embed` says about itself, read before any of its vectors."""

from pathlib import Path

import numpy as np

from maskedclip.deployment.search_stamp import Stamped
from maskedclip.deployment.search_vectors import open_parquet
from maskedclip.errors import UserError

_EXAMPLES = 128


def model_of(path: Path) -> str:
    """Fingerprint of the model that made a file, "" where the file names none.

    Raises:
        UserError: it is missing, or no Parquet file.
    """
    metadata = open_parquet(path).schema_arrow.metadata or {}
    return metadata.get(b"maskedclip.model", b"").decode(errors="replace")


def check_model(path: Path, fingerprint: str, named: str) -> None:
    """Refuse a file that another model made: its vectors would be compared with what they know nothing of.

    Args:
        path: the file.
        fingerprint: of the model at hand.
        named: how the user calls that model.

    Raises:
        UserError: the file names another model, or none.
    """
    made_by = model_of(path)
    if not made_by:
        raise UserError(
            f"{path}: does not name the model that made it (another tool wrote it anew?); embed again, or --any-model"
        )
    if made_by != fingerprint:
        raise UserError(
            f"{path}: was made by another model ({made_by}, and {named} is {fingerprint}); "
            f"embed again with {named}, or name its own run"
        )


def example_texts(path: Path, output: str) -> list[str]:
    """Some of the file's reports, distinct, to measure an index with; none where its index is there already."""
    if Stamped(path, f"{output}.usearch").facts() is not None:
        return []
    file = open_parquet(path)
    if "text" not in file.schema_arrow.names:
        return []
    known = file.read(columns=["text"]).column("text").unique().drop_null().to_pylist()
    texts = [str(text) for text in known if str(text).strip()]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(texts))[:_EXAMPLES]
    return [texts[place] for place in order]
