"""MaskedCLIP (arXiv 2507.17239): image encoder f, bridge g, text encoder t and the space that images and texts share.

The decoders h_x and h_z belong to the objectives that train them.  B images, L patches, C class tokens (1 or 0),
D encoder width, E shared width.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.bridge import Bridge
from maskedclip.models.initialisation import initialise
from maskedclip.models.pooling import AttentivePooling
from maskedclip.models.standardise import BatchStandardise
from maskedclip.models.text import (
    TextEncoder,
    TextTokenizer,
    bert_from_config,
    make_causal,
    pretrained_bert,
    small_bert_config,
    train_tokenizer,
)
from maskedclip.models.vit import ImageEncoder, build_image_encoder
from maskedclip.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that rebuilds the architecture without the recipe; saved as model/config.json."""

    image_encoder: str
    size: int
    bridge_depth: int
    bridge_heads: int
    image_encoder_options: dict[str, Any] = field(default_factory=dict)
    embed_dim: int | None = None
    """None: images were trained without texts, so there is no shared space."""
    projection_norm: str = "none"
    """`batch`: pooled features are standardised before they are projected."""
    image_pooling: str = "mean"
    """`attention`: patch tokens are weighted before they are projected."""
    text: dict[str, Any] | None = None
    """transformers' configuration of the text encoder."""
    text_length: int = 0
    """Tokens of a text; shorter ones are padded, longer ones cut."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class MaskedCLIP(nn.Module):
    """The modules that a user keeps."""

    def __init__(self, config: ModelConfig, encoder: ImageEncoder, text_encoder: TextEncoder | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.bridge = Bridge(encoder.width, config.bridge_depth, config.bridge_heads)
        self.text_encoder = text_encoder
        self.image_projection: nn.Linear | None = None
        self.logit_scale: nn.Parameter | None = None
        self.standardise: nn.Module = nn.Identity()
        self.attention: AttentivePooling | None = None
        self.tokenizer: TextTokenizer | None = None
        """Of the text encoder, where there is one."""
        if config.embed_dim is not None:
            if config.projection_norm == "batch":
                self.standardise = BatchStandardise(encoder.width)
            if config.image_pooling == "attention":
                self.attention = AttentivePooling(encoder.width)
            self.image_projection = nn.Linear(encoder.width, config.embed_dim, bias=False)
            nn.init.normal_(self.image_projection.weight, std=encoder.width**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # (1,): FSDP2 shards no scalars

    def project(self, clip_tokens: Tensor) -> Tensor:
        """Pooled patch tokens of the CLIP space, projected: (B, C + L, D) -> unit length, float32 (B, E)."""
        return self.project_pooled(self.pool_clip(clip_tokens))

    def pool_clip(self, clip_tokens: Tensor) -> Tensor:
        """What is projected into the shared space: the mean of the patch tokens, or a weighted one, (B, D)."""
        if self.attention is None:
            return self.pool(clip_tokens)
        return self.attention(self.encoder.patches(clip_tokens))

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """Pooled features of the CLIP space, projected: (B, D) -> unit length, float32 (B, E)."""
        assert self.image_projection is not None
        return functional.normalize(self.image_projection(self.standardise(pooled)).float(), dim=-1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Mean of the patch tokens, the default feature: (B, C + L, D) -> (B, D)."""
        return self.encoder.patches(tokens).mean(dim=1)

    def embed_text(self, ids: Tensor, mask: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed tokenised texts (U, T), repeated as `index` (B,) says: unit length, float32 (B, E)."""
        assert self.text_encoder is not None
        return self.text_encoder(ids, mask, index)

    @property
    def reads_volumes(self) -> bool:
        """Whether the image encoder reads volumes (B, 1, S, S, S), not pictures (B, 3, S, S)."""
        return len(self.encoder.grid) == 3

    @property
    def scale(self) -> Tensor:
        """exp(s), the inverse temperature, ()."""
        assert self.logit_scale is not None
        return self.logit_scale.exp().squeeze()


def model_from_config(config: ModelConfig) -> MaskedCLIP:
    """The untrained architecture of a saved configuration; nothing is fetched."""
    encoder = build_image_encoder(
        config.image_encoder, size=config.size, weights=None, options=config.image_encoder_options
    )
    text_encoder = None
    if config.text is not None:
        assert config.embed_dim is not None
        standardise = config.projection_norm == "batch"
        text_encoder = TextEncoder(bert_from_config(config.text), config.embed_dim, standardise=standardise)
    return MaskedCLIP(config, encoder, text_encoder)


def build_model(recipe: Recipe, texts: Sequence[str]) -> tuple[MaskedCLIP, TextTokenizer | None]:
    """Make the model that a recipe describes, with the tokenizer for its texts.

    Weights depend on `recipe.seed` alone: the image encoder's are drawn first, so recipes share them.

    Args:
        recipe: which modules, of which sizes.
        texts: of the paired training images; the small text encoder's vocabulary is trained on them.

    Raises:
        UserError: a module of the recipe cannot be made.
    """
    chosen = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        encoder = build_image_encoder(
            chosen.image_encoder,
            size=recipe.data.size,
            weights=chosen.image_weights,
            options=chosen.image_encoder_options,
        )
        text_encoder = tokenizer = None
        if recipe.reads_text:
            torch.manual_seed(recipe.seed + 1)
            bert, backend = _text_parts(recipe, texts, encoder.num_patches)
            tokenizer = TextTokenizer(backend, _text_length(recipe, bert, backend, texts))
            text_encoder = TextEncoder(bert, chosen.embed_dim, standardise=chosen.projection_norm == "batch")
        heads = chosen.bridge_heads or encoder.heads
        depth = chosen.bridge_depth if recipe.reads_text and chosen.bridge else 0
        if depth and encoder.width % heads:
            raise UserError(f"model.bridge_heads: {heads} does not divide the encoder's width {encoder.width}")
        config = ModelConfig(
            image_encoder=chosen.image_encoder,
            image_encoder_options=chosen.image_encoder_options,
            size=recipe.data.size,
            bridge_depth=depth,
            bridge_heads=heads,
            embed_dim=chosen.embed_dim if recipe.reads_text else None,
            projection_norm=chosen.projection_norm,
            image_pooling=chosen.image_pooling if recipe.reads_text else "mean",
            text=text_encoder.config if text_encoder else None,
            text_length=tokenizer.length if tokenizer else 0,
        )
        torch.manual_seed(recipe.seed + 2)
        model = MaskedCLIP(config, encoder, text_encoder)
    model.tokenizer = tokenizer
    if chosen.bridge_start == "identity":
        model.bridge.start_as_identity()
    if model.logit_scale is not None:
        nn.init.constant_(model.logit_scale, math.log(1 / recipe.objective.temperature))
    return model, tokenizer


def _text_parts(recipe: Recipe, texts: Sequence[str], patches: int) -> tuple[nn.Module, Tokenizer]:
    chosen = recipe.model
    if chosen.text_encoder != "small":
        bert, backend = pretrained_bert(chosen.text_encoder)
        return (make_causal(bert, backend) if chosen.text_causal else bert), backend
    backend = train_tokenizer(texts, chosen.small_text_vocabulary)
    config = small_bert_config(
        vocabulary=backend.get_vocab_size(),
        width=chosen.small_text_width,
        depth=chosen.small_text_depth,
        heads=chosen.small_text_heads,
        # A causal tower reads texts beside images.
        positions=recipe.data.images_per_document
        * (recipe.data.context_length + (patches + 1 if chosen.text_causal else 0)),
    )
    bert = bert_from_config(config)
    initialise(bert)
    return (make_causal(bert, backend) if chosen.text_causal else bert), backend


def _text_length(recipe: Recipe, bert: nn.Module, backend: Tokenizer, texts: Sequence[str]) -> int:
    """Static length of all texts: the longest training text, at most the context length, in steps of 8 tokens."""
    limit = recipe.data.context_length
    positions: int | None = getattr(bert.config, "max_position_embeddings", None)  # type: ignore[union-attr]
    if positions is not None and limit > positions:
        raise UserError(
            f"data.context_length: {limit} is more than the {positions} positions of {recipe.model.text_encoder}; "
            f"give {positions} or less"
        )
    longest = max((len(entry.ids) for entry in backend.encode_batch(sorted(set(texts)))), default=limit)
    return min(limit, max(16, -(-longest // 8) * 8))
