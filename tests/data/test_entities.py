"""The dictionary of entities, on words and on token ids of WordPiece and BPE tokenizers."""

import csv
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from maskedclip.data.entities import EntityDictionary, load_entities, spellings
from maskedclip.data.entity_tokens import EntityTokens
from maskedclip.data.phantom_phrases import ABSENT, NOUNS
from maskedclip.data.prompts_findings import FINDINGS
from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer, train_tokenizer

TERMS = ["drusen", "macular drusen", "cotton-wool spot", "haemorrhage", "non-proliferative retinopathy", "biopsy"]
TEXTS = [
    "Scattered Cotton wool spots, a hemorrhage; NO macular drusen.",
    "macular. Drusen drusenoid macular-drusen",
    "Nonproliferative retinopathies and biopsies, (haemorrhages) in cotton-wool spots",
    "",
    "normal fundus",
]


def byte_level(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_of_word(texts: list[str]) -> Tokenizer:
    """As OpenAI's CLIP marks words: at their end."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<pad>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def found(tokenizer: Tokenizer, dictionary: EntityDictionary, text: str) -> list[str]:
    """The entities of a text by its token ids, as they are written there."""
    wide = TextTokenizer(tokenizer, 96)
    entry = tokenizer.encode(text)
    ids, mask = wide([text])
    spans = EntityTokens(dictionary, tokenizer)(ids)[0]
    spans = spans[mask[0] > 0].tolist()
    offsets = [offset for offset, real in zip(entry.offsets, entry.attention_mask, strict=True) if real]
    pieces = []
    for start in sorted({place for place in spans if place >= 0}):
        end = max(place for place, own in enumerate(spans) if own == start)
        pieces.append(text[offsets[start][0] : offsets[end][1]].strip())
    return pieces


def test_spellings__plural_american_and_hyphens() -> None:
    assert set(spellings("cotton-wool spot")) == {
        f"cotton{joint}wool spot{plural}" for joint in ("-", " ", "") for plural in ("", "s")
    }
    assert {"hemorrhage", "haemorrhages"} <= set(spellings("Haemorrhage"))
    assert {"opacities", "opacity"} <= set(spellings("opacity"))
    assert "diagnoses" in spellings("diagnosis")
    assert "x-rays" in spellings("x-ray")


def test_find__takes_the_longest_term_from_the_left() -> None:
    dictionary = EntityDictionary(TERMS)
    assert [[text[e.start : e.end] for e in dictionary.find(text)] for text in TEXTS] == [
        ["Cotton wool spots", "hemorrhage", "macular drusen"],
        ["Drusen", "macular-drusen"],  # a full stop parts two words; no part of a word is a term
        ["Nonproliferative retinopathies", "biopsies", "haemorrhages", "cotton-wool spots"],
        [],
        [],
    ]
    assert [e.term for e in dictionary.find(TEXTS[0])] == ["cotton-wool spot", "haemorrhage", "macular drusen"]


@pytest.mark.parametrize("make", [lambda texts: train_tokenizer(texts, 300), byte_level, end_of_word])
def test_entity_tokens__agree_with_words_for_every_kind_of_tokenizer(make) -> None:
    dictionary = EntityDictionary(TERMS)
    tokenizer = make([*TEXTS, *TERMS])
    for text in TEXTS:
        expected = [text[e.start : e.end] for e in dictionary.find(text)]
        assert found(tokenizer, dictionary, text) == expected, text


def test_entity_tokens__agree_with_words_on_phantom_phrases() -> None:
    dictionary = load_entities()
    phrases = [phrase for group in (NOUNS, ABSENT) for several in group.values() for phrase in several]
    texts = [f"There are no {a}, but {b} and some {a}." for a, b in zip(phrases, phrases[3:], strict=False)]
    tokenizer = train_tokenizer(texts, 500)
    wide = TextTokenizer(tokenizer, 64)
    ids, mask = wide(texts)
    spans = EntityTokens(dictionary, tokenizer)(ids)
    for row, text in enumerate(texts):
        offsets = tokenizer.encode(text).offsets
        starts = {offsets[place][0] for place in spans[row].tolist() if place >= 0}
        assert starts == {entity.start for entity in dictionary.find(text)}, text
    assert not ((spans >= 0) & (mask == 0)).any()
    other = EntityTokens(dictionary, tokenizer)(ids.flip(0))
    assert torch.equal(other.flip(0), spans)


def test_entity_tokens__unknown_words_match_nothing() -> None:
    tokenizer = train_tokenizer(["abc cab"], 50)  # no letter of `drusen` is known, so it is [UNK], as `zzz` is
    ids, _ = TextTokenizer(tokenizer, 16)(["drusen zzz"])
    assert (EntityTokens(EntityDictionary(["drusen", "cab"]), tokenizer)(ids) < 0).all()


def test_shipped__knows_every_finding_of_prompts_and_phantoms() -> None:
    dictionary = load_entities()
    assert len(dictionary) > 400
    names = [name for entry in FINDINGS for name in entry.names] + [noun for some in NOUNS.values() for noun in some]
    assert [name for name in names if not dictionary.find(name)] == []
    assert dictionary.find("normal fundus") == []


def test_load_entities__reads_a_user_s_file_and_names_its_faults(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("# ours\nred lesion  # a comment\n\n  green   lesion\nred lesion\n")
    assert load_entities(file).terms == ("red lesion", "green lesion")
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match=r"f\.dictionary: .*holds no term; write one term a line"):
        load_entities(file, field="f.dictionary")
    with pytest.raises(UserError, match=r"No such file"):
        load_entities(tmp_path / "none.txt")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not UTF-8"):
        load_entities(file)


@pytest.mark.shared
def test_shipped__finds_entities_in_real_texts(shared: Path) -> None:
    dictionary = load_entities()
    with (shared / "data" / "texts" / "stare_diagnoses.csv").open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    ill = [text for text in texts if text != "normal"]
    assert sum(bool(dictionary.find(text)) for text in ill) / len(ill) > 0.9  # measured 0.919 of 359
