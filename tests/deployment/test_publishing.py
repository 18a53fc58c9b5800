"""What is finished gets its name, and takes nobody else's."""

import os
from pathlib import Path

import pytest

from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError


@pytest.mark.parametrize("links", [True, False])
def test_publish__replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refused(*_: object) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    out = tmp_path / "out.csv"
    partial, other = partial_of(out), partial_of(out)
    assert partial != other
    partial.write_text("first")
    publish(partial, out)
    assert out.read_text() == "first"
    assert not partial.exists()
    other.write_text("second")
    with pytest.raises(UserError, match="appeared meanwhile"):
        publish(other, out)
    assert (out.read_text(), other.read_text()) == ("first", "second")


def test_publish__a_folder(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    partial = partial_of(out)
    partial.mkdir()
    publish(partial, out)
    assert out.is_dir()
    partial.mkdir()
    with pytest.raises(UserError, match="appeared meanwhile"):
        publish(partial, out)
