"""Addresses as users type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer.address import parse_address, parse_listen
from pyroxfer.errors import AddressError


@pytest.mark.parametrize(
    ("text", "uri", "path", "into"),
    [
        ("localhost:4000", "PYRO:pyroxfer.files@localhost:4000", "", True),
        ("localhost:4000/", "PYRO:pyroxfer.files@localhost:4000", "", True),
        ("localhost:4000/a/b", "PYRO:pyroxfer.files@localhost:4000", "a/b", False),
        ("10.0.0.1:1/a/", "PYRO:pyroxfer.files@10.0.0.1:1", "a", True),
        ("[::1]:4000/x", "PYRO:pyroxfer.files@[::1]:4000", "x", False),
        ("attic/x/y", "PYRONAME:attic", "x/y", False),
        ("attic", "PYRONAME:attic", "", True),
        ("PYRO:obj@host:5/x", "PYRO:obj@host:5", "x", False),
        ("PYRO:obj@[::1]:5/x", "PYRO:obj@[::1]:5", "x", False),
        ("PYRONAME:attic/x", "PYRONAME:attic", "x", False),
        ("PYRONAME:attic@ns:9/x", "PYRONAME:attic@ns:9", "x", False),
    ],
)
def test_each_form(text: str, uri: str, path: str, into: bool) -> None:
    address = parse_address(text)
    assert (str(address.uri), address.path, address.into) == (uri, path, into)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/etc",
        "./x",
        "../x",
        "host:port/x",
        "host:99999/x",
        "PYRO:x/y",
        "PYRO:obj@host/x",
        "a b/c",
        "::1/x",
        "x@y/z",
    ],
)
def test_what_is_no_address_says_the_forms(text: str) -> None:
    with pytest.raises(AddressError, match="HOST:PORT"):
        parse_address(text)


def test_an_address_is_shown_as_it_is_typed() -> None:
    for text in ("localhost:4000/a/b", "[::1]:4000/x", "PYRO:obj@host:5/x"):
        assert str(parse_address(text)) == text


@given(st.text())
def test_any_text_is_an_address_or_our_error(text: str) -> None:
    try:
        parse_address(text)
    except AddressError as error:
        assert str(error).isprintable()


def test_places_to_listen_on() -> None:
    assert parse_listen("localhost:4000") == ("localhost", 4000)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert parse_listen("0.0.0.0") == ("0.0.0.0", 0)
    assert parse_listen(":5") == ("localhost", 5)
    for text in ("", "a:b", "h:70000", "/tmp/x", "h:1:2"):
        with pytest.raises(AddressError):
            parse_listen(text)
