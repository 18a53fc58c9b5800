"""Reports -> sentences -> what a step reads of a report, decided by the sample's key alone."""

import re

from maskedclip import randomness

_SENTENCE_STREAM = 2
# A full stop ends a sentence when white space and a capital, digit or bracket follow; not after a one-letter or
# known abbreviation, nor inside a decimal number.  Line breaks and semicolons end one too.
_BOUNDARY = re.compile(
    r"(?<=[.!?])(?<!\b[A-Za-z]\.)(?<!\bDr\.)(?<!\bvs\.)(?<!\bapprox\.)\s+(?=[A-Z0-9(\[])|[\r\n]+|;\s+"
)


def split_sentences(report: str) -> list[str]:
    """Sentences of a report in order, trimmed, without empty ones; at least one for a report with any letter."""
    return [sentence.strip() for sentence in _BOUNDARY.split(report) if sentence.strip()]


def choose_sentences(report: str, mode: str, key: int) -> str:
    """What a step reads of a report.

    Args:
        report: the whole text.
        mode: `all`; `one` sentence (as ConVIRT, arXiv 2010.00747, does); `some`: a random non-empty subset, in order.
        key: of the sample at its step.
    """
    if mode == "all":
        return report
    sentences = split_sentences(report)
    if len(sentences) < 2:
        return report
    random = randomness.generator(key, _SENTENCE_STREAM)
    if mode == "one":
        return sentences[int(random.integers(len(sentences)))]
    count = int(random.integers(1, len(sentences) + 1))
    chosen = sorted(random.permutation(len(sentences))[:count].tolist())
    return " ".join(sentences[place] for place in chosen)
