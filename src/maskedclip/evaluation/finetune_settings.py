"""What fine-tuning does, field by field.  The defaults are the protocol of RETFound (Zhou et al. 2023) and UrFound.

Both fine-tune as MAE does (arXiv 2111.06377, table 9); what is ours is marked so.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from maskedclip.recipe_sections import require

_LAYER_DECAY = {"full": 0.65, "lora": 1.0}


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """How an encoder is fine-tuned for labels."""

    method: Literal["full", "lora"] = "full"
    """`full` trains every weight; `lora` trains low-rank additions to the attention (arXiv 2106.09685) and the head."""
    epochs: int = 50
    """Passes over the training images."""
    warmup: float = 0.2
    """Share of the epochs with linear warm-up (10 of 50); then cosine to 0."""
    batch: int = 16
    """Images a step; what is left of a pass after the last whole batch waits for the next one."""
    lr: float = 5e-3
    """Base learning rate of the head, for a batch of 256; the effective rate is lr x batch / 256."""
    layer_decay: float | None = None
    """Each layer's learning rate relative to that of the layer above it; null is 0.65 for `full` and, ours, 1 for
    `lora`, whose additions all start from zero."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices (none on biases, norms, tokens, positions)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    drop_path: float = 0.2
    """Stochastic depth of the last block; it rises linearly from 0 in the first."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes."""
    head_start: Literal["zero", "probe"] = "zero"
    """Where the head begins: near zero, as in the protocol, or (ours) at a linear probe of the untouched features, so
    that the encoder isn't bent to a head that knows nothing (arXiv 2202.10054).  Take `probe` where steps are few: from
    zero, at the protocol's learning rate, the head alone needs some thousand."""
    class_weighting: Literal["none", "balanced", "sampler"] = "none"
    """`balanced` weighs the loss by n / (K n_k), as scikit-learn does; `sampler` draws images with these weights."""
    patience: int = 0
    """Epochs without a better validation AUROC after which the training ends; 0 is never."""
    max_train: int = 0
    """Most training images, taken patient by patient in a seeded order; 0 takes all."""
    size: int | None = None
    """Side of the input, pixels; null takes the encoder's.  Positions are resampled."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area range of the random resized crop (ours: that of pre-training)."""
    horizontal_flip: bool = True
    """Mirror half of the images."""
    colour_jitter: float = 0.0
    """Most that brightness, contrast and saturation are changed by, as a share."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 is no clipping.  Ours, as in pre-training."""
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    """Autocast of the training; losses, optimizer state and all predictions stay in float32."""
    lora_rank: int = 8
    """Rank of the additions."""
    lora_alpha: float = 16.0
    """The additions are scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout before the additions."""
    lora_mlp: bool = False
    """Whether the linear layers of the MLPs get additions too."""
    decoded_cache: Literal["auto", "on", "off"] = "auto"
    """Decode the store once into a memory-mapped file, as `data.decoded_cache` of a recipe."""
    workers: int = 0
    """Loader processes; 0 loads in the training process.  The results are the same."""
    max_bad_steps: int = 10
    """Steps with a non-finite gradient, skipped and counted, before the training is ended."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        for name, hint in get_type_hints(FineTuneSettings).items():
            words, value = get_args(hint) if get_origin(hint) is Literal else (), getattr(self, name)
            require(not words or value in words, f"finetune.{name}: {value!r}; choose from {', '.join(words)}")
        for name in ("epochs", "batch", "lora_rank"):
            require(getattr(self, name) >= 1, f"finetune.{name}: {getattr(self, name)}; give 1 or more")
        for name in ("patience", "max_train", "workers", "max_bad_steps", "clip_norm", "weight_decay"):
            require(getattr(self, name) >= 0, f"finetune.{name}: {getattr(self, name)} is negative; give 0 or more")
        for name in ("lr", "lora_alpha"):
            require(getattr(self, name) > 0, f"finetune.{name}: {getattr(self, name)}; give a value above 0")
        for name in ("warmup", "drop_path", "label_smoothing", "colour_jitter", "lora_dropout"):
            require(0 <= getattr(self, name) < 1, f"finetune.{name}: {getattr(self, name)} is outside [0, 1)")
        require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"finetune.layer_decay: {self.layer_decay} is outside (0, 1]; 1 gives all layers one learning rate",
        )
        for name in ("betas", "crop_scale"):
            pair = getattr(self, name)
            fits = isinstance(pair, tuple) and len(pair) == 2 and all(type(part) in (int, float) for part in pair)
            require(fits, f"finetune.{name}: {pair!r}; give two numbers, e.g. {name}=[0.2,0.9]")
        require(all(0 <= beta < 1 for beta in self.betas), f"finetune.betas: {self.betas}; both must be in [0, 1)")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"finetune.crop_scale: ({low}, {high}) must hold 0 < low <= high <= 1")
        require(self.size is None or self.size >= 16, f"finetune.size: {self.size} px is too small; give 16 or more")

    @property
    def effective_lr(self) -> float:
        """Peak learning rate of the head."""
        return self.lr * self.batch / 256

    @property
    def effective_layer_decay(self) -> float:
        """The layer decay, chosen by the method where none is given."""
        return _LAYER_DECAY[self.method] if self.layer_decay is None else self.layer_decay
