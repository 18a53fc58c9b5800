"""Addresses: members of archives and frames, and names that only look like them."""

import os

import pytest

from maskedclip.data.address import Address, is_archive, real_name, split_address, written_name


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("eyes/a.png", Address(file="eyes/a.png")),
        ("scans.zip!eyes/a.png", Address(file="scans.zip", member="eyes/a.png")),
        ("old/scans.TAR.GZ!a.png", Address(file="old/scans.TAR.GZ", member="a.png")),
        ("scans.tar!deep/b.tif#page=3", Address(file="scans.tar", member="deep/b.tif", frame=3)),
        ("loop.dcm#frame=12", Address(file="loop.dcm", frame=12)),
        ("a.zip!b.zip!c.png", Address(file="a.zip", member="b.zip!c.png")),
        ("new\nline.tgz!a\nb.png", Address(file="new\nline.tgz", member="a\nb.png")),
        ("wow!.png", Address(file="wow!.png")),
        ("zip!a.png", Address(file="zip!a.png")),
        ("scans.zip!", Address(file="scans.zip!")),
        ("a#frame=2.png", Address(file="a#frame=2.png")),
        ("a.png#frame=x", Address(file="a.png#frame=x")),
        ("https://host/a.tif#page=2", Address(file="https://host/a.tif", frame=2)),
    ],
)
def test_split_address__takes_apart_only_what_is_meant(value: str, address: Address) -> None:
    assert split_address(value) == address


def test_address__name_is_that_of_the_bytes() -> None:
    assert split_address("scans.zip!eyes/a.dcm#frame=2").name == "eyes/a.dcm"
    assert split_address("a.dcm#frame=2").name == "a.dcm"


def test_is_archive__goes_by_the_suffix() -> None:
    assert all(map(is_archive, ("a.zip", "b.TAR", "c.tar.gz", "d.tgz", "e.tar.xz", "f.tar.bz2")))
    assert not any(map(is_archive, ("a.gz", "zip", "a.nii.gz", "a.zip.png")))


def test_written_name__keeps_odd_bytes_and_comes_back() -> None:
    odd = os.fsdecode(b"caf\xe9/\xff.png")
    written = written_name(odd)
    assert written == "caf%E9/%FF.png"
    assert os.fsencode(real_name(written)) == b"caf\xe9/\xff.png"
    assert written_name("übung.png") == "übung.png"


def test_real_name__no_letter_of_ascii_hides_in_it() -> None:
    assert real_name("%2E%2E%2Fpasswd") == "%2E%2E%2Fpasswd"
