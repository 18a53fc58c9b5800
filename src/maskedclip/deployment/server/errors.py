"""Refusals: a status, a code for programs, a sentence for people; never a path of this machine."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.exceptions import HTTPException

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:\\|~?/)(?:[^\s/\\:;,'\"]+[/\\])*[^\s/\\:;,'\"]*")


class Refusal(HTTPException):
    """A request that is not answered.

    Attributes:
        code: one word for programs.
        message: one sentence for people: what is wrong, and the mend.
        reason: of rejected uploads, counted in the metrics; "" for others.
    """

    def __init__(
        self, status: int, code: str, message: str, *, reason: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.message, self.reason = code, message, reason


def busy(message: str = "the server is busy") -> Refusal:
    """No room in the queue: 429, to be tried again."""
    return Refusal(429, "busy", f"{message}; try again in a moment", headers={"Retry-After": "2"})


def too_large(message: str, reason: str = "bytes") -> Refusal:
    """More bytes or pixels than allowed: 413."""
    return Refusal(413, "too_large", message, reason=reason)


def unreadable(message: str) -> Refusal:
    """A file that gives no picture: 422."""
    return Refusal(422, "unreadable", message, reason="unreadable")


def unavailable(message: str) -> Refusal:
    """What this server's model or index cannot do: 409."""
    return Refusal(409, "unavailable", message)


def body(code: str, message: str, request: str) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"code": code, "message": message, "request": request}}


def without_paths(message: str, secrets: Iterable[str] = ()) -> str:
    """A message of the library in one line, with whatever looks like a path of this machine left out."""
    line = " ".join(message.split())
    for secret in sorted(secrets, key=len, reverse=True):
        line = line.replace(secret, "…")
    return _PATH.sub("…", line)[:400]
