"""Names: what is refused, what is let through, and how anything is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer.errors import NameRefusedError
from pyroxfer.names import MAX_COMPONENT_BYTES, MAX_PATH_BYTES, printable, split_file_path, split_path

LEAVING = [
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "a//b",
    "./a",
    "a/./b",
    "//a",
    "/",
    "..\\x",
    "a\\b",
    "C:\\x",
    "\0",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "a\x7f",
    "a\x85b",
    "a\u202etxt.exe",
    "a\u200bb",
    "\ufeffa",
    "a\u2028b",
    "a\udc80",
    "a.",
    "a ",
    "a./b",
    "con",
    "CON.txt",
    "Com1",
    "lpt\u00b9.log",
    "nul .txt",
    ".pyroxfer-1234",
    "a/.pyroxfer-x/b",
    "x" * 256,
    "é" * 128,
    "a/" * 2100 + "a",
]

HARMLESS = [
    "a",
    "a/b/c.txt",
    ".hidden",
    "..a",
    "...a",
    "ünïcode/日本語",
    "2024-01-01T10:00:00.log",
    "console.py",
    "what?*",
    "family-👨‍👩‍👧.png",
    "x" * 255,
    " leading",
]


@pytest.mark.parametrize("path", LEAVING)
def test_names_that_leave_or_trap_are_refused(path: str) -> None:
    """Each known trick is refused, with a text that is itself safe to print."""
    with pytest.raises(NameRefusedError) as caught:
        split_path(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("path", HARMLESS)
def test_ordinary_names_are_taken_unchanged(path: str) -> None:
    assert "/".join(split_file_path(path)) == path


def test_the_root_and_folders_are_no_files() -> None:
    assert split_path("") == split_path(".") == ()
    assert split_path("a/b/") == ("a", "b")
    for path in ("", ".", "a/"):
        with pytest.raises(NameRefusedError):
            split_file_path(path)


@given(st.text())
def test_any_text_is_refused_or_made_of_plain_components(path: str) -> None:
    """Whatever passes has only components that stay where they are."""
    try:
        parts = split_path(path)
    except NameRefusedError:
        return
    assert len("/".join(parts).encode()) <= MAX_PATH_BYTES
    for part in parts:
        assert part not in ("", ".", "..")
        assert not set(part) & set("/\\\0\n\r\x1b")
        assert len(part.encode()) <= MAX_COMPONENT_BYTES


@given(st.text())
def test_shown_names_are_printable(name: str) -> None:
    assert printable(name).isprintable()
