"""What the engine found, in the shapes of the interface."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

import maskedclip
from maskedclip.deployment.classifier import Answer
from maskedclip.deployment.server import heatmap, schema
from maskedclip.deployment.server.engine import Case, Engine, Ready, base64_text
from maskedclip.deployment.server.photographs import region
from maskedclip.deployment.server.served import NOTICE, Served

_REPORT = "text"


def about(engine: Engine) -> schema.About:
    """Of the server: its models, index and limits."""
    settings = engine.settings
    return schema.About(
        version=maskedclip.__version__,
        models=[one.card for one in engine.served.values()],
        index=None if engine.index is None else len(engine.index),
        index_model=engine.indexed.name if engine.indexed is not None else None,
        filters=engine.shown,
        keeps_uploads=settings.keep_uploads is not None,
        limits=schema.Limits(
            file_bytes=settings.max_bytes,
            files=settings.max_files,
            pixels=settings.max_pixels,
            queue=settings.queue,
            batch=settings.batch,
            seconds=settings.timeout,
        ),
        notice=NOTICE,
    )


def findings(one: Served, ready: Sequence[Ready], answers: Sequence[Sequence[Answer]]) -> schema.Findings:
    """Of each photograph, most probable first."""
    assert one.classifier is not None
    results = [
        schema.FindingsOf(
            photograph=photograph(entry),
            findings=[
                schema.Finding(
                    label=answer.label,
                    probability=answer.probability,
                    score=answer.score,
                    found=answer.found,
                    certain=answer.certain,
                )
                for answer in listed
            ],
            abstained=not any(answer.certain for answer in listed),
        )
        for entry, listed in zip(ready, answers, strict=True)
    ]
    return schema.Findings(
        model=one.name,
        kind=one.classifier.kind,
        calibrated=one.classifier.calibrated,
        results=results,
        notice=NOTICE,
    )


def heat_map(
    one: Served, ready: Ready, text: str, grid: NDArray[np.float32], *, contrast: bool, drawn: bool
) -> schema.HeatMap:
    """A map with its picture, if that is wanted."""
    shown = heatmap.visible(ready, fundus=one.model.preprocessing.crop == "fundus")
    low, high = heatmap.value_range(grid, shown, contrast=contrast)
    return schema.HeatMap(
        model=one.name,
        text=text,
        contrast=contrast,
        photograph=photograph(ready),
        grid=grid.tolist(),
        low=low,
        high=high,
        image=base64_text(heatmap.layer(grid, shown, ready.transform, ready.size, (low, high))) if drawn else "",
        notice=NOTICE,
    )


def similar(engine: Engine, cases: Sequence[Case]) -> schema.SimilarCases:
    """Cases with what the server was told to show of them."""
    assert engine.index is not None
    assert engine.indexed is not None
    return schema.SimilarCases(
        model=engine.indexed.name,
        cases=[
            schema.SimilarCase(
                id=case.hit.id,
                score=case.hit.score,
                report=_words(case.hit.columns.get(_REPORT)) if _REPORT in engine.shown else None,
                columns={
                    name: _plain(case.hit.columns.get(name))
                    for name in engine.shown
                    if name not in (_REPORT, "id") and not _empty(case.hit.columns.get(name))
                },
                thumbnail=base64_text(case.thumbnail) if case.thumbnail is not None else None,
            )
            for case in cases
        ],
        searched=len(engine.index),
        notice=NOTICE,
    )


def features(
    one: Served, ready: Sequence[Ready], found: Sequence[Mapping[str, NDArray]], outputs: Sequence[str]
) -> schema.Features:
    """Chosen outputs as lists; a float32 is written as the double that equals it, so no bit is lost."""
    return schema.Features(
        model=one.name,
        fingerprint=one.model.fingerprint,
        results=[
            schema.FeaturesOf(photograph=photograph(entry), features={name: row[name].tolist() for name in outputs})
            for entry, row in zip(ready, found, strict=True)
        ],
    )


def photograph(ready: Ready) -> schema.PhotographInfo:
    """What an upload was and what was done to it."""
    width, height = ready.size
    return schema.PhotographInfo(
        name=ready.name,
        kind=ready.header.kind,
        size=schema.Size(width=width, height=height),
        region=schema.Region(**asdict(region(ready.transform))),
        notes=ready.notes,
    )


def _words(value: Any) -> str | None:
    return None if value is None else str(value)


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _plain(value: Any) -> Any:
    """A cell for JSON."""
    if isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if isinstance(value, date | datetime) else str(value)
