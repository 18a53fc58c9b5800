"""Sections of a recipe (the objective has a file of its own): every field, its default and what it refuses.

The defaults are the full recipe of SPEC.md (ViT-B/16 at 224 px).  Values that are no statement of the paper
(arXiv 2507.17239) are ours or a relative's, as the field says.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from maskedclip.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def require(condition: bool, message: str) -> None:
    """Raise a UserError with this message unless the condition holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What a step reads."""

    size: int = 224
    """Side of the square input, pixels."""
    batch_paired: int = 128
    """Images with text a step, all ranks together."""
    batch_unpaired: int = 128
    """Images without text a step, all ranks together."""
    pool: Literal["paired_and_unpaired", "paired", "all"] = "paired_and_unpaired"
    """Which images a step draws: both kinds; only those with text; or `all` of them, their texts unread."""
    text_fraction: float = 1.0
    """Share of the patients with text whose text is kept (seeded, nested); the others' images become unpaired."""
    sentences: Literal["all", "some", "one"] = "all"
    """What of a report a step reads: all of it, a random subset of its sentences, or one sentence."""
    context_length: int = 256
    """Tokens a text may have; the share of texts that are cut is printed."""
    texts: str | None = None
    """A table (CSV, TSV, JSON lines, Parquet) of texts without images, for losses that read texts alone."""
    texts_columns: tuple[str, ...] = ("text",)
    """Its columns that make a text, joined in this order."""
    batch_texts: int = 0
    """Texts without images a step, all ranks together."""
    images_per_document: int = 1
    """Paired images of one patient that come together at most, for losses that read documents (lcl)."""
    crop_scale_paired: tuple[float, float] = (0.2, 1.0)
    """Area range of the random resized crop of images with text; a small crop can lose the named lesion."""
    crop_scale_unpaired: tuple[float, float] = (0.2, 1.0)
    """Area range of the random resized crop of images without text."""
    horizontal_flip: bool = True
    """Mirror half of the images."""
    colour_jitter: float = 0.0
    """Most that brightness, contrast and saturation are changed by, as a share; keeps a small set's cameras from being
    learnt by heart."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the channels, in [0, 1], subtracted before the encoder."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the channels, in [0, 1]."""
    labels: tuple[str, ...] = ()
    """Labels that losses may read: names of the store's findings or classes, or `all` for all findings."""
    pairs: str | None = None
    """What `maskedclip pair` wrote: texts that were retrieved for images without text, for losses that read them."""
    decoded_cache: Literal["auto", "on", "off"] = "auto"
    """Decode the store once into a memory-mapped file; `auto` does so where it takes at most a quarter of the memory
    and of the free disk.  The pixels are the same."""
    workers: int = 4
    """Loader processes of each rank; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        require(self.size >= 16, f"data.size: {self.size} px is too small; give 16 or more")
        require(
            self.pool == "all" or self.batch_paired > 0,
            "data.batch_paired: 0, but the image-text loss keeps the features from collapsing; give 1 or more, "
            "or use --config mae to train without texts",
        )
        require(self.batch_paired >= 0, f"data.batch_paired: {self.batch_paired} is negative; give 1 or more")
        require(self.batch_unpaired >= 0, f"data.batch_unpaired: {self.batch_unpaired} is negative; give 0 or more")
        require(
            self.batch_paired + self.batch_unpaired > 0,
            "data.batch_paired and data.batch_unpaired: both are 0; give at least one image a step",
        )
        require(
            0 < self.text_fraction <= 1, f"data.text_fraction: {self.text_fraction} is outside (0, 1]; 0.25 keeps 25 %"
        )
        require(self.context_length >= 4, "data.context_length: too short; give 4 tokens or more")
        require(
            self.images_per_document >= 1,
            f"data.images_per_document: {self.images_per_document} is below 1; give e.g. 2",
        )
        require(self.batch_texts >= 0, f"data.batch_texts: {self.batch_texts} is negative; give 0 or more")
        require(
            self.texts is None or self.batch_texts > 0, "data.batch_texts: 0, so data.texts is not read; give e.g. 16"
        )
        require(
            self.texts is not None or self.batch_texts == 0,
            f"data.batch_texts: {self.batch_texts}, but data.texts names no table; name one, or give 0",
        )
        require(len(self.texts_columns) > 0, "data.texts_columns: empty; name the columns that make a text")
        require(self.workers >= 0, f"data.workers: {self.workers} is negative; give 0 or more")
        require(0 <= self.colour_jitter < 1, f"data.colour_jitter: {self.colour_jitter} is outside [0, 1); e.g. 0.3")
        require(
            self.pairs is None or self.pool == "paired_and_unpaired",
            f"data.pairs: retrieved texts belong to unpaired images, of which data.pool {self.pool} draws none; leave "
            "it out, or pool paired_and_unpaired",
        )
        require(
            self.pairs is None or self.batch_unpaired > 0,
            "data.pairs: retrieved texts belong to unpaired images, of which data.batch_unpaired 0 draws none; leave "
            "it out, or give e.g. 32",
        )
        for name in ("crop_scale_paired", "crop_scale_unpaired"):
            low, high = getattr(self, name)
            require(0 < low <= high <= 1, f"data.{name}: ({low}, {high}) must hold 0 < low <= high <= 1")
        require(all(value > 0 for value in self.std), "data.std: every value must be above 0")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The five modules."""

    image_encoder: str = "vit_base_patch16_224"
    """Any timm vision transformer, by its timm name; for volumes volume_vit or volume_swin_unetr."""
    image_encoder_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's constructor that change a fresh encoder, e.g. {patch_size: 8, depth: 6}."""
    image_weights: str | None = None
    """A local .safetensors file, `pretrained` (fetched by timm's name), or null for a fresh encoder."""
    lora_rank: int = 0
    """Rank of low-rank additions to the image encoder's blocks, and to a pretrained text encoder, whose other weights
    are then frozen (arXiv 2106.09685); needs `peft`.  The written model is plain.  0 trains every weight."""
    lora_alpha: float = 16.0
    """The additions are scaled by alpha / rank."""
    bridge: bool = True
    """Whether a bridge leads from the masked to the CLIP space; false makes them one space."""
    bridge_depth: int = 4
    """Transformer blocks of the bridge; 0 is no bridge."""
    bridge_start: Literal["random", "identity"] = "random"
    """`identity`: its blocks begin by adding nothing, so that a pretrained encoder's features reach the texts from the
    first step."""
    bridge_heads: int | None = None
    """Attention heads of the bridge; null takes the encoder's."""
    text_encoder: str = "small"
    """`small` (trained from scratch, vocabulary from the store's texts), a local folder of a BERT, or its name."""
    small_text_width: int = 256
    """Width of the small text encoder."""
    small_text_depth: int = 4
    """Blocks of the small text encoder."""
    small_text_heads: int = 4
    """Attention heads of the small text encoder."""
    small_text_vocabulary: int = 8192
    """Most word pieces in the vocabulary that is trained on the store's texts."""
    text_causal: bool = False
    """The text encoder reads from left to right, and a text's feature is its state at the last token; for next-token
    prediction (objective.terms lcl and causal)."""
    embed_dim: int = 512
    """Width E of the space that images and texts share."""
    image_pooling: Literal["mean", "attention"] = "mean"
    """How patch tokens become the image's feature in the shared space: their mean, or a mean weighted by learnt
    attention."""
    projection_norm: Literal["none", "batch"] = "none"
    """`batch` standardises pooled features over the global batch before they are projected; ours, for encoders from
    scratch, whose pooled features differ so little that contrast needs thousands of steps to find where."""
    image_decoder_width: int = 384
    """Width of the decoder that paints hidden patches."""
    image_decoder_depth: int = 4
    """Its blocks."""
    image_decoder_heads: int = 6
    """Its attention heads."""
    feature_decoder_width: int = 384
    """Width of the decoder that predicts CLIP-space features of hidden patches."""
    feature_decoder_depth: int = 2
    """Its blocks."""
    feature_decoder_heads: int = 6
    """Its attention heads."""

    @property
    def reads_volumes(self) -> bool:
        """Whether the image encoder reads volumes (`volume_vit`, `volume_swin_unetr`)."""
        return self.image_encoder.startswith("volume_")

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        require(self.lora_rank >= 0, f"model.lora_rank: {self.lora_rank} is negative; 0 is none, 16 is usual")
        require(self.lora_alpha > 0, f"model.lora_alpha: {self.lora_alpha}; give a value above 0")
        require(self.bridge_depth >= 0, f"model.bridge_depth: {self.bridge_depth} is negative; 0 is no bridge")
        require(
            self.bridge_heads is None or self.bridge_heads >= 1,
            f"model.bridge_heads: {self.bridge_heads}; give 1 or more, or null for the encoder's",
        )
        require(
            self.small_text_vocabulary >= 1, f"model.small_text_vocabulary: {self.small_text_vocabulary}; e.g. 8192"
        )
        for name in ("small_text_depth", "image_decoder_depth", "feature_decoder_depth"):
            require(getattr(self, name) >= 0, f"model.{name}: {getattr(self, name)} is negative; give 0 or more")
        self._check_encoder_options()
        for prefix in ("small_text", "image_decoder", "feature_decoder"):
            width, heads = getattr(self, f"{prefix}_width"), getattr(self, f"{prefix}_heads")
            require(width > 0 and heads > 0, f"model.{prefix}_width: {width} and {heads} heads; give 1 or more of both")
            require(width % heads == 0, f"model.{prefix}_width: {width} must be a multiple of {heads} heads")
            if "decoder" in prefix:
                require(width % 4 == 0, f"model.{prefix}_width: {width} must be a multiple of 4 (sin-cos positions)")
        require(self.embed_dim > 0, "model.embed_dim: give 1 or more")

    def _check_encoder_options(self) -> None:
        """Refuse what a step cannot repeat, or what would make an encoder of other images than the store's."""
        for name, value in self.image_encoder_options.items():
            require(
                not name.endswith(("drop_rate", "drop_path_rate")) or not value,
                f"model.image_encoder_options.{name}: {value!r} draws noise that no seed decides, so that no run can "
                "be repeated or resumed; leave it out",
            )
            require(
                name not in ("in_chans", "dynamic_img_size", "dynamic_img_pad"),
                f"model.image_encoder_options.{name}: the store has the channels, and all images are data.size on a "
                "side; leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How it is learnt."""

    steps: int = 50_000
    """Optimizer steps; 0 writes the untrained model."""
    lr: float = 1.5e-4
    """Base learning rate, for a batch of 256; the effective rate is lr x batch / 256 and is printed."""
    scale_lr: bool = True
    """Scale the learning rate by batch / 256; false takes `lr` as it is."""
    text_lr_factor: float = 0.2
    """Learning rate of the text encoder, relative to the others."""
    image_lr_factor: float = 1.0
    """Learning rate of the image encoder, relative to the others."""
    warmup: float = 0.2
    """Share of the steps with linear warm-up; then cosine to 0."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices (none on biases, norms, tokens, positions, temperature)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 is no clipping."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Learning rates of parameters whose names match a regular expression, relative to what they would have; the first
    match counts, 0 freezes, e.g. {"encoder.vit.blocks.[0-5]\\.": 0, "bridge": 2.0}."""
    micro_batches: int = 1
    """Parts in which a step's batch is computed, so that a large batch fits; the gradient is that of the whole batch,
    contrast included."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass: about a third more time, a fraction of the memory."""
    compile: bool = False
    """torch.compile encoder, bridge, text encoder and decoders; given up with a printed reason where it fails."""
    ema_decay: float = 0.0
    """Decay a step of a moving average of the model's weights, which is then what is validated and saved; 0 is none."""
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    """Autocast of the modules; losses, norms and optimizer state stay in float32."""
    accelerator: str = "auto"
    """auto, cpu, cuda, mps."""
    strategy: str = "auto"
    """auto (one process, or DDP on several devices), ddp, fsdp (FSDP2: weights, gradients and optimizer sharded)."""
    devices: int | str = "auto"
    """Processes on each machine, or auto."""
    num_nodes: int = 1
    """Machines."""
    timeout_minutes: float = 10.0
    """How long a rank waits for another one before the run ends with an error."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    validate_every: int = 500
    """Steps between online probes on the validation split; 0 is never."""
    validate_rows: int = 1024
    """Most rows of the training and of the validation split that an online probe reads."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    sharded_checkpoints: bool = False
    """Each rank writes its own part; any number of ranks reads either kind."""
    best_metric: str | None = None
    """A figure of the online probes (probe_auroc, knn_auroc, ...); the best one's checkpoint is kept and the model."""
    patience: int = 0
    """Validations without a better training.best_metric after which the run ends; 0 is never."""
    tensorboard: bool = True
    """Write RUN/tensorboard beside metrics.jsonl."""
    max_minutes: float = 0.0
    """Stop, save and write the model after so many minutes of training; 0 is no limit."""
    max_bad_steps: int = 10
    """Steps with a non-finite loss or gradient, skipped and counted, before the run is ended."""
    first_stage: str | None = None
    """A shipped method that trains the image encoder first, in RUN/first_stage (clip_mae_init: mae)."""
    first_stage_share: float = 0.5
    """Share of `steps` that the first stage takes."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        for name in ("steps", "validate_every", "max_bad_steps"):
            require(getattr(self, name) >= 0, f"training.{name}: {getattr(self, name)} is negative; give 0 or more")
        for name in (
            "log_every",
            "validate_rows",
            "checkpoint_every",
            "keep_checkpoints",
            "num_nodes",
            "micro_batches",
        ):
            require(getattr(self, name) >= 1, f"training.{name}: {getattr(self, name)} is too small; give 1 or more")
        require(
            self.precision in ("bf16-mixed", "32-true"),
            f"training.precision: {self.precision} is not known; give bf16-mixed, or 32-true",
        )
        for name in ("text_lr_factor", "image_lr_factor", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"training.{name}: {value} is no number from 0 on; 0 is none")
        require(
            self.best_metric is None or self.validate_every > 0,
            f"training.best_metric: {self.best_metric} is measured by online probes; give training.validate_every 1 or "
            "more, or leave it out",
        )
        require(self.lr > 0, f"training.lr: {self.lr}; give a value above 0")
        require(0 <= self.warmup < 1, f"training.warmup: {self.warmup} is a share of the steps in [0, 1)")
        require(self.clip_norm >= 0, "training.clip_norm: give 0 (none) or more")
        require(0 <= self.ema_decay < 1, f"training.ema_decay: {self.ema_decay} is outside [0, 1); e.g. 0.9998")
        require(self.timeout_minutes > 0, "training.timeout_minutes: give more than 0, e.g. 10")
        require(self.patience >= 0, "training.patience: give 0 (never) or more")
        require(
            self.patience == 0 or (self.best_metric is not None and self.validate_every > 0),
            "training.patience: needs training.best_metric (e.g. probe_auroc) and training.validate_every above 0",
        )
        for pattern, factor in self.lr_factors.items():
            require(factor >= 0, f"training.lr_factors: {pattern}: {factor} is negative; 0 freezes")
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"training.lr_factors: {pattern}: no regular expression ({error}); e.g. encoder.vit.blocks.0"
                ) from None
        require(self.max_minutes >= 0, "training.max_minutes: give 0 (no limit) or more")
        require(0 < self.first_stage_share < 1, "training.first_stage_share: give a share in (0, 1)")
        require(all(0 <= beta < 1 for beta in self.betas), f"training.betas: {self.betas}; both must be in [0, 1)")
