"""The whole server as one ASGI application: interface, page and guard around an engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import maskedclip
from maskedclip.deployment.search import SearchIndex
from maskedclip.deployment.server import routes
from maskedclip.deployment.server.engine import Engine
from maskedclip.deployment.server.errors import Refusal
from maskedclip.deployment.server.guard import Guard, error_response
from maskedclip.deployment.server.metrics import Metrics
from maskedclip.deployment.server.reference import reference
from maskedclip.deployment.server.served import Served
from maskedclip.deployment.server.settings import Settings
from maskedclip.deployment.server.uploads import Buffers

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(("app.js", "api.js", "photograph.js", "cases.js", "dom.js"), "text/javascript; charset=utf-8"),
}
"""All that is ever read from the package: nothing else has an address."""
_CODES = {400: "bad_request", 404: "not_found", 405: "method", 406: "not_acceptable"}
_WORDS = {404: "there is nothing at this address", 405: "this address does not take that method"}


def page_files() -> dict[str, bytes]:
    """The page's files by name."""
    folder = resources.files("maskedclip.deployment.server") / "page"
    return {name: (folder / name).read_bytes() for name in PAGE}


def create_app(engine: Engine, metrics: Metrics) -> FastAPI:
    """The application without its guard; `build` adds it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(
        title="maskedclip",
        version=maskedclip.__version__,
        description="Findings, heat maps, similar cases and features of photographs. Research use; not a diagnosis.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
    )
    app.state.engine, app.state.settings, app.state.metrics = engine, engine.settings, metrics
    app.state.buffers = Buffers(engine.settings.buffered_bytes)
    app.include_router(routes.router)
    for path, handler in (("/health", routes.health), ("/ready", routes.ready), ("/metrics", routes.metrics)):
        app.get(path, include_in_schema=False)(handler)
    _add_page(app)
    _add_errors(app, metrics)
    return app


def build(
    served: Sequence[Served],
    settings: Settings,
    *,
    index: SearchIndex | None = None,
    indexed: Served | None = None,
    shown: Sequence[str] = (),
) -> Guard:
    """Engine, application and metrics behind a guard: what a web server runs.  Arguments as of `Engine`."""
    metrics = Metrics()
    engine = Engine(served, settings, index=index, indexed=indexed, shown=shown, watch=metrics.batch)
    app = create_app(engine, metrics)
    metrics.follow(queue=lambda: engine.queue.taken, buffered=lambda: app.state.buffers.held)
    return Guard(app, settings, metrics)


def _add_page(app: FastAPI) -> None:
    files = page_files()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(files["index.html"], media_type=PAGE["index.html"], headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=PAGE[name], headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(reference(app.openapi()), media_type="text/html; charset=utf-8")


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        if error.reason:
            metrics.rejected(error.reason)
        elif error.status_code == 429:
            metrics.rejected("busy")
        return error_response(request.scope, error)

    @app.exception_handler(HTTPException)
    async def standard(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "refused")
        message = _WORDS.get(error.status_code) or str(error.detail)
        return error_response(request.scope, Refusal(error.status_code, code, message, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return error_response(request.scope, Refusal(422, "field", f"{field or 'request'}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return error_response(
            request.scope, Refusal(500, "fault", "a fault of the server; its log has the number of this request")
        )
