"""Attention that is read on demand: right by hand, the same for every kernel, and it leaves no trace."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.models.attention import set_attention
from maskedclip.models.attention_maps import (
    own_tokens,
    running_statistics,
    shared_heads,
    summed_attention,
    text_response,
)
from maskedclip.models.maskedclip import MaskedCLIP, build_model
from maskedclip.models.text import TextTokenizer
from maskedclip.models.vit import ImageEncoder, build_image_encoder
from maskedclip.recipe import load_recipe
from tests.stores import SENTENCES, TINY


def _encoder(**options: object) -> ImageEncoder:
    torch.manual_seed(0)
    small = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3, **options}
    encoder = build_image_encoder("vit_tiny_patch16_224", size=32, weights=None, options=small)
    with torch.no_grad():
        for block in encoder.vit.blocks:  # fresh weights attend nearly evenly, which would hide a mistake
            block.attn.qkv.weight.mul_(3)  # type: ignore[union-attr, operator]
    return encoder


def _by_hand(encoder: ImageEncoder, image: Tensor) -> Tensor:
    """Block by block, from the weights."""
    vit = encoder.vit
    tokens = vit.norm_pre(encoder._with_prefix(encoder._embed(image, None), None))
    total = torch.zeros(len(image), encoder.num_patches, encoder.num_patches)
    blocks: Any = vit.blocks
    for block in blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
        total += weights.mean(dim=1)[:, -encoder.num_patches :, -encoder.num_patches :]
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        tokens = tokens + attention.proj(mixed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return total


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_summed_attention__is_that_of_the_blocks(options: dict[str, object]) -> None:
    encoder, image = _encoder(**options), torch.randn(3, 3, 32, 32)
    found = summed_attention(encoder, image)
    assert found.shape == (3, 16, 16)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found, _by_hand(encoder, image), atol=1e-5, rtol=0)
    assert found.std() > 0.01  # attention that is nearly even would agree with anything
    rows = found.sum(dim=-1)
    if encoder.vit.num_prefix_tokens:
        assert (rows < 2 + 1e-4).all()
        assert rows.mean() < 1.99
    else:
        torch.testing.assert_close(rows, torch.full_like(rows, 2.0))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_summed_attention__same_bits_for_both_kernels_and_leaves_all_as_it_was(precision: torch.dtype) -> None:
    encoder, image = _encoder(drop_path_rate=0.5, attn_drop_rate=0.5, proj_drop_rate=0.5), torch.randn(2, 3, 32, 32)
    encoder.train()
    encoder.vit.norm.eval()
    found = []
    for fused in (True, False):
        set_attention(encoder, fused=fused)
        before = torch.get_rng_state()
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            found.append(summed_attention(encoder, image))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(block.attn.fused_attn == fused for block in encoder.vit.blocks)  # type: ignore[union-attr]
        assert not any(block.attn.attn_drop._forward_pre_hooks for block in encoder.vit.blocks)  # type: ignore[union-attr]
        assert encoder.training
        assert encoder.vit.blocks.training
        assert not encoder.vit.norm.training
    assert torch.equal(found[0], found[1])


def test_summed_attention__does_not_take_the_gradient_from_a_later_pass() -> None:
    """Autocast keeps half-precision weights; those made without gradient would cut the step's graph."""
    encoder, image = _encoder(), torch.randn(2, 3, 32, 32)
    gradients = []
    for looks in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if looks:
                summed_attention(encoder, image)
            encoder(image).float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_summed_attention__an_encoder_whose_attention_cannot_be_read_is_named() -> None:
    encoder = _encoder()

    class Other(nn.Module):
        pass

    encoder.vit.blocks[1].attn = Other()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"model\.image_encoder: its blocks hold Other"):
        summed_attention(encoder, torch.randn(1, 3, 32, 32))
    assert not encoder.vit.blocks[0].attn.attn_drop._forward_pre_hooks  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def model() -> MaskedCLIP:
    return build_model(load_recipe(["maskedclip", "tiny"], [*TINY, "--model.embed_dim", "128"]), SENTENCES)[0]


def _tokens(model: MaskedCLIP, sentences: list[str]) -> tuple[Tensor, Tensor]:
    assert model.tokenizer is not None
    assert model.text_encoder is not None
    ids, mask = model.tokenizer(sentences)
    return model.text_encoder.hidden(ids, mask).detach(), mask


def test_text_response__is_the_formula(model: MaskedCLIP) -> None:
    model.train()
    hidden, mask = _tokens(model, SENTENCES[:3])
    patches = torch.randn(3, 16, 48)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    found = text_response(model, patches, hidden, mask)
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    assert model.standardise.training
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert model.text_encoder is not None
    assert model.image_projection is not None
    with torch.no_grad(), running_statistics(model):
        for image in range(3):
            keys = model.image_projection(model.standardise(patches[image]))
            parts = []
            for token in range(1, int(mask[image].sum()) - 1):  # [CLS] and [SEP] left out
                query = model.text_encoder.projection(model.text_encoder.standardise(hidden[image, token]))
                parts += [(keys[:, head] @ query[head] / 8).softmax(0) for head in (slice(0, 64), slice(64, 128))]
            torch.testing.assert_close(found[image], torch.stack(parts).mean(0), atol=1e-6, rtol=0)


def test_text_response__a_patch_that_agrees_with_the_text_responds_most(model: MaskedCLIP) -> None:
    hidden, mask = _tokens(model, SENTENCES)
    assert model.image_projection is not None
    assert model.text_encoder is not None
    patches = 0.1 * torch.randn(4, 16, 48)
    with torch.no_grad(), running_statistics(model):
        words = model.text_encoder.projection(model.text_encoder.standardise(hidden))
        wanted = (words * own_tokens(mask)[:, :, None]).sum(1)
        patches[torch.arange(4), torch.arange(4)] += wanted @ torch.linalg.pinv(model.image_projection.weight).T
    assert text_response(model, patches, hidden, mask).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_text_response__padding_and_marks_do_not_matter(model: MaskedCLIP) -> None:
    hidden, mask = _tokens(model, SENTENCES)
    patches = torch.randn(4, 16, 48)
    spoilt = torch.where(own_tokens(mask)[:, :, None], hidden, 99.0)
    assert torch.equal(text_response(model, patches, hidden, mask), text_response(model, patches, spoilt, mask))


def test_own_tokens__by_the_tokenizer(model: MaskedCLIP) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert own_tokens(mask).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]
    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    patches, (hidden, real) = torch.randn(1, 16, 48), _tokens(model, SENTENCES[:1])
    before = model.tokenizer
    model.tokenizer = TextTokenizer(plain, 16)  # no marks: all real tokens are the text's
    try:
        whole = text_response(model, patches, hidden, real)
    finally:
        model.tokenizer = before
    assert not torch.allclose(whole, text_response(model, patches, hidden, real), atol=1e-6)


def test_text_response__without_texts_is_refused() -> None:
    model = build_model(load_recipe(["mae", "tiny"], TINY), [])[0]
    with pytest.raises(UserError, match="needs a model with texts"):
        text_response(model, torch.randn(1, 16, 48), torch.randn(1, 4, 32), torch.ones(1, 4))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (64, 1), (128, 2), (100, 1), (256, 4), (512, 8), (384, 6)])
def test_shared_heads__divide_the_width(width: int, heads: int) -> None:
    assert shared_heads(width) == heads
