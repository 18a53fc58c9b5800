import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation import compare_figure
from maskedclip.evaluation.compare_figure import forest_plot, label_blocks, macro_blocks
from maskedclip.evaluation.compare_models import Comparison, compare_models
from maskedclip.evaluation.report_figures import BLUE, GREY, VERMILION
from maskedclip.evaluation.statistics import Estimate
from tests.evaluation.compare_case import MODEL, blurred, evaluated, rewritten


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("figure")
    models = {"clear": MODEL, "<blurred>": blurred(2.0), "blind": blurred(2.0, 3, text=False)}
    folders = {name: [evaluated(model, root / str(place))] for place, (name, model) in enumerate(models.items())}
    return compare_models(folders, "<blurred>", replicates=50)


def _size(svg: bytes) -> tuple[float, float]:
    root = ET.fromstring(svg)
    return float(root.attrib["width"].removesuffix("pt")), float(root.attrib["height"].removesuffix("pt"))


def _comments(svg: bytes) -> str:
    """Matplotlib draws letters as paths, and says what they spell in comments."""
    return svg.decode()


def test_forest_plot__is_svg_that_names_every_model(compared: Comparison) -> None:
    svg = forest_plot(compared, macro_blocks(compared), title="Means")
    said = _comments(svg)
    ET.fromstring(svg)
    for text in ("clear", "&lt;blurred&gt;", "Linear probe on f (encoder)", "Zero-shot, text prompts", "Means"):
        assert f"<!-- {text} -->" in said
    assert said.count("<!-- reference -->") == 5
    difference = compared.difference("clear", ("linear", "encoder", "macro"))
    assert difference is not None
    assert f"<!-- {difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}) -->" in said


def test_forest_plot__same_comparison_same_bytes(compared: Comparison) -> None:
    blocks = label_blocks(compared, ("linear", "encoder"))
    assert len(blocks) == 5
    assert forest_plot(compared, blocks) == forest_plot(compared, blocks)


def test_forest_plot__many_lines_stand_in_columns(compared: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = label_blocks(compared, ("linear", "encoder"))
    width, height = _size(forest_plot(compared, blocks))
    monkeypatch.setattr(compare_figure, "_MOST_LINES", 10)
    several = _size(forest_plot(compared, blocks))
    assert several[0] == pytest.approx(3 * width)
    assert several[1] < height * 0.7


@pytest.mark.parametrize(
    ("low", "high", "look"),
    [(0.01, 0.02, (BLUE, True)), (-0.02, -0.01, (VERMILION, True)), (-0.01, 0.01, (GREY, False))],
)
def test_look__tells_better_worse_and_neither(low: float, high: float, look: tuple[str, bool]) -> None:
    assert compare_figure._look(False, Estimate(value=0, low=low, high=high, n=1)) == look


def test_look__reference_and_undefined() -> None:
    assert compare_figure._look(True, None) == (GREY, True)
    assert compare_figure._look(False, None) == (GREY, False)
    assert compare_figure._look(False, Estimate(value=np.nan, low=np.nan, high=np.nan, n=1)) == (GREY, False)


def test_forest_plot__nothing_to_draw(compared: Comparison, tmp_path: Path) -> None:
    bare = {
        name: [rewritten(compared.folders[name][0], tmp_path / str(place), id=[])]
        for place, name in enumerate(("clear", "<blurred>"))
    }
    with pytest.raises(UserError, match="there is no AUROC to draw"):
        forest_plot(compare_models(bare, "clear", protocols=["retrieval"], replicates=5), [])


@pytest.mark.parametrize("lines", [64, 10])
def test_forest_plot__long_names_have_their_room(
    compared: Comparison, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr(compare_figure, "_MOST_LINES", lines)
    name = "cells/maskedclip-default-text0.5-seed0-steps20/run"
    folders = {name: compared.folders["clear"], "b": compared.folders["<blurred>"]}
    long = compare_models(folders, name, replicates=5)
    short = compare_models({name[:8]: folders[name], "b": folders["b"]}, name[:8], replicates=5)
    blocks = label_blocks(long, ("linear", "encoder"))
    drawn, usual = (compare_figure._drawn(part, blocks, "") for part in (long, short))
    for figure in (drawn, usual):
        figure.draw_without_rendering()
        inside = figure.bbox
        below = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
        for first, second in itertools.pairwise(below):
            assert first.x1 + 5 < second.x0
        assert all(inside.x0 < box.x0 and box.x1 < inside.x1 for box in below)
    # The axes are as wide as with short names.
    assert drawn.axes[0].bbox.width > 0.9 * usual.axes[0].bbox.width
    assert f"<!-- {name} -->" in _comments(forest_plot(long, blocks))


def test_shortened__keeps_both_ends() -> None:
    shown = compare_figure._shortened(f"{'a' * 60}{'b' * 60}")
    assert len(shown) <= 64
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert compare_figure._shortened("b" * 64) == "b" * 64
