"""Reports of phantoms: sentences written from the findings, each with the claims that it makes.

A sentence is offered only when all its claims hold for the eye, so a report never contradicts its picture; the claims
stay with the sentence, so that this can be checked.  Two styles: the terse keywords of real diagnosis lists, which
repeat from eye to eye ("normal fundus"), and one to four written sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from maskedclip.data.phantom_patient import DISEASES, FINDINGS, Eye
from maskedclip.data.phantom_phrases import ABSENT, DISEASE, HEALTHY, NORMAL, NOUNS, QUANTITY, STATES, WET_AMD

_CAUSES = {
    "diabetic_retinopathy": ("microaneurysm", "haemorrhage", "hard_exudate", "cotton_wool_spot", "laser_scar"),
    "glaucoma": ("wide_cup",),
    "cataract": ("media_opacity",),
    "amd": ("drusen",),
    "pathological_myopia": ("myopic_crescent",),
}  # findings that a named disease accounts for
_IMPRESSIONS = ("{}", "appearance of {}", "findings consistent with {}", "signs of {}", "this eye has {}")
_PRESENT = ("{}", "there are {}", "{} are seen", "{} present")
_PRESENT_STATE = ("{}", "{} noted", "{} observed", "{} present")
_NEGATED = ("no {}", "there is no evidence of {}", "no {} seen", "without {}", "{} absent")
_SIDE = ("{} fundus: {}", "{} eye: {}", "{} eye fundus photograph: {}")
_NORMAL_SIDE = ("{} fundus: normal", "{} eye: normal fundus", "normal {} fundus")


@dataclass(frozen=True)
class Claim:
    """The severity (or grade) of `subject`, one of FINDINGS or DISEASES, lies within low..high."""

    subject: str
    low: int
    high: int

    def holds(self, eye: Eye) -> bool:
        """Whether the claim is true of the eye."""
        return self.low <= (eye.findings | eye.diseases)[self.subject] <= self.high


@dataclass(frozen=True)
class Sentence:
    """Words and what they claim."""

    text: str
    claims: tuple[Claim, ...]


def write_report(rng: Generator, eye: Eye) -> list[Sentence]:
    """One to four sentences about an eye that name each of its diseases, and each finding no disease accounts for."""
    terse = rng.random() < (0.5 if eye.normal else 0.4)
    if eye.normal:
        return [_normal("normal fundus")] if terse else _normal_report(rng, eye)
    return [_keywords(rng, eye)] if terse else _written_report(rng, eye)


def join_sentences(sentences: Sequence[Sentence]) -> str:
    """The text of a report."""
    return " ".join(sentence.text for sentence in sentences)


def _normal(text: str) -> Sentence:
    return Sentence(text, tuple(Claim(subject, 0, 0) for subject in (*FINDINGS, *DISEASES)))


def _normal_report(rng: Generator, eye: Eye) -> list[Sentence]:
    if rng.random() < 0.15:
        return [_normal(_pick(rng, _NORMAL_SIDE).format(eye.side))]
    sentences = _asides(rng, eye, int(rng.integers(0, 4)))
    if len(sentences) < 2 or rng.random() < 0.6:
        sentences.insert(int(rng.integers(len(sentences) + 1)), _normal(_pick(rng, NORMAL)))
    return _finish(rng, eye, sentences)


def _keywords(rng: Generator, eye: Eye) -> Sentence:
    """Diagnoses as in a list of keywords, sometimes with one finding more."""
    parts = [_disease(rng, eye, disease, plain=rng.random() < 0.7) for disease in DISEASES if eye.diseases[disease]]
    parts += [_finding(rng, eye, finding, plain=rng.random() < 0.6) for finding in _unexplained(eye)]
    if eye.findings["laser_scar"] and rng.random() < 0.6:
        parts.append(Sentence("laser spot", (Claim("laser_scar", 1, 3),)))
    parts = [parts[i] for i in rng.permutation(len(parts))]
    return Sentence(", ".join(part.text for part in parts), tuple(claim for part in parts for claim in part.claims))


def _written_report(rng: Generator, eye: Eye) -> list[Sentence]:
    """What must be said, then findings and asides up to four sentences, in any order."""
    explained = [finding for finding in FINDINGS if eye.findings[finding] and finding not in _unexplained(eye)]
    sentences = []
    if any(eye.diseases.values()):
        named = [_disease(rng, eye, disease, plain=False) for disease in DISEASES if eye.diseases[disease]]
        sentences.append(_framed(rng, _IMPRESSIONS, _listed(named, "and")))
    if lone := [_finding(rng, eye, finding, plain=False) for finding in _unexplained(eye)]:
        sentences.append(_framed(rng, _PRESENT, _listed(lone, "and")))
    wanted = int(rng.integers(0, 5 - len(sentences)))
    order = [explained[i] for i in rng.permutation(len(explained))]
    while wanted and order and rng.random() < 0.8:
        sentences.append(_present(rng, eye, [order.pop() for _ in range(min(len(order), int(rng.integers(1, 3))))]))
        wanted -= 1
    sentences += _asides(rng, eye, wanted)
    return _finish(rng, eye, [sentences[i] for i in rng.permutation(len(sentences))])


def _unexplained(eye: Eye) -> list[str]:
    """Findings that no disease of this eye accounts for, and which a report must therefore name itself."""
    explained = {finding for disease, findings in _CAUSES.items() if eye.diseases[disease] for finding in findings}
    if eye.wet:
        explained.add("haemorrhage")
    return [finding for finding in FINDINGS if eye.findings[finding] and finding not in explained]


def _disease(rng: Generator, eye: Eye, disease: str, *, plain: bool) -> Sentence:
    grade = eye.diseases[disease]
    words = WET_AMD if disease == "amd" and eye.wet else DISEASE[disease][grade]
    text = words[0] if plain else _pick(rng, words)
    grades = [level for level, phrases in DISEASE[disease].items() if text in phrases] or [grade]
    return Sentence(text, (Claim(disease, min(grades), max(grades)),))


def _finding(rng: Generator, eye: Eye, finding: str, *, plain: bool) -> Sentence:
    """A finding as a noun phrase; plain, without its quantity."""
    severity = eye.findings[finding]
    if finding in STATES:
        text = _pick(rng, STATES[finding][severity]).format(ratio=f"{eye.cup_ratio:.1f}")
        return Sentence(text, (Claim(finding, severity, severity),))
    noun = _pick(rng, NOUNS[finding])
    if plain:
        return Sentence(noun, (Claim(finding, 1, 3),))
    return Sentence(f"{_pick(rng, QUANTITY[severity])} {noun}", (Claim(finding, severity, severity),))


def _present(rng: Generator, eye: Eye, findings: list[str]) -> Sentence:
    frames = _PRESENT_STATE if len(findings) == 1 and findings[0] in STATES else _PRESENT
    return _framed(rng, frames, _listed([_finding(rng, eye, finding, plain=False) for finding in findings], "and"))


def _asides(rng: Generator, eye: Eye, count: int) -> list[Sentence]:
    """Up to `count` true statements about what is healthy or absent, no two of which overlap."""
    healthy = [
        Sentence(text.format(ratio=f"{eye.cup_ratio:.1f}"), tuple(Claim(subject, 0, 0) for subject in subjects))
        for text, subjects in HEALTHY
    ]
    healthy = [sentence for sentence in healthy if all(claim.holds(eye) for claim in sentence.claims)]
    absent = [finding for finding in FINDINGS if not eye.findings[finding]]
    sentences, said = [], set()
    for _ in range(count):
        if rng.random() < 0.5 and healthy:
            sentence = healthy.pop(int(rng.integers(len(healthy))))
        elif absent:
            chosen = rng.permutation(len(absent))[: int(rng.integers(1, 3))]
            parts = [Sentence(_pick(rng, ABSENT[absent[i]]), (Claim(absent[i], 0, 0),)) for i in chosen]
            sentence = _framed(rng, _NEGATED, _listed(parts, "or"))
        else:
            continue
        subjects = {claim.subject for claim in sentence.claims}
        if not subjects & said:
            sentences.append(sentence)
            said |= subjects
    return sentences


def _listed(parts: list[Sentence], word: str) -> Sentence:
    """`a`, `a and b`, `a, b and c`, with all their claims."""
    texts = [part.text for part in parts]
    text = f" {word} ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
    return Sentence(text, tuple(claim for part in parts for claim in part.claims))


def _framed(rng: Generator, frames: tuple[str, ...], sentence: Sentence) -> Sentence:
    return Sentence(_pick(rng, frames).format(sentence.text), sentence.claims)


def _finish(rng: Generator, eye: Eye, sentences: list[Sentence]) -> list[Sentence]:
    """Laterality in front now and then; capitals and full stops."""
    if rng.random() < 0.35:
        text = _pick(rng, _SIDE).format(eye.side, sentences[0].text)
        sentences = [Sentence(text, sentences[0].claims), *sentences[1:]]
    return [Sentence(f"{one.text[0].upper()}{one.text[1:]}.", one.claims) for one in sentences]


def _pick(rng: Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
