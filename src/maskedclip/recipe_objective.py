"""The section `objective` of a recipe: what is learnt, and which parts it is put together from."""

from dataclasses import dataclass, field
from typing import Any, Literal

from maskedclip import parts
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecipe:
    """What is learnt, and how the losses are weighted.  A weight of 0 leaves out the loss and its modules."""

    mask_ratio: float = 0.75
    """Share of the patches hidden in the masked pass; exactly round((1 - ratio) L) stay visible."""
    decoded_share: float = 1.0
    """Share of the hidden patches that the decoders predict, drawn anew at each step; below 1 a step is cheaper."""
    clip_weight: float = 1.0
    """Weight of the image-text loss."""
    soft_targets: bool = True
    """Pairs with equal texts are positives of each other; false is plain InfoNCE."""
    temperature: float = 0.07
    """Initial temperature 1 / exp(s) of the image-text loss, learnt."""
    max_logit_scale: float = 100.0
    """Upper clamp of exp(s)."""
    mim_weight: float = 1.0
    """Weight of the masked image modelling loss."""
    normalise_pixels: bool = True
    """Target of masked image modelling: pixels normalised within each patch."""
    mkd_weight: float = 1.0
    """Weight of masked knowledge distillation after its ramp.  Fragile: sweep 0, 0.1, 0.5, 1, 2."""
    mkd_ramp: float | None = None
    """Share of the steps over which the distillation weight grows from 0; null takes training.warmup."""
    mkd_loss: Literal["cosine", "smooth_l1", "mse", "prototype_kl"] = "cosine"
    """Form of the distillation loss."""
    mkd_patches: Literal["masked", "all"] = "masked"
    """Patches that the distillation loss is taken over."""
    mkd_target: Literal["bridge", "projected"] = "bridge"
    """Target before (width D) or after (width E, unit length) the image projection."""
    mkd_teacher: Literal["online", "ema"] = "online"
    """Target from the trained encoder and bridge, or from their moving average."""
    mkd_centre: bool = False
    """Take the running mean of all target patches away from the target: what patches share is known without looking."""
    mkd_centre_decay: float = 0.9
    """Decay of that running mean, a step."""
    ema_decay: float = 0.999
    """Decay of the moving average teacher, a step."""
    ema_decay_end: float | None = None
    """Decay towards the end of the run, along a cosine, e.g. 1.0; null keeps ema_decay throughout."""
    prototype_temperatures: tuple[float, float] = (0.04, 0.1)
    """Teacher's and student's temperature over text prototypes, for prototype_kl."""
    masking: str = "random"
    """Which patches are hidden, by the name of a masking (docs/family/maskings.md lists them)."""
    masking_options: dict[str, Any] = field(default_factory=dict)
    """Options of the masking."""
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further losses by name, each with its `weight` (1), `ramp` (0) and its own options, e.g.
    {xclip: {weight: 1.0, clusters: 64}}."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        require(
            0 <= self.mask_ratio < 1, f"objective.mask_ratio: {self.mask_ratio} is outside [0, 1); the default is 0.75"
        )
        require(
            0 < self.decoded_share <= 1,
            f"objective.decoded_share: {self.decoded_share} is outside (0, 1]; 1 decodes all hidden patches",
        )
        for name in ("clip_weight", "mim_weight", "mkd_weight"):
            require(getattr(self, name) >= 0, f"objective.{name}: {getattr(self, name)} is negative; 0 leaves it out")
        require(
            not self.mkd_centre or self.mkd_loss != "prototype_kl",
            "objective.mkd_centre: a centred target has no meaning over text prototypes; choose another mkd_loss",
        )
        require(
            0 <= self.mkd_centre_decay < 1,
            f"objective.mkd_centre_decay: {self.mkd_centre_decay} is outside [0, 1); e.g. 0.9",
        )
        require(
            self.mkd_ramp is None or 0 <= self.mkd_ramp <= 1,
            f"objective.mkd_ramp: {self.mkd_ramp} is no share of the steps in [0, 1]; 0.1 is a tenth, null takes "
            "training.warmup",
        )
        terms = self.term_options
        require(
            self.clip_weight + self.mim_weight > 0 or bool(terms),
            "objective: clip_weight and mim_weight are both 0 and there are no terms, so nothing is learnt; raise one",
        )
        require(
            self.mkd_weight == 0 or self.shares_space,
            "objective.mkd_weight: distilled features come from the CLIP space; raise objective.clip_weight, or set 0",
        )
        require(
            self.mask_ratio > 0 or not self.needs_hidden,
            "objective.mask_ratio: 0 hides no patch, so masked losses have no patch to learn from; give 0.75",
        )
        require(self.temperature > 0, "objective.temperature: give a value above 0, e.g. 0.07")
        require(self.max_logit_scale > 0, "objective.max_logit_scale: give a value above 0, e.g. 100")
        require(0 <= self.ema_decay < 1, f"objective.ema_decay: {self.ema_decay} is outside [0, 1); e.g. 0.999")
        require(
            self.ema_decay_end is None or self.ema_decay <= self.ema_decay_end <= 1,
            f"objective.ema_decay_end: {self.ema_decay_end} is outside [ema_decay, 1]; give 1.0, or null for none",
        )
        require(min(self.prototype_temperatures) > 0, "objective.prototype_temperatures: both must be above 0")
        _ = self.chosen_masking
        require(
            self.ema_decay_end is None or self.needs_teacher,
            "objective.ema_decay_end: nothing here reads a moving average; set mkd_teacher ema, or leave it out",
        )
        require(
            self.masking == "random" or self.masks,
            f"objective.masking: {self.masking}, but no loss masks; raise objective.mim_weight, or leave it random",
        )

    @property
    def term_options(self) -> dict[str, Any]:
        """Typed options of the further losses whose weight is above 0, by name, in the order of the recipe."""
        found = {name: parts.read_options("terms", name, values) for name, values in self.terms.items()}
        return {name: options for name, options in found.items() if options.weight > 0}

    def summary(self) -> str:
        """The losses with their weights, and the masking, for a person."""
        weights = {"clip": self.clip_weight, "mim": self.mim_weight, "mkd": self.mkd_weight}
        weights |= {name: options.weight for name, options in self.term_options.items()}
        listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight > 0)
        return listed + (f"; {self.mask_ratio:.0%} hidden, masking {self.masking}" if self.masks else "")

    @property
    def chosen_masking(self) -> Any:
        """Typed options of the masking."""
        return parts.read_options("masking", self.masking, self.masking_options)

    @property
    def reads_text(self) -> bool:
        """Whether a loss, or a masking that is used, reads the texts of the paired images."""
        terms = self.term_options.values()
        return (
            self.clip_weight > 0
            or any(term.reads_text for term in terms)
            or (self.masks and self.chosen_masking.reads_text)
        )

    @property
    def reads_pairs(self) -> bool:
        """Whether a loss, or a masking that is used, reads retrieved texts."""
        terms = self.term_options.values()
        return any(term.reads_pairs for term in terms) or (self.masks and self.chosen_masking.reads_pairs)

    @property
    def masks(self) -> bool:
        """Whether there is a masked pass."""
        return self.mim_weight > 0 or self.mkd_weight > 0 or any(term.masks for term in self.term_options.values())

    @property
    def needs_hidden(self) -> bool:
        """Whether a loss is taken over hidden patches, so that some must be."""
        distils = self.mkd_weight > 0 and self.mkd_patches == "masked"
        return self.mim_weight > 0 or distils or any(term.masks for term in self.term_options.values())

    @property
    def shares_space(self) -> bool:
        """Whether a loss trains the space that images and texts share."""
        return self.clip_weight > 0 or any(term.shares_space for term in self.term_options.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether a part reads the moving average of encoder and bridge."""
        return (
            (self.mkd_weight > 0 and self.mkd_teacher == "ema")
            or any(term.needs_teacher for term in self.term_options.values())
            or (self.masks and self.chosen_masking.needs_teacher)
        )
