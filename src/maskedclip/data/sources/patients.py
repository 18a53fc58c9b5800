"""The patient of an image, read from its file's name."""

from __future__ import annotations

import re

from maskedclip.errors import UserError


def patient_pattern(pattern: str | None, option: str = "--patient") -> re.Pattern[str] | None:
    """A user's regular expression; UserError where it is none."""
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{option} {pattern!r}: is no regular expression ({error}); write one such as '(\\d+)_(left|right)'"
        ) from error


def found_in(pattern: re.Pattern[str] | None, name: str) -> str | None:
    """The first group of the first match, the whole match where the pattern has no group; None where nothing is."""
    match = pattern.search(name) if pattern else None
    if match is None:
        return None
    return (match.group(1) if match.re.groups else match.group()) or None
