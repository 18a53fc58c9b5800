"""The interface under /api/v1: what may be asked, and in which shape it is answered."""

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile

from maskedclip.deployment.server import answers, photographs, schema
from maskedclip.deployment.server.engine import Engine, Upload
from maskedclip.deployment.server.errors import Refusal
from maskedclip.deployment.server.metrics import CONTENT_TYPE
from maskedclip.deployment.server.uploads import UploadRoute

_TEXT = 500
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Error, "description": "The form cannot be read."},
    401: {"model": schema.Error, "description": "The key is missing or wrong."},
    403: {"model": schema.Error, "description": "A page of another site asks."},
    408: {"model": schema.Error, "description": "The upload was too slow."},
    404: {"model": schema.Error, "description": "There is no such model."},
    409: {"model": schema.Error, "description": "This server's model or index cannot do that."},
    413: {"model": schema.Error, "description": "Too many bytes or pixels."},
    415: {"model": schema.Error, "description": "Not multipart/form-data."},
    421: {"model": schema.Error, "description": "The server does not go by the name in the Host header."},
    422: {"model": schema.Error, "description": "No picture, or a field that does not fit."},
    429: {"model": schema.Error, "description": "The queue is full; Retry-After says when to try again."},
    503: {"model": schema.Error, "description": "Not ready."},
    504: {"model": schema.Error, "description": "The answer took too long."},
}

router = APIRouter(prefix="/api/v1", route_class=UploadRoute, responses=_ERRORS)

Files = Annotated[
    list[UploadFile],
    File(
        alias="file",
        description="Photographs: JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000, AVIF or DICOM, by content; repeatable.",
    ),
]
OneFile = Annotated[UploadFile, File(alias="file", description="A photograph; see /findings.")]
ModelName = Annotated[
    str | None, Form(max_length=200, description="A model's name, see /model; the first if not given.")
]
Filter = "A condition on the columns that /model lists, e.g. `label.glaucoma = 1`."


@router.post("/findings", summary="What photographs show", tags=["photographs"])
async def findings(request: Request, file: Files, model: ModelName = None) -> schema.Findings:
    """Findings with their probability, most probable first; whether it is calibrated; whether the model abstains."""
    engine = _engine(request)
    one = engine.model(model)
    uploads = await _uploads(engine, file)
    ready, found = await engine.findings(one, uploads)
    return answers.findings(one, ready, found)


@router.post("/map", summary="Where in a photograph a text is", tags=["photographs"])
async def heat_map(
    request: Request,
    file: OneFile,
    text: Annotated[
        str, Form(min_length=1, max_length=_TEXT, description="A finding's name, or words.", examples=["drusen"])
    ],
    model: ModelName = None,
    contrast: Annotated[bool, Form(description="Less the map of a normal fundus.")] = True,
    draw: Annotated[bool, Form(description="Whether the picture comes along, or the grid alone.")] = True,
) -> schema.HeatMap:
    """Likeness of each patch with a text, as a grid of cosines and as a picture to lay over the photograph."""
    engine = _engine(request)
    one, words = engine.model(model), _words(text)
    (upload,) = await _uploads(engine, [file])
    ready, grid = await engine.map(one, upload, words, contrast=contrast)
    return await asyncio.to_thread(answers.heat_map, one, ready, words, grid, contrast=contrast, drawn=draw)


@router.post("/similar", summary="Similar cases with their reports", tags=["cases"])
async def similar(
    request: Request,
    file: OneFile,
    text: Annotated[
        str | None, Form(max_length=_TEXT, description="`This, but with ...`", examples=["haemorrhages"])
    ] = None,
    weight: Annotated[float, Form(ge=0, le=1, description="Share of the text.")] = 0.5,
    filter: Annotated[str | None, Form(max_length=1000, description=Filter)] = None,
    top: Annotated[int, Form(ge=1, le=50)] = 6,
) -> schema.SimilarCases:
    """The cases of the index that are nearest to a photograph, or to a photograph changed by a text."""
    engine = _engine(request)
    (upload,) = await _uploads(engine, [file])
    words = _words(text) if text and text.strip() else None
    cases = await engine.similar(upload, words, weight=weight, where=_condition(filter), top=top)
    return answers.similar(engine, cases)


@router.get("/search", summary="Cases by words", tags=["cases"])
async def search(
    request: Request,
    text: Annotated[str, Query(min_length=1, max_length=_TEXT, examples=["large optic cup"])],
    filter: Annotated[str | None, Query(max_length=1000, description=Filter)] = None,
    top: Annotated[int, Query(ge=1, le=50)] = 6,
) -> schema.SimilarCases:
    """The cases of the index that are nearest to a text."""
    engine = _engine(request)
    cases = await engine.similar(None, _words(text), weight=0.5, where=_condition(filter), top=top)
    return answers.similar(engine, cases)


@router.post("/embed", summary="Features of photographs", tags=["photographs"])
async def embed(
    request: Request,
    file: Files,
    model: ModelName = None,
    output: Annotated[
        list[str] | None, Form(description="`encoder`, `bridge`, `projected`; all if not given. May be repeated.")
    ] = None,
) -> schema.Features:
    """The numbers that `model.encode_image` gives: a photograph that is read alone, to the bit."""
    engine = _engine(request)
    one = engine.model(model)
    known = list(one.card.outputs)
    wanted = list(dict.fromkeys(output or known))
    if not set(wanted) <= set(known):
        raise Refusal(422, "output", f"this model's outputs are {', '.join(known)}")
    uploads = await _uploads(engine, file)
    ready, found = await engine.features(one, uploads)
    return answers.features(one, ready, found, wanted)


@router.post(
    "/preview",
    summary="A photograph as PNG",
    tags=["photographs"],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "At most 1,024 px on its longer side."}},
)
async def preview(request: Request, file: OneFile) -> Response:
    """For browsers, which show no DICOM and no TIFF."""
    engine = _engine(request)
    (upload,) = await _uploads(engine, [file], keep=False)
    return Response(await engine.preview(upload), media_type="image/png")


@router.get("/model", summary="Models, index and limits", tags=["server"])
async def model(request: Request) -> schema.About:
    """Names, fingerprints, labels, what they were trained on, what was measured, what the server takes."""
    return answers.about(_engine(request))


@router.get("/health", summary="Whether the server lives", tags=["server"])
async def health() -> schema.Health:
    """Answers as long as the process does."""
    return schema.Health(status="ok")


@router.get("/ready", summary="Whether it can answer", tags=["server"])
async def ready(request: Request) -> schema.Health:
    """503 where the model's thread has ended or is stuck."""
    engine = _engine(request)
    if not engine.queue.alive(2 * engine.settings.timeout):
        raise Refusal(503, "not_ready", "the model does not answer", headers={"Retry-After": "10"})
    return schema.Health(status="ready")


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    tags=["server"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
async def metrics(request: Request) -> Response:
    """Requests, times, queue, batches, refused uploads."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


def _engine(request: Request) -> Engine:
    return request.app.state.engine


async def _uploads(engine: Engine, files: Sequence[UploadFile], *, keep: bool = True) -> list[Upload]:
    """The bytes of a form's files; kept where the server was told to."""
    uploads = [Upload(name=photographs.harmless_name(file.filename), data=await file.read()) for file in files]
    if keep and engine.settings.keep_uploads is not None:
        for upload in uploads:
            await asyncio.to_thread(_keep, engine, engine.settings.keep_uploads, upload.data)
    return uploads


def _keep(engine: Engine, folder: Path, data: bytes) -> None:
    """Write an upload under a random name; no name of the client's, and nothing but a picture, reaches the disk."""
    try:
        photographs.check_deflated(data, engine.most_inflated(data))
        kind = photographs.read_header(data).kind
    except Exception:  # what cannot be read is refused when it is decoded, and not kept
        return
    suffix = photographs.SUFFIXES.get(kind, f".{kind.lower()}")
    path = folder / f"{secrets.token_hex(16)}{suffix}"
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(data)


def _words(text: str) -> str:
    """A text in one line.

    Raises:
        Refusal: 422, it is empty.
    """
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if not words:
        raise Refusal(422, "text", "give words, e.g. drusen")
    return words


def _condition(text: str | None) -> str | None:
    return text if text and text.strip() else None
