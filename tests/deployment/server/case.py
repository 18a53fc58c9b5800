"""What the server's tests share."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.heads import STEPS, Abstention
from maskedclip.deployment.model import Model
from maskedclip.deployment.server.app import build
from maskedclip.deployment.server.guard import Guard
from maskedclip.deployment.server.run import address, listen, make_server
from maskedclip.deployment.server.served import Served
from maskedclip.deployment.server.settings import Settings
from tests.stores import draw

LABELS = ("red lesion", "green lesion", "normal fundus")
EYE = draw(3, 48, 3)


def build_guard(served: Sequence[Served], settings: Settings, **more: Any) -> Guard:
    """A server of its own; close `app.state.engine` afterwards."""
    return build(served, settings, **more)


def with_own_head(one: Served, encoder: Model) -> Served:
    """The same model with a calibrated head that has an encoder of its own and is certain of nothing."""
    assert one.classifier is not None
    nothing = Abstention(
        thresholds=np.full((len(LABELS), STEPS), np.inf),
        coverages=np.zeros((len(LABELS), STEPS)),
        accuracies=np.full((len(LABELS), STEPS), np.nan),
    )
    head = replace(
        one.classifier.head, calibrated=np.ones(len(LABELS), bool), method="finetune", abstention=nothing, abstain=0.5
    )
    classifier = Classifier(head, encoder, base=one.model.fingerprint)
    return replace(one, classifier=classifier, card=one.card.model_copy(update={"calibrated": True, "abstains": 0.5}))


@contextmanager
def running(guard: Guard, settings: Settings) -> Iterator[str]:
    """The server on a free port of this machine: its address."""
    with listen(settings) as bound:
        server = make_server(guard, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield address(bound)
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()


def file(data: bytes = EYE, name: str = "eye.png") -> tuple[str, tuple[str, bytes, str]]:
    """A part of a form; its content type is a lie, which nobody believes."""
    return "file", (name, data, "text/plain")


def error_of(response: Any, status: int, code: str) -> str:
    """The message of a refusal of this status and code, which is an answer of the error model and names no path."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "request"}
    assert error["code"] == code
    assert error["request"] == response.headers["x-request-id"]
    assert "/tmp" not in error["message"]
    assert "Traceback" not in error["message"]
    return error["message"]
