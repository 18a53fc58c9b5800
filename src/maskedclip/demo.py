"""The whole way in minutes: phantoms, store, training, evaluation of the trained and the untrained model, report."""

import json
import shutil
from pathlib import Path

from maskedclip.console import say
from maskedclip.data.curate import curate
from maskedclip.data.phantom import write_phantoms
from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.report import write_report
from maskedclip.evaluation.summary import difference_line, summary_lines
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.pretrain import pretrain

IMAGES, TEXT_FRACTION = 6000, 0.75
_AVERAGED = 7.5


def demo(out: Path, *, steps: int | None = None, images: int | None = None, seed: int = 0) -> Path:
    """Run the demo in `out`; an interrupted one goes on where it stopped.  Returns the report.

    Args:
        out: new or empty, or the folder of an interrupted demo with the same settings.
        steps: of training; None is the `tiny` recipe's.
        images: phantoms; None is 6,000.
        seed: of the phantoms and of the training.

    Raises:
        UserError: `out` holds something else.
    """
    recipe = load_recipe(["maskedclip", "tiny"]).replace(data={"text_fraction": TEXT_FRACTION})
    recipe = Recipe(
        seed=seed, data=recipe.data, model=recipe.model, objective=recipe.objective, training=recipe.training
    )
    steps = recipe.training.steps if steps is None else steps
    # The average reaches back over the same share of a run of any length.
    recipe = recipe.replace(training={"steps": steps, "ema_decay": max(0.0, 1 - _AVERAGED / max(1, steps))})
    _claim(out, {"images": images or IMAGES, "steps": recipe.training.steps, "seed": seed})
    manifest = _phantoms(out, images or IMAGES, seed)
    if not (out / "store").is_dir():
        say("curate: decoding, cropping, hashing the photographs into a store")
        curate(manifest, out / "store")
    say(f"pretrain: {TEXT_FRACTION:.0%} of the patients keep their report, the other images are unpaired")
    pretrain(recipe.replace(training={"steps": 0}), out / "store", out / "untrained", resume=True)
    pretrain(recipe, out / "store", out / "run", resume=True)
    store = open_store(out / "store")
    for name, run in (("untrained", out / "untrained"), ("trained", out / "run")):
        target = out / "evaluation" / name
        if not (target / "results.json").is_file():
            say(f"evaluate: the {name} model")
            shutil.rmtree(target, ignore_errors=True)
            evaluate(load(run), store, target)
        for line in summary_lines(json.loads((target / "results.json").read_text())):
            print(f"{name}: {line}")
    evaluations = {name: out / "evaluation" / name for name in ("trained", "untrained")}
    print(difference_line(evaluations["trained"], evaluations["untrained"]))
    return write_report(
        out / "report.html", out / "run", store, evaluations=evaluations, title="MaskedCLIP on phantoms"
    )


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Mark the folder as this demo's, or refuse."""
    mark = out / "demo.json"
    if mark.is_file():
        before = json.loads(mark.read_text())
        if before != settings:
            raise UserError(f"--out {out}: holds a demo with other settings ({before}); choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no demo's folder; choose another one")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(settings) + "\n")


def _phantoms(out: Path, images: int, seed: int) -> Path:
    """Draw the phantoms once; a half-drawn folder of a killed demo is drawn again."""
    folder, partial = out / "phantoms", out / "phantoms.partial"
    if not folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        say(f"phantom: drawing {images} fundus photographs")
        write_phantoms(partial, images=images, seed=seed)
        partial.rename(folder)
    return folder / "manifest.csv"
