import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.data.text import normalise_text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Normal  Fundus.", "normal fundus"),
        ("normal\n fundus ;", "normal fundus"),
        ("ｎｏｒｍａｌ fundus", "normal fundus"),
        ("drusen, cataract", "drusen, cataract"),
        ("drusen . ;", "drusen"),
        ("  ", ""),
    ],
)
def test_normalise_text__same_key_for_the_same_text(text: str, key: str) -> None:
    assert normalise_text(text) == key


def test_normalise_text__keeps_what_tells_reports_apart() -> None:
    assert normalise_text("left: drusen") != normalise_text("right: drusen")


@settings(deadline=None)  # a busy machine is no fault
@given(st.text())
def test_normalise_text__twice_is_once(text: str) -> None:
    assert normalise_text(normalise_text(text)) == normalise_text(text)
