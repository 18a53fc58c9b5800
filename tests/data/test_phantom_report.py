import re
from collections import Counter
from dataclasses import replace

import pytest

from maskedclip.data.phantom_patient import DISEASES, FINDINGS, SIDES, Eye, draw_eye, draw_patient, stream
from maskedclip.data.phantom_phrases import ABSENT, DISEASE, NOUNS, QUANTITY, STATES, WET_AMD
from maskedclip.data.phantom_report import Claim, Sentence, join_sentences, write_report

# What a reader takes from the words, written apart from the templates.
FINDING_WORDS = {
    "microaneurysm": r"microaneurysm",
    "haemorrhage": r"haemorrhage",
    "hard_exudate": r"hard exudate",
    "cotton_wool_spot": r"cotton[ -]wool",
    "drusen": r"drusen",
    "wide_cup": r"optic cup|cupping|large cup|increased cup|slightly large",
    "media_opacity": r"opacity|haz[ey]|cloudy|blurred view of the fundus",
    "myopic_crescent": r"crescent|peripapillary",
    "laser_scar": r"laser",
}
DISEASE_WORDS = {
    "diabetic_retinopathy": r"(?<!myopic )retinopathy",
    "glaucoma": r"glaucoma",
    "cataract": r"cataract",
    "amd": r"macular degeneration",
    "pathological_myopia": r"myopia|myopic fundus|myopic retinopathy",
}
NEGATION = re.compile(r"\b(no|without|absent)\b", re.IGNORECASE)
NORMAL_WORDS = re.compile(
    r"(normal|healthy|unremarkable)( left| right)? fundus|within normal limits|: normal$|"
    r"no abnormality|no pathological findings",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def reports() -> list[tuple[Eye, list[Sentence]]]:
    drawn = []
    for patient in range(1500):
        shared = draw_patient(2, patient)
        for side in SIDES:
            eye = draw_eye(2, patient, side, shared)
            drawn.append((eye, write_report(stream(2, patient, f"report {side}"), eye)))
    return drawn


def _ill(**graded: int) -> Eye:
    """A healthy left eye but for these findings and diseases."""
    return Eye(
        side="left",
        findings={name: graded.get(name, 0) for name in FINDINGS},
        diseases={name: graded.get(name, 0) for name in DISEASES},
        cup_ratio=0.4,
        wet=False,
    )


def test_write_report__same_words_for_the_same_stream() -> None:
    eye = _ill(drusen=1)
    assert write_report(stream(0, 1, "r"), eye) == write_report(stream(0, 1, "r"), eye)


def test_write_report__one_to_four_sentences(reports: list) -> None:
    counts = Counter(len(sentences) for _, sentences in reports)
    assert set(counts) == {1, 2, 3, 4}
    for _, sentences in reports:
        assert all(sentence.text.strip() == sentence.text and sentence.text for sentence in sentences)


def test_write_report__claims_hold(reports: list) -> None:
    for eye, sentences in reports:
        for sentence in sentences:
            assert all(claim.holds(eye) for claim in sentence.claims), (sentence, eye)


def test_write_report__words_do_not_contradict_the_picture(reports: list) -> None:
    for eye, sentences in reports:
        truth = eye.findings | eye.diseases
        for sentence in sentences:
            negated = bool(NEGATION.search(sentence.text))
            for subject, words in (FINDING_WORDS | DISEASE_WORDS).items():
                if re.search(words, sentence.text, re.IGNORECASE):
                    assert (truth[subject] == 0) == negated, (sentence.text, subject, truth[subject])
            if NORMAL_WORDS.search(sentence.text):
                assert eye.normal, sentence.text
            for ratio in re.findall(r"ratio[a-z ]* (0\.\d)", sentence.text):
                assert abs(float(ratio) - eye.cup_ratio) <= 0.051
            for side in re.findall(r"\b(left|right)\b", sentence.text.lower()):
                assert side == eye.side


def test_write_report__names_each_disease_and_each_lone_finding(reports: list) -> None:
    for eye, sentences in reports:
        text = join_sentences(sentences)
        for disease, grade in eye.diseases.items():
            assert bool(re.search(DISEASE_WORDS[disease], text, re.IGNORECASE)) == (grade > 0), (text, disease)
        if not any(eye.diseases.values()) and not eye.normal:
            for finding, severity in eye.findings.items():
                assert not severity or re.search(FINDING_WORDS[finding], text, re.IGNORECASE), (text, finding)


def test_write_report__repeats_as_real_texts_do(reports: list) -> None:
    texts = Counter(join_sentences(sentences) for _, sentences in reports)
    share = texts["normal fundus"] / len(reports)
    assert 0.2 < share < 0.35
    assert len(texts) > 0.3 * len(reports)
    assert any("," in text and text.islower() and text[-1] != "." for text in texts)  # lists of keywords


def test_write_report__uses_negations_laterality_and_every_order(reports: list) -> None:
    texts = [join_sentences(sentences) for _, sentences in reports]
    assert sum(bool(NEGATION.search(text)) for text in texts) > 0.1 * len(texts)
    assert sum("left" in text.lower() or "right" in text.lower() for text in texts) > 0.1 * len(texts)
    written = [sentences for eye, sentences in reports if eye.diseases["glaucoma"] and len(sentences) >= 3]
    places = {i for sentences in written for i, one in enumerate(sentences) if "glaucoma" in one.text.lower()}
    assert {0, 1, 2} <= places


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_phrases__at_least_four_per_finding_and_severity(finding: str, severity: int) -> None:
    if finding in STATES:
        phrases = set(STATES[finding][severity])
    else:
        phrases = {f"{quantity} {noun}" for quantity in QUANTITY[severity] for noun in NOUNS[finding]}
    assert len(phrases) >= 4
    assert len(ABSENT[finding]) >= 2


def test_phrases__at_least_four_per_disease_and_grade_and_none_shared_across_severities() -> None:
    for disease, grades in DISEASE.items():
        assert set(grades) == set(range(1, 5 if disease == "diabetic_retinopathy" else 4))
        assert all(len(set(phrases)) >= 4 for phrases in grades.values())
    assert len(WET_AMD) >= 4
    for states in STATES.values():
        used = [phrase for phrases in states.values() for phrase in phrases if "{ratio}" not in phrase]
        assert len(used) == len(set(used))


@pytest.mark.parametrize("severity", [0, 1, 2, 3])
def test_claim__holds_within_its_range(severity: int) -> None:
    eye = _ill(haemorrhage=severity)
    assert Claim("haemorrhage", 1, 3).holds(eye) == (severity > 0)
    assert Claim("haemorrhage", 2, 2).holds(eye) == (severity == 2)
    assert Claim("glaucoma", 0, 0).holds(eye)


def test_write_report__wet_degeneration_is_named_so() -> None:
    eye = replace(_ill(amd=3, drusen=3, haemorrhage=2), wet=True)
    for i in range(40):
        text = join_sentences(write_report(stream(0, i, "r"), eye)).lower()
        assert re.search("wet|neovascular|exudative", text)
        assert "dry" not in text
