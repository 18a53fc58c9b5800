"""The tokenizer as `transformers.AutoTokenizer` loads it, offline."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from maskedclip.models.text import TextTokenizer

_ROLES = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def write_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """Write tokenizer.json (pads and cuts to the model's text length by itself) and tokenizer_config.json."""
    tokenizer.save(folder)
    backend: Tokenizer = tokenizer.tokenizer
    roles = {
        role: found
        for role, names in _ROLES.items()
        if (found := next((name for name in names if backend.token_to_id(name) is not None), None)) is not None
    }
    padding = backend.padding
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **roles,
        **({"pad_token": padding["pad_token"]} if padding else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
