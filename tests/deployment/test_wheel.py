"""The wheel, as pip installs it: every file of the package is in it, and it runs from where it was put."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree by this environment's own hatchling, offline."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("no hatchling in this environment: pip install hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel__holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "maskedclip").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert len({Path(name).suffix for name in wanted} & {".yaml", ".css", ".html", ".typed"}) == 4
    assert wanted - held == set()
    assert {name.split("/")[0].split("-")[0] for name in held} == {"maskedclip"}  # no tests, no benchmarks
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_wheel__runs_from_where_pip_put_it(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(place)]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=120, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("no pip in this environment")
    assert done.returncode == 0, done.stderr
    program = "import maskedclip; print(maskedclip.__file__); from maskedclip.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(place), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(str(place))
    assert "maskedclip VERB" in shown.stdout
    (script,) = (place / "bin").glob("maskedclip*")
    assert "maskedclip.cli" in script.read_text()
