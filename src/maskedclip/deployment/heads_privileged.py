"""The classifier that a run of the loss `privileged_text` learnt, read from the run; see `objectives.privileged`."""

from collections.abc import Sequence
from pathlib import Path

from maskedclip.data.store import Store
from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.heads_fit import privileged_head
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.models.saving import read_decoders
from maskedclip.objectives.privileged import PrivilegedHead
from maskedclip.training.rundir import RunDirectory

_PREFIX = "privileged_text.head."


def read_privileged_head(run: Path, store: Store, *, labels: Sequence[str] = (), seed: int = 0) -> Classifier:
    """The run's head, calibrated on a store's validation rows; it reads images alone.

    Args:
        run: a run directory.
        store: with splits and labels.
        labels: as of `heads_fit.privileged_head`.
        seed: of the bootstrap.

    Raises:
        UserError: the run did not learn with that loss, or a label is missing.
    """
    model = load(run)
    columns = RunDirectory(run).read_recipe().data.labels
    found = read_decoders(run / "model").items()
    tensors = {name.removeprefix(_PREFIX): value for name, value in found if name.startswith(_PREFIX)}
    try:
        head = PrivilegedHead.of_tensors(tensors)
    except (KeyError, RuntimeError):
        raise UserError(
            f"{run}: holds no head of the loss privileged_text; train one with --config clipit_style, or take "
            "--method linear"
        ) from None
    if head.vision.out_features != len(columns):
        raise UserError(f"{run}: recipe.yaml names {len(columns)} labels, its head has {head.vision.out_features}")
    return privileged_head(model, head, columns, store, labels=labels, seed=seed)
