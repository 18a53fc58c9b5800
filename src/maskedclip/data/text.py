"""The key under which two reports count as the same text."""

import unicodedata

_FINAL_PUNCTUATION = ".,;:!?"


def normalise_text(text: str) -> str:
    """`text` in Unicode NFKC, lower case, with single spaces and without final punctuation; '' for a blank text.

    Two reports are the same text exactly where this value is the same: the targets of L_clip and the
    candidates of retrieval rest on it.  Applying it twice changes nothing.
    """
    # A second NFKC: lower-casing can leave decomposed letters ('İ' becomes 'i' and a combining dot).
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(text.split()).rstrip(_FINAL_PUNCTUATION + " ")
