"""The folder of an evaluation's results, made and tried before hours of computing."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maskedclip.errors import UserError
from maskedclip.whole_files import PARTIAL


@contextmanager
def claimed_folder(out: Path) -> Iterator[None]:
    """Make `out` and try a file in it, before anything is computed; if the block fails, what was made goes if empty.

    Raises UserError: it exists and is no empty folder, or can't be written.
    """
    made: list[Path] = []
    try:
        try:
            if out.exists() and (not out.is_dir() or any(not _is_trial(entry) for entry in out.iterdir())):
                raise UserError(f"{out}: exists already; give another folder or remove it")
            for place in (*reversed(out.parents), out):
                if not place.is_dir():
                    with suppress(FileExistsError):  # another process was first
                        place.mkdir()
                        made.insert(0, place)
            trial = out / f"{PARTIAL}{uuid.uuid4().hex}"
            try:
                trial.write_bytes(b"\0")  # what is full takes an empty file
            finally:
                trial.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(out, error) from error
        yield
    except BaseException:
        for place in made:
            try:
                place.rmdir()
            except OSError:  # holds something
                continue
        raise


def _is_trial(entry: Path) -> bool:
    return entry.name.startswith(PARTIAL)


def unwritable(out: Path, error: OSError) -> UserError:
    """What a user is told of a folder of results that cannot be written."""
    return UserError(f"{out}: the results can't be written ({error}); free space or give another folder")
