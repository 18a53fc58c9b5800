"""Around every request: who calls, under which name, and what browsers must not do with the answer."""

import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from maskedclip.deployment.server import errors
from maskedclip.deployment.server.metrics import Metrics
from maskedclip.deployment.server.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("maskedclip.server")

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_OPEN = ("/", "/docs", "/openapi.json", "/health", "/ready", "/api/v1/health", "/api/v1/ready")
_OTHER = "other"
_HEADER_BYTES = 32 << 10
REQUEST = "maskedclip.request"


class Guard:
    """Checks host, origin and key before anything of a body is read; sets the security headers; counts and logs."""

    def __init__(self, app: FastAPI, settings: Settings, metrics: Metrics) -> None:
        self.app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        scope[REQUEST] = secrets.token_hex(6)

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", scope[REQUEST].encode()),
                    *(
                        (name.encode(), value.encode())
                        for name, value in SECURITY.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, answer)
            else:
                await error_response(scope, refusal)(scope, receive, answer)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", _OTHER)
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else _OTHER
            self._metrics.request(method, route, status, seconds)
            log.info("%s %s %d %.0f ms %s", method, route, status, 1000 * seconds, scope.get(REQUEST, ""))

    def _refusal(self, scope: Scope) -> errors.Refusal | None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in headers.raw) + len(scope["query_string"]) > _HEADER_BYTES:
            return errors.Refusal(431, "headers", "the request's headers are too long", headers={"Connection": "close"})
        if not self._settings.knows_host(headers.get("host")):
            return errors.Refusal(
                421, "unknown_host", "this server does not go by that name; start it with --allow-host NAME"
            )
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != headers.get("host", "").lower():
            return errors.Refusal(403, "foreign_origin", "pages of other sites may not ask this server")
        path = scope["path"]
        if self._settings.api_key is None or path in _OPEN or path.startswith("/page/"):
            return None
        shown = headers.get("x-api-key") or _bearer(headers.get("authorization"))
        if hmac.compare_digest(shown.encode(), self._settings.api_key.encode()):
            return None
        message = "give the key of this server in the header X-API-Key"
        if shown:
            message = "the key is not this server's"
        return errors.Refusal(401, "key", message, headers={"WWW-Authenticate": "Bearer"})


def error_response(scope: Scope, refusal: errors.Refusal) -> JSONResponse:
    """An error as JSON; the connection is closed where a body may still be under way."""
    headers = dict(refusal.headers or {})
    if scope["method"] == "POST" and refusal.status_code in (400, 401, 403, 408, 413, 415, 421):
        headers["Connection"] = "close"
    content = errors.body(refusal.code, refusal.message, str(scope.get(REQUEST, "")))
    return JSONResponse(content, status_code=refusal.status_code, headers=headers)


def _bearer(header: str | None) -> str:
    kind, _, key = (header or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _netloc(origin: str) -> str:
    """Host and port of an Origin header, "" of one that is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
