"""Whose the model's temperature is: a parameter that no loss reads would break data-parallel training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskedclip.objectives.pretraining import BuildContext

_WITHOUT_IT = ("siglip", "xclip")
"""Losses of the shared space that do not read the model's temperature."""


def freeze_idle_temperature(context: "BuildContext") -> bool:
    """Freeze the model's temperature where no loss of a recipe reads it; returns whether that is so."""
    objective = context.recipe.objective
    sharing = [name for name, options in objective.term_options.items() if options.shares_space]
    idle = objective.clip_weight == 0 and all(name in _WITHOUT_IT for name in sharing)
    if idle and context.model.logit_scale is not None:
        context.model.logit_scale.requires_grad_(False)
    return idle
