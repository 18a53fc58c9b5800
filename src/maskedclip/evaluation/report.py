"""One self-contained HTML page about a run: what was trained on what, how it went, what it sees and what it is worth.

It needs no script and no network, holds its pictures inside, and is the same byte for byte for the same inputs.  What
cannot be shown is left out with its reason.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.evaluation.report_dense import dense_probe_section
from maskedclip.evaluation.report_errors import worst_errors
from maskedclip.evaluation.report_gallery import maps, reconstructions, retrieval_examples
from maskedclip.evaluation.report_headline import headline
from maskedclip.evaluation.report_quality import calibration, few_labels, strengths, subgroups
from maskedclip.evaluation.report_roc import roc_curves
from maskedclip.evaluation.report_run import method_name, steps_done, training_curves, training_facts
from maskedclip.evaluation.report_subject import Subject, read_subject
from maskedclip.evaluation.report_tables import tables
from maskedclip.html import LeftOut, Section, page, why_not
from maskedclip.whole_files import write_whole

_HERE = Path(__file__).parent
_SECTIONS: tuple[tuple[str, str, Callable[[Subject], str]], ...] = (
    ("summary", "In short", headline),
    ("training", "What was trained on what", training_facts),
    ("curves", "How training went", training_curves),
    ("reconstructions", "Original, masked, reconstructed", reconstructions),
    ("maps", "What the patches of f and g(f) encode", maps),
    ("retrieval", "Retrieval examples", retrieval_examples),
    ("labels", "What it is good and bad at", strengths),
    ("errors", "Its worst errors", worst_errors),
    ("roc", "ROC curves", roc_curves),
    ("calibration", "Are its probabilities true?", calibration),
    ("subgroups", "Groups of patients", subgroups),
    ("few", "With few labels", few_labels),
    ("dense", "Where things are: masks from patch tokens", dense_probe_section),
    ("tables", "All figures with their intervals", tables),
    ("guide", "How to read this, and its limits", lambda _: _text("report_guide.html")),
)


def write_report(
    path: Path,
    run: Path,
    store: Store | None,
    *,
    evaluations: Mapping[str, Path] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> Path:
    """Write the report of a run, replacing an earlier one.

    Args:
        path: of the HTML file.
        run: what `pretrain` wrote.
        store: where the images come from that are shown; None leaves them out.
        evaluations: folders that `evaluate` wrote, by the reader's name for them; the first is the run's model, the
            others are compared with it.
        title: heading of the page.
        seed: decides which images and texts are shown, and the masks.

    Returns: `path`.

    Raises:
        UserError: `run` is no run directory.
    """
    subject = read_subject(run, store, evaluations or {}, seed)
    sections = [_section(subject, *entry) for entry in _SECTIONS]
    name = method_name(subject.recipe)
    shown = title or f"MaskedCLIP report: {run.resolve().name}"
    subtitle = (
        f"{name if name != 'own' else 'A recipe of its own'}, {subject.recipe.model.image_encoder} at "
        f"{subject.recipe.data.size} px, {steps_done(subject.run):,} steps"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(title=shown, subtitle=subtitle, sections=sections))
    return path


def _section(subject: Subject, anchor: str, title: str, build: Callable[[Subject], str]) -> Section:
    try:
        body = build(subject)
    except (LeftOut, UserError) as error:
        body = why_not(error)
    return Section(anchor=anchor, title=title, body=body)


def _text(name: str) -> str:
    """A file that comes with the package."""
    return (_HERE / name).read_text(encoding="utf-8")
