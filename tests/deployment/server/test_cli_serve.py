"""The verb: one line for what cannot be, and a server that starts, answers and ends."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cli_case import refused


def test_serve__names_what_cannot_be(
    capsys: pytest.CaptureFixture[str], trained_run: Path, second_run: Path, index_file: Path, tmp_path: Path
) -> None:
    def said(*arguments: object) -> str:
        return refused(capsys, "serve", *arguments, "--port", "0")

    assert "no such run" in said(tmp_path / "none")
    assert "is the same model" in said(trained_run, "--compare", trained_run)
    assert "not of" in said(second_run, "--index", index_file)
    assert "no such column" in said(trained_run, "--index", index_file, "--show", "age")
    assert "add --index" in said(trained_run, "--show", "age")
    assert "no such file" in said(trained_run, "--api-key-file", tmp_path / "none")
    assert "no size" in said(trained_run, "--max-bytes", "many")
    assert "--queue" in said(trained_run, "--queue", "0")
    assert "no saved head" in said(trained_run, "--head", tmp_path)
    assert "give one of" in said(trained_run, "--head", tmp_path, "--labels", "a,b")
    assert "--findings" in said(trained_run, "--findings")
    assert "at least two" in said(trained_run, "--labels", "a")


def test_serve__starts_answers_and_ends(trained_run: Path, second_run: Path, index_file: Path) -> None:
    command = [sys.executable, "-m", "maskedclip", "serve", str(trained_run), "--compare", str(second_run)]
    command += ["--index", str(index_file), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert "not a diagnosis" in process.stdout.readline()
        line = process.stdout.readline()
        assert line.startswith("next: open http://127.0.0.1:")
        address = re.findall(r"http://[\d.:]+", line)[0]
        with urllib.request.urlopen(f"{address}/api/v1/model", timeout=20) as response:
            about = json.load(response)
        assert [model["name"] for model in about["models"]] == ["run", "second"]
        assert len(about["models"][0]["labels"]) > 5  # the findings that the package knows
        with urllib.request.urlopen(f"{address}/api/v1/search?text=private+words", timeout=20) as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "GET /api/v1/search 200" in log
    assert "private" not in log
    assert "Traceback" not in log
