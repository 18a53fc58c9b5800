import json
from pathlib import Path

import pytest

from maskedclip.data.prompts import (
    NORMAL,
    humanise,
    is_normal,
    load_prompts,
    prompts_for,
    prompts_for_class,
    prompts_for_meaning,
    unknown_labels,
)
from maskedclip.data.prompts_findings import FINDINGS, Entry
from maskedclip.data.prompts_grades import GRADES
from maskedclip.data.prompts_rare import RARE
from maskedclip.errors import UserError

LABELS = (
    "diabetic_retinopathy",
    "glaucoma",
    "cataract",
    "amd",
    "hypertensive_retinopathy",
    "pathological_myopia",
    "epiretinal_membrane",
    "drusen",
    "normal",
    "haemorrhage",
    "hard_exudate",
    "cotton_wool_spot",
    "laser_scar",
    "microaneurysm",
)


@pytest.mark.parametrize("label", LABELS)
def test_prompts_for__known_label_has_more_than_its_name(label: str) -> None:
    prompts = prompts_for(label)
    assert len(prompts) >= 7
    assert len(set(prompts)) == len(prompts)
    assert not any("_" in prompt or "{" in prompt or prompt != prompt.strip() for prompt in prompts)


def test_prompts_for__no_sentence_stands_for_two_labels() -> None:
    owners: dict[str, str] = {}
    for label in LABELS:
        for prompt in prompts_for(label):
            assert owners.setdefault(prompt, label) == label


def test_prompts_for__unknown_label_is_humanised_in_every_template() -> None:
    prompts = prompts_for("retinitis_pigmentosa")
    assert "retinitis pigmentosa" in prompts
    assert "signs of retinitis pigmentosa" in prompts


@pytest.mark.parametrize(
    "label", ["AMD", "amd", "age-related macular degeneration", "Age_related_macular_degeneration"]
)
def test_prompts_for__aliases_share_an_ensemble(label: str) -> None:
    assert prompts_for(label) == prompts_for("amd")


def test_humanise__splits_snake_and_camel_case() -> None:
    assert humanise("diabetic_retinopathy") == humanise("DiabeticRetinopathy") == "diabetic retinopathy"


@pytest.mark.parametrize(("label", "expected"), [("normal", True), ("Normal fundus", True), ("no_finding", True)])
def test_is_normal__names_of_nothing_wrong(label: str, expected: bool) -> None:
    assert is_normal(label) is expected
    assert not is_normal("glaucoma")
    assert "normal fundus" in prompts_for(NORMAL)


def test_prompts_for_class__each_grade_has_its_own_words() -> None:
    grades = [set(prompts_for_class("dr_grade", grade)) for grade in range(5)]
    assert all(grades)
    assert sum(map(len, grades)) == len(set.union(*grades))
    assert "moderate non proliferative retinopathy" in grades[2]
    assert prompts_for_class("diabetic_retinopathy_grade", 2) == prompts_for_class("dr_grade", 2)


def test_prompts_for_class__other_numbers_and_words() -> None:
    assert prompts_for_class("acne_stage", 3)[0] == "acne stage 3"
    assert prompts_for_class("disease", "glaucoma") == prompts_for("glaucoma")


def test_overrides__replace_the_whole_ensemble() -> None:
    overrides = {"glaucoma": ["wide cup"], "dr_grade=2": ["some lesions"]}
    assert prompts_for("glaucoma", overrides) == ["wide cup"]
    assert prompts_for_class("disease", "glaucoma", overrides) == ["wide cup"]
    assert prompts_for_class("dr_grade", 2, overrides) == ["some lesions"]
    assert prompts_for("drusen", overrides) == prompts_for("drusen")


def test_load_prompts__yaml_and_json_say_the_same(tmp_path: Path) -> None:
    wanted = {"glaucoma": ["wide cup", "thin rim"], "normal": ["nothing wrong"]}
    (tmp_path / "p.json").write_text(json.dumps(wanted))
    (tmp_path / "p.yaml").write_text("glaucoma:\n  - wide cup\n  - thin rim\nnormal: [nothing wrong]\n")
    assert load_prompts(tmp_path / "p.json") == load_prompts(tmp_path / "p.yaml") == wanted


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.yaml", b"[a, b]", "is not a map"),
        ("p.yaml", b"", "is not a map"),
        ("p.yaml", b"glaucoma: wide cup", "glaucoma: needs a list"),
        ("p.yaml", b"glaucoma: []", "glaucoma: needs a list"),
        ("p.yaml", b"glaucoma: [3]", "the prompt 3 is not text"),
        ("p.yaml", b"glaucoma: ['']", "the prompt '' is not text"),
        ("p.yaml", b"1: [one]", "the label 1 is not text"),
        ("p.yaml", b"glaucoma: [a\nb: c", "line 2 is not YAML"),
        ("p.yaml", b"glaucoma: [\xff]", "is not UTF-8"),
        ("p.json", b'{"a": [', "line 1 is not JSON"),
    ],
)
def test_load_prompts__fault_is_one_line_naming_the_file(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as fault:
        load_prompts(path)
    assert str(fault.value).startswith(f"{path}: ")
    assert says in str(fault.value)
    assert "\n" not in str(fault.value)


def test_load_prompts__missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        load_prompts(tmp_path / "none.yaml")


def test_prompts__no_name_leads_to_two_entries() -> None:
    owners: dict[str, Entry] = {}
    for entry in (*FINDINGS, *RARE):
        for key in (*entry.names, *entry.aliases):
            assert owners.setdefault(key.lower(), entry) is entry, key
            assert humanise(key) == key.lower()


def test_prompts__every_entry_has_names_or_descriptions_in_plain_letters() -> None:
    for entry in (*FINDINGS, *RARE):
        sentences = (*entry.names, *entry.descriptions)
        assert len(sentences) >= 2
        assert len(set(sentences)) == len(sentences)
        assert all(sentence == sentence.strip() and sentence.isascii() for sentence in sentences)


@pytest.mark.parametrize("label", GRADES)
def test_prompts_for_class__grades_of_one_scale_share_no_sentence(label: str) -> None:
    sentences = [sentence for grade in GRADES[label] for sentence in prompts_for_class(label, grade)]
    assert len(set(sentences)) == len(sentences)
    assert min(len(prompts_for_class(label, grade)) for grade in GRADES[label]) >= 2


def test_unknown_labels__are_told_with_what_is_near() -> None:
    said = unknown_labels(["glaucoma", "glaukoma", "unicorn", "Normal fundus", "mine"], {"mine": ["a sentence"]})
    assert len(said) == 2
    assert "did you mean glaucoma?" in said[0]
    assert "'unicorn'" in said[1]
    assert "did you mean" not in said[1]


def test_prompts_for_meaning__a_grade_in_the_words_of_its_task() -> None:
    prompts = prompts_for_meaning("corneal_grade", 1, "mild keratitis")
    assert prompts[:2] == ["mild keratitis", "fundus photograph with mild keratitis"]
    assert prompts[-1] == "corneal grade: mild keratitis"
    assert set(prompts_for("glaucoma")) < set(prompts_for_meaning("stage", 2, "glaucoma"))
    assert prompts_for_meaning("dr_grade", 1, "mild") == []  # described here
    assert prompts_for_meaning("dr_grade", 7, "worse")
