"""Over a real socket: slow and endless uploads, broken requests, many slow clients at once."""

import socket
import time
from collections.abc import Iterator

import pytest

from maskedclip.deployment.server import run
from maskedclip.deployment.server.served import Served
from maskedclip.deployment.server.settings import Settings
from maskedclip.errors import UserError
from tests.deployment.server.case import EYE, build_guard, running

HEAD = "POST /api/v1/findings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


@pytest.fixture(scope="module")
def address(served: list[Served]) -> Iterator[tuple[str, int]]:
    settings = Settings(port=0, max_bytes=1 << 20, upload_grace=0.5, upload_rate=1 << 20)
    guard = build_guard(served[:1], settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_HEADER_SECONDS", 0.5)
        with running(guard, settings) as at:
            yield "127.0.0.1", int(at.rpartition(":")[2])


def connect(address: tuple[str, int]) -> socket.socket:
    client = socket.create_connection(address)
    client.settimeout(20)
    return client


def answer(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def whole(address: tuple[str, int]) -> bytes:
    body = PART + EYE + b"\r\n--b--\r\n"
    with connect(address) as client:
        client.sendall(f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return answer(client)


def test_endless_body__is_stopped_without_content_length(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        sent = 0
        client.sendall(f"{len(PART):x}\r\n".encode() + PART + b"\r\n")
        try:
            for _ in range(2000):  # 130 MB
                client.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        said = answer(client)
    assert sent < 40 << 20
    assert said == b"" or b" 413 " in said.splitlines()[0]  # a reset may overtake the answer
    assert b" 200 " in whole(address).splitlines()[0]


def test_announced_body__too_large_is_refused_at_once(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.sendall(f"{HEAD}Expect: 100-continue\r\nContent-Length: {1 << 30}\r\n\r\n".encode())
        said = answer(client)
    assert b" 413 " in said.splitlines()[0]
    assert b"100 Continue" not in said


def test_slow_clients__are_given_up_and_keep_nobody_out(address: tuple[str, int]) -> None:
    slow = [connect(address) for _ in range(40)]
    try:
        for client in slow:
            client.sendall(f"{HEAD}Content-Length: 100000\r\n\r\n".encode() + PART)
        began = time.monotonic()
        assert b" 200 " in whole(address).splitlines()[0]
        assert time.monotonic() - began < 10
        for client in slow:
            assert b" 408 " in answer(client).splitlines()[0]
    finally:
        for client in slow:
            client.close()


def test_silent_clients__are_given_up(address: tuple[str, int]) -> None:
    for first in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
        with connect(address) as client:
            client.sendall(first)
            began = time.monotonic()
            assert b" 200 " not in answer(client)
            assert time.monotonic() - began < 10
    with connect(address) as client:  # a second request on a kept connection, one letter at a time
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.recv(1 << 16)
        began = time.monotonic()
        client.sendall(b"GET /health HTTP/1.1\r\nX: ")
        try:
            while time.monotonic() - began < 10:
                client.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - began < 5


def test_broken_requests__are_refused(address: tuple[str, int]) -> None:
    for request in (
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET /page/../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 60_000 + b"\r\n\r\n",
    ):
        with connect(address) as client:
            client.sendall(request)
            said = answer(client)
        assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 421", b"HTTP/1.1 431")), request
        assert b"root:" not in said
        assert b"server: uvicorn" not in said


def test_port__that_is_taken_is_named(address: tuple[str, int]) -> None:
    with pytest.raises(UserError, match="another program listens"), run.listen(Settings(port=address[1])) as bound:
        bound.listen()
    with pytest.raises(UserError, match="no address"):
        run.listen(Settings(host="nowhere.invalid"))


def test_answers__do_not_wait_for_acknowledgements(address: tuple[str, int]) -> None:
    times = []
    with connect(address) as client:
        for _ in range(20):
            began = time.monotonic()
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = b""
            while not said.endswith(b'{"status":"ok"}'):
                said += client.recv(1 << 16)
            times.append(time.monotonic() - began)
    assert sorted(times)[10] < 0.03
