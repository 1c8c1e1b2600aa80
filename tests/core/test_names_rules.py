"""What may be registered, and patterns in bounded time."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import trio

from pyroxfer_core.errors import NamingError, PyroError
from pyroxfer_core.nameserver import matching, rules
from pyroxfer_core.nameserver.addresses import is_this_machine, local_address_towards
from pyroxfer_core.uri import Uri


@pytest.mark.parametrize("name", ["", "a", "with blanks", "Ünï.😀", "%_\\", "x" * rules.MAX_NAME])
def test_names_that_are_fine(name: str) -> None:
    assert rules.check_name(name) == name


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a\x00", "\x7f", "\ud800", "x" * (rules.MAX_NAME + 1)])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(NamingError) as caught:
        rules.check_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [None, b"bytes", 3, ["a"]])
def test_a_name_is_text(name: object) -> None:
    with pytest.raises(TypeError, match="name must be a str"):
        rules.check_name(name)


@pytest.mark.parametrize(
    "uri", ["PYRO:a@h:1", "pyro:a@h:1\n", "PYRONAME:b", "PYROMETA:x,y", "PYRO:a@./u:/tmp/s", Uri("PYRO:a@[::1]:5")]
)
def test_uris_that_are_fine(uri: Uri | str) -> None:
    assert rules.check_uri(uri) == Uri(uri)


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("nonsense", PyroError),
        ("PYRO:a", PyroError),
        ("PYRO:a@h:1\x1b", NamingError),
        ("PYRO:a@" + "h" * rules.MAX_URI + ":1", NamingError),
        (Uri("PYRO:a@h\x07:1"), NamingError),
        (None, TypeError),
        (b"PYRO:a@h:1", TypeError),
    ],
)
def test_uris_that_are_refused(uri: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        rules.check_uri(uri)


def test_tags_become_a_set() -> None:
    for given in (["x", "y", "x"], ("x", "y"), {"x", "y"}, frozenset({"x", "y"})):
        assert rules.check_tags(given) == frozenset({"x", "y"})
    assert rules.check_tags(None) == frozenset()


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ("text", TypeError),
        ("", TypeError),
        (3, TypeError),
        ([3], TypeError),
        ({"a": "b"}, TypeError),
        (["\n"], NamingError),
        ([str(number) for number in range(rules.MAX_TAGS + 1)], NamingError),
        ([str(number) * rules.MAX_NAME for number in range(9)], NamingError),
    ],
)
def test_tags_that_are_refused(tags: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        rules.check_tags(tags)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "0x0", "0.0", "[::]", "[0:0::0]", "[::ffff:0:0]"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_wildcard_address_is_always_refused(host: str, remote: bool) -> None:
    with pytest.raises(NamingError, match="wildcard"):
        rules.check_reachable("name", Uri(f"PYRO:a@{host}:1"), remote=remote)


@pytest.mark.parametrize("remote", [False, True])
def test_port_0_is_always_refused(remote: bool) -> None:
    """It is what a daemon asks for, not where it listens."""
    with pytest.raises(NamingError, match="port 0"):
        rules.check_reachable("name", Uri("PYRO:a@10.1.2.3:0"), remote=remote)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "127.1", "2130706433", "localhost", "LocalHost.", "[::1]", "[::ffff:7f00:1]"]
)
def test_a_loopback_address_is_refused_from_elsewhere_only(host: str) -> None:
    uri = Uri(f"PYRO:a@{host}:1")
    rules.check_reachable("name", uri, remote=False)
    with pytest.raises(NamingError, match="loopback"):
        rules.check_reachable("name", uri, remote=True)


@pytest.mark.parametrize(
    "uri", ["PYRO:a@10.1.2.3:1", "PYRO:a@neptune:1", "PYRO:a@./u:/tmp/s", "PYRONAME:b@localhost"]
)
def test_other_addresses_are_taken_as_they_are(uri: str) -> None:
    rules.check_reachable("name", Uri(uri), remote=True)


def test_this_machine_is_told_by_what_can_be_bound() -> None:
    """192.0.2.0/24 and 2001:db8::/32 are for documentation: no machine has them."""
    assert all(map(is_this_machine, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
    assert not any(map(is_this_machine, ["192.0.2.7", "2001:db8::7", "0.0.0.0", "::", "", "gone", "nonsense:"]))


def test_the_address_towards_this_machine_is_loopback() -> None:
    assert local_address_towards("127.0.0.1") == "127.0.0.1"
    assert local_address_towards("nonsense:") is None


NAMES = ["test.1", "test.22", "other", "a" * 60 + "!"]


async def matches(pattern: str) -> list[str]:
    return await matching.matching_names(pattern, NAMES, trio.CapacityLimiter(1))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("test", ["test.1", "test.22"]),
        ("est", []),
        (r"test\.[0-9]$", ["test.1"]),
        ("[[]", []),
        (r"(test|other)\.?\d*$", ["test.1", "test.22", "other"]),
        (r"[a-z]+\.[0-9]+", ["test.1", "test.22"]),
    ],
)
async def test_patterns_match_at_the_beginning(pattern: str, expected: list[str]) -> None:
    """Also those that are matched in a process of their own."""
    assert await matches(pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["(", "*", "a{2,1}", "(?P<x", "x{99999999999}", "(" * 490, "(?i)(", r"[\x09-\x01]"]
)
async def test_invalid_patterns(pattern: str) -> None:
    with pytest.raises(NamingError, match="invalid regex: "):
        await matches(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(.*)*x"])
async def test_a_pattern_that_would_backtrack_for_ever_is_ended(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stays free meanwhile: another task gets its turns."""
    monkeypatch.setattr(matching, "MATCHING_TIMEOUT_S", 0.3)
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_work)
        with pytest.raises(NamingError, match="took longer"):
            await matches(pattern)
        nursery.cancel_scope.cancel()
    assert turns > 5


@pytest.mark.parametrize(
    "pattern", [r"(?i)[\x01-\U0010ffff]*", r"[\x01-\uffff]", "[a-\uffff]", r"(?s:[\N{SPACE}-z])"]
)
async def test_a_pattern_that_takes_long_to_compile_is_compiled_elsewhere(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some characters of it keep the interpreter busy for a second."""

    def compiled_here(pattern: str) -> NoReturn:
        raise AssertionError(f"{pattern} was compiled in the loop")

    monkeypatch.setattr(matching, "_compiled", compiled_here)
    assert "alpha" in await matching.matching_names(pattern, ["alpha"], trio.CapacityLimiter(1))
