"""The text encoder t: a BERT, mean over real tokens, projection, unit length.

B texts, T tokens, W the BERT's width, E the width of the space shared with images.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.standardise import BatchStandardise

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's processes are the parallelism

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a WordPiece vocabulary, as BERT's (lower case), on texts; the same for the same set of texts."""
    distinct = sorted(set(texts))
    learner = _bert_tokenizer(WordPiece(unk_token="[UNK]"))
    # The trainer numbers letters in the random order of a hash map and breaks ties by number; given as special tokens,
    # the letters have fixed numbers.  The tokenizer is then built anew from the vocabulary, without these marks.
    pieces = [
        word
        for text in distinct
        for word, _ in learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
    ]
    letters = sorted({letter for word in pieces for letter in word})
    fixed = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=fixed, show_progress=False)
    learner.train_from_iterator(distinct, trainer)
    tokenizer = _bert_tokenizer(WordPiece(learner.get_vocab(with_added_tokens=True), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _bert_tokenizer(model: WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


class TextTokenizer:
    """Texts -> token ids and the mask of real tokens, always `length` wide (static shapes)."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        padding = next((t for t in ("[PAD]", "<pad>", "<|endoftext|>") if tokenizer.token_to_id(t) is not None), None)
        if padding is None:
            raise UserError("model.text_encoder: its tokenizer has no padding token; take a BERT-type model")
        self._padding: dict[str, Any] = {"pad_id": tokenizer.token_to_id(padding), "pad_token": padding}
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, **self._padding)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a loader process as JSON."""
        return _tokenizer_from_json, (self.tokenizer.to_str(), self.length)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode B texts: ids int64 (B, T) and real-token mask int64 (B, T)."""
        encoded = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([entry.ids for entry in encoded], dtype=torch.int64).reshape(len(texts), self.length)
        mask = torch.tensor([entry.attention_mask for entry in encoded], dtype=torch.int64).reshape(
            len(texts), self.length
        )
        return ids, mask

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before any cut."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        counts = [len(entry.ids) for entry in self.tokenizer.encode_batch(list(texts))]
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding(length=self.length, **self._padding)
        return counts

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.tokenizer.save(str(folder / "tokenizer.json"))


def _tokenizer_from_json(text: str, length: int) -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_str(text), length)


def load_tokenizer(folder: Path, length: int) -> TextTokenizer:
    """The tokenizer that `TextTokenizer.save` wrote."""
    return TextTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), length)


class TextEncoder(nn.Module):
    """BERT, mean over real tokens, Linear to E without bias, unit length (pooling as FLAIR, arXiv 2308.07898).

    A causal one (arXiv 2406.07543) reads from left to right: its last token is replaced by `soi`, where an image would
    begin, and the state there is the text's feature.
    """

    def __init__(self, bert: nn.Module, embed_dim: int, *, standardise: bool = False) -> None:
        super().__init__()
        self.bert = bert
        self.config: dict[str, Any] = json.loads(bert.config.to_json_string(use_diff=False))  # type: ignore[union-attr]
        self.standardise = BatchStandardise(self.config["hidden_size"]) if standardise else nn.Identity()
        self.projection = nn.Linear(self.config["hidden_size"], embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=self.config["hidden_size"] ** -0.5)
        self.soi: int = self.config.get("soi_token_id", -1)
        self.causal = self.soi >= 0

    def forward(self, ids: Tensor, mask: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed texts.

        Args:
            ids: token ids, int64 (U, T).
            mask: 1 at real tokens, 0 at padding, (U, T).
            index: which text each of the B outputs takes, int64 (B,); None takes them in order.

        Returns: unit length, float32 (B, E).
        """
        pooled = self.pool(ids, mask)
        return self.project(pooled if index is None else pooled[index])

    def pool(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean over real tokens of the BERT's last layer, or the state at `soi`, (U, T) -> (U, W)."""
        return self.pool_hidden(self.hidden(ids, mask), mask)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The BERT's last layer, (U, T) -> (U, T, W)."""
        if self.causal:
            ids = ids.scatter(1, _last(mask), self.soi)
        return self.bert(input_ids=ids, attention_mask=self._attention_mask(mask)).last_hidden_state

    def read(self, embeddings: Tensor, mask: Tensor, document: Tensor | None = None) -> Tensor:
        """The last layer of embedded tokens (U, S, W), real where `mask` (U, S) is 1; padding counts no position.

        document: int64 (U, S), where rows hold several: each begins at position 0 and sees itself alone.  None is one.
        """
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if document is not None:
            begins = torch.cat([torch.ones_like(document[:, :1]), (document.diff(dim=1) != 0).long()], dim=1)
            positions = positions - (positions * begins).cummax(dim=1).values
        attention = self._attention_mask(mask, document)
        return self.bert(inputs_embeds=embeddings, attention_mask=attention, position_ids=positions).last_hidden_state

    @property
    def words(self) -> nn.Embedding:
        """The embeddings of the vocabulary."""
        return self.bert.get_input_embeddings()  # type: ignore[operator]

    def pool_hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Mean over real tokens, or the state at the last of them, (U, T, W) -> (U, W)."""
        if self.causal:
            return hidden.gather(1, _last(mask)[:, :, None].expand(-1, -1, hidden.shape[2]))[:, 0]
        weight = mask[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)

    def _attention_mask(self, mask: Tensor, document: Tensor | None = None) -> Tensor:
        """The mask as BERT's attention adds it, (U, 1, 1, T): of a plain one it asks the device whether all is real."""
        config: Any = self.bert.config
        if config.model_type != "bert":
            return mask
        real = mask[:, None, None, :] > 0
        if self.causal:
            places = torch.arange(mask.shape[1], device=mask.device)
            real = real & (places <= places[:, None])  # (U, 1, T, T)
        if document is not None:
            real = real & (document[:, None, :, None] == document[:, None, None, :])
        if config._attn_implementation == "sdpa":
            return real
        kind = mask.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return torch.where(real, 0.0, torch.finfo(dtype).min).to(dtype)

    def project(self, pooled: Tensor) -> Tensor:
        """Into the shared space, (B, W) -> unit length, float32 (B, E)."""
        return functional.normalize(self.projection(self.standardise(pooled)).float(), dim=-1)


def _last(mask: Tensor) -> Tensor:
    """The place of the last real token, int64 (U, 1)."""
    return mask.sum(dim=1, keepdim=True) - 1


def make_causal(bert: nn.Module, backend: Tokenizer) -> nn.Module:
    """The same BERT, untrained or not, reading from left to right; [MASK] becomes the token where an image begins.

    Raises:
        UserError: it is no BERT, or has no such token.
    """
    config = json.loads(bert.config.to_json_string(use_diff=False))  # type: ignore[union-attr]
    soi = backend.token_to_id("[MASK]")
    if config["model_type"] != "bert" or soi is None:
        raise UserError(
            f"model.text_causal: needs a BERT with a [MASK] token, not a {config['model_type']}; take "
            "model.text_encoder small or a folder of such a BERT"
        )
    causal = bert_from_config({**config, "is_decoder": True, "use_cache": False, "soi_token_id": soi})
    causal.load_state_dict(bert.state_dict())
    return causal


def bert_from_config(config: dict[str, Any]) -> nn.Module:
    """An untrained model of a saved configuration; no weights and no code are fetched."""
    from transformers import AutoConfig, AutoModel

    kind = dict(config)
    model = AutoModel.from_config(AutoConfig.for_model(kind.pop("model_type"), **kind), attn_implementation="sdpa")
    return _without_idle_parts(model)


def _without_idle_parts(bert: nn.Module) -> nn.Module:
    """Drop the pooler, whose output nobody reads, and all dropout: one text has one embedding, in training too."""
    if getattr(bert, "pooler", None) is not None:
        bert.pooler = None  # type: ignore[assignment]
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return bert


def small_bert_config(*, vocabulary: int, width: int, depth: int, heads: int, positions: int) -> dict[str, Any]:
    """Configuration of the small text encoder that is trained from scratch, without dropout."""
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    }


def pretrained_bert(name: str) -> tuple[nn.Module, Tokenizer]:
    """A BERT-type model and its tokenizer, from a local folder or by its name on the model hub, without dropout.

    Raises:
        UserError: the folder lacks a part, holds weights only as a pickle, or the name cannot be fetched.
    """
    import transformers

    local = Path(name).is_dir()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not local:
        raise UserError(
            f"model.text_encoder: {name}: no such folder; give a folder with config.json and model.safetensors"
        )
    if local and not (Path(name) / "config.json").is_file():
        raise UserError(f"model.text_encoder: {name} has no config.json; give the folder of a transformers model")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        # a hub's older weights may exist as a pickle alone, which torch then reads without running code (weights_only)
        bert = transformers.AutoModel.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True if local else None,
            attn_implementation="sdpa",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
        backend.no_padding()  # a saved tokenizer may pad and cut by itself
        backend.no_truncation()
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:240]
        mend = (
            "the folder needs config.json, model.safetensors and the tokenizer's files"
            if local
            else "give a local folder with config.json, model.safetensors and the tokenizer's files, or `small`"
        )
        raise UserError(f"model.text_encoder: {name} cannot be loaded ({line}); {mend}") from None
    if not hasattr(bert.config, "hidden_size"):
        raise UserError(f"model.text_encoder: {name} is no BERT-type encoder; give one, or `small`")
    return _without_idle_parts(bert.float()), backend
