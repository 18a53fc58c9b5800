"""What a server allows: sizes, times, who may ask."""

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from maskedclip.errors import UserError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SHORTEST_KEY = 16
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of one server.

    Attributes:
        host, port: where it listens.
        allowed_hosts: names that a browser may call it by, besides localhost, `host` and plain addresses.
        api_key: what callers must show; None lets everybody in.
        max_bytes: of one file.  max_files: of one request.  max_pixels: of one photograph, before it is decoded.
        queue: photographs that may be in work or wait; more are refused with 429.
        batch: photographs that the model sees at once, at most.
        timeout: seconds from a whole upload to its answer.
        upload_grace: seconds that an upload of any size may take.
        upload_rate: bytes a second that a longer one must reach.
        connections: open at once.
        keep_uploads: folder for the photographs; None keeps none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    max_bytes: int = 32 << 20
    max_files: int = 16
    max_pixels: int = 100_000_000
    queue: int = 64
    batch: int = 8
    timeout: float = 30.0
    upload_grace: float = 10.0
    upload_rate: int = 16 << 10
    connections: int = 512
    keep_uploads: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_files", "max_pixels", "queue", "batch", "connections"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not above 0")
        if not self.timeout > 0:
            raise UserError(f"--timeout: {self.timeout:g} is not above 0; give seconds, e.g. 30")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port: {self.port} is no port; give 0 (any free one) to 65535")

    @property
    def body_bytes(self) -> int:
        """Of a whole request: its files, and a little for the fields around them."""
        return min(4, self.max_files) * self.max_bytes + (1 << 20)

    @property
    def buffered_bytes(self) -> int:
        """Of all uploads that are being received at once: what bounds the server's memory."""
        return max(self.body_bytes, 512 << 20)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in _LOCAL

    def knows_host(self, header: str | None) -> bool:
        """Whether a request's Host header is one of ours.

        A page of somebody else's that has its own name point here is refused; plain addresses cannot be used for that.
        """
        name = re.sub(r":\d{1,5}$", "", (header or "").strip().lower()).strip("[]")
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            own = {*_LOCAL, self.host.lower(), socket.gethostname().lower(), *map(str.lower, self.allowed_hosts)}
            return name in own


def read_size(text: str) -> int:
    """A number of bytes or pixels as people write it: 32M, 500K, 1000000.  K, M, G are powers of 1,024.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"{text!r} is no size; write e.g. 32M")
    return int(float(found[1]) * _UNITS[found[2]])


def read_pixels(text: str) -> int:
    """A number of pixels: 100M is 100 million.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)", text.strip().upper())
    if found is None:
        raise ValueError(f"{text!r} is no number of pixels; write e.g. 100M")
    return int(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]])


def read_key(path: Path) -> str:
    """The key in a file's first line.

    Raises:
        UserError: there is none, or it is short enough to be guessed.
    """
    if not path.is_file():
        raise UserError(f"--api-key-file {path}: no such file; make one with `openssl rand -hex 32 > {path}`")
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--api-key-file {path}: cannot be read as plain ASCII text") from None
    if len(lines) != 1 or len(lines[0]) < _SHORTEST_KEY:
        raise UserError(
            f"--api-key-file {path}: needs one key of at least {_SHORTEST_KEY} characters without spaces; "
            f"make one with `openssl rand -hex 32 > {path}`"
        )
    return lines[0]
