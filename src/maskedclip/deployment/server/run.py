"""The application on a socket: uvicorn, with a limit on how long a client may take to say what it wants."""

import asyncio
import errno
import logging
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from maskedclip.deployment.server.guard import Guard
from maskedclip.deployment.server.settings import Settings
from maskedclip.errors import UserError

_HEADER_SECONDS = 10.0
_GOODBYE_SECONDS = 10


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request line and headers do not come within ten seconds.

    uvicorn limits only what comes after an answer; without this a client could hold a connection open for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of the next one."""
        super().data_received(data)
        if self._asking():
            self._stop()
        elif self._waiting is None:
            self._wait()

    def _asking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().call_later(_HEADER_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self._asking() and not self.transport.is_closing():
            self.transport.close()


def listen(settings: Settings) -> socket.socket:
    """A bound socket.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named, since asyncio sends small packets at once only on sockets that name it: without, the
        # client's delayed acknowledgement of the headers holds back each answer's body for 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    except socket.gaierror:
        raise UserError(f"--host {settings.host}: is no address of this machine; give e.g. 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port {settings.port}: another program listens there; give another, or 0 for a free one"
            ) from None
        raise UserError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror})"
        ) from None
    return bound


def address(bound: socket.socket) -> str:
    """The page's address on a bound socket."""
    listening, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening) or str(listening)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(guard: Guard, settings: Settings, bound: socket.socket) -> None:
    """Answer until the process is told to end, one line in the log for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log = logging.getLogger("maskedclip.server")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    make_server(guard, settings).run(sockets=[bound])


def make_server(guard: Guard, settings: Settings) -> uvicorn.Server:
    """A web server that is not started yet; requests in work get ten seconds to finish when it is told to end."""
    config = uvicorn.Config(
        guard,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,  # it would write texts that were searched for
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
        h11_max_incomplete_event_size=64 << 10,
    )
    return uvicorn.Server(config)
