"""How a finished file or folder gets its name: whole or not at all, and never in place of something that is there."""

import os
import secrets
from pathlib import Path

from maskedclip.errors import UserError


def partial_of(path: Path) -> Path:
    """A name beside `path` that nobody else uses, for what is not finished yet."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def publish(partial: Path, out: Path, option: str = "--out") -> None:
    """Give a finished file or folder its name.

    Raises:
        UserError: something took the name meanwhile; what was made stays under its other name.
        OSError: it cannot be renamed.
    """
    taken = UserError(
        f"{option} {out}: appeared meanwhile; what was made is {partial}: rename it, or remove {out.name}"
    )
    if not partial.is_dir():
        try:
            os.link(partial, out)  # unlike a rename, it replaces nothing
        except FileExistsError:
            raise taken from None
        except OSError:  # a file system without hard links
            pass
        else:
            partial.unlink()
            return
    if out.exists():
        raise taken
    partial.rename(out)
