"""Receiving photographs: counted, timed and held in memory while they come; nothing is written to a disk.

A body that is too large is stopped while it streams, with or without a Content-Length.  One that comes too slowly is
given up; a slow client holds only the bytes that it has sent, so many of them keep nobody else out.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from maskedclip.deployment.server.errors import Refusal, busy, too_large
from maskedclip.deployment.server.settings import Settings

_FIELDS, _FIELD_BYTES = 16, 8 << 10
_LINGER_SECONDS = 2.0


class Buffers:
    """Bytes of all uploads that are in memory."""

    def __init__(self, limit: int) -> None:
        self._limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Count bytes in.

        Raises:
            Refusal: 429, the memory for uploads is full.
        """
        if self.held + count > self._limit:
            raise busy("too many uploads at once")
        self.held += count

    def give_back(self, count: int) -> None:
        """Count bytes out."""
        self.held -= count


class UploadRoute(APIRoute):
    """A route whose form is read within the server's limits, and released when it is answered."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler that FastAPI made, on a request with limits."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method != "POST":
                return await inner(request)
            limited = LimitedRequest(request.scope, request.receive)
            try:
                return await inner(limited)
            finally:
                await limited.close()
                limited.buffers.give_back(limited.received)

        return handle


class LimitedRequest(Request):
    """A request whose multipart form stays in memory and within the settings.

    Attributes: `received`, bytes that are held.
    """

    def __init__(self, scope: Any, receive: Any) -> None:
        super().__init__(scope, receive)
        self.received = 0
        self.settings: Settings = scope["app"].state.settings
        self.buffers: Buffers = scope["app"].state.buffers

    async def _get_form(self, **_: Any) -> FormData:
        if self._form is None:
            if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                raise Refusal(
                    415, "unsupported", "send the photograph as multipart/form-data, field `file`", reason="form"
                )
            announced = self.headers.get("content-length", "")
            if announced.isdigit() and int(announced) > self.settings.body_bytes:
                raise await self._too_long()
            parser = _Parser(
                self.headers,
                self._within_limits(),
                max_files=self.settings.max_files,
                max_fields=_FIELDS,
                max_part_size=_FIELD_BYTES,
            )
            parser.file_bytes = self.settings.max_bytes
            try:
                self._form = await parser.parse()
            except MultiPartException as error:
                raise Refusal(400, "bad_form", f"the form cannot be read: {error.message}", reason="form") from None
            except ClientDisconnect:
                raise Refusal(400, "disconnected", "the upload broke off", reason="disconnected") from None
        return self._form

    async def _within_limits(self) -> AsyncGenerator[bytes, None]:
        began, settings, stream = time.monotonic(), self.settings, self.stream()
        while True:
            left = began + settings.upload_grace + self.received / settings.upload_rate - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise Refusal(
                    408, "slow_upload", "the upload was too slow; try again", reason="slow", headers=_CLOSE
                ) from None
            if chunk is None:
                return
            if self.received + len(chunk) > settings.body_bytes:
                raise await self._too_long()
            self.buffers.take(len(chunk))
            self.received += len(chunk)
            yield chunk

    async def _too_long(self) -> Refusal:
        """The refusal; what still comes is thrown away for a moment, so that the client gets to read it."""
        if "expect" not in self.headers:
            began, dropped = time.monotonic(), 0
            try:
                async with asyncio.timeout(_LINGER_SECONDS):
                    while dropped < self.settings.body_bytes and time.monotonic() - began < _LINGER_SECONDS:
                        message = await self.receive()
                        dropped += len(message.get("body", b""))
                        if message["type"] != "http.request" or not message.get("more_body"):
                            break
            except TimeoutError:
                pass
        refusal = _file_too_large(self.settings.max_bytes)
        refusal.headers = _CLOSE
        return refusal


class _Parser(MultiPartParser):
    """Starlette's parser without temporary files, and with a limit on each file."""

    spool_max_size = 1 << 62
    file_bytes = 0

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        super().__init__(headers, stream, **limits)
        self._size = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._size = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._current_part.file is not None and self._size > self.file_bytes:
            raise _file_too_large(self.file_bytes)
        super().on_part_data(data, start, end)


_CLOSE = {"Connection": "close"}


def _file_too_large(limit: int) -> Refusal:
    refusal = too_large(f"the file is larger than this server takes ({limit / (1 << 20):.3g} MB)")
    refusal.headers = _CLOSE
    return refusal
