"""The object behind Pyro.NameServer, called in the process as each kind of caller would call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyroxfer_core.errors import NamingError, PyroError
from pyroxfer_core.nameserver import rules
from pyroxfer_core.nameserver.service import NameServer
from pyroxfer_core.nameserver.storage import Entry, Registry, open_registry
from pyroxfer_core.objects.context import CallContext, current_context_var
from pyroxfer_core.uri import Uri

ONE, TWO = "PYRO:one@localhost:5555", "PYRO:two@localhost:5556"
OWN = "PYRO:Pyro.NameServer@localhost:9090"


@contextmanager
def caller(protocol: int, peer: str = "127.0.0.1:40000", *, own: bool = False) -> Iterator[None]:
    """What follows is called over the network."""
    context = SimpleNamespace(protocol=protocol, peer=peer, client=SimpleNamespace(is_own=own))
    token = current_context_var.set(cast(CallContext, context))
    try:
        yield
    finally:
        current_context_var.reset(token)


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    opened = open_registry("memory" if request.param == "memory" else f"sql:{tmp_path / 'names.sqlite'}")
    await opened.put("Pyro.NameServer", Entry.single(OWN))
    await opened.put("test.one", Entry.single(ONE, frozenset({"x", "y"})))
    await opened.put("test.two", Entry.single(TWO, frozenset({"y"})))
    yield opened
    await opened.aclose()


@pytest.fixture
def ns(storage: Registry) -> NameServer:
    return NameServer(storage)


async def test_lookup(ns: NameServer) -> None:
    assert await ns.ping() is None  # type: ignore[func-returns-value]  # Pyro promises None
    assert await ns.count() == 3
    assert await ns.lookup("test.one") == Uri(ONE)
    assert await ns.lookup("test.one", return_metadata=True) == (Uri(ONE), {"x", "y"})


async def test_metadata_is_a_list_for_pyro4_and_a_set_for_pyro5(ns: NameServer) -> None:
    with caller(48):
        assert await ns.lookup("test.one", True) == (Uri(ONE), ["x", "y"])
        assert await ns.list("test.one", return_metadata=True) == {"test.one": (ONE, ["x", "y"])}
    with caller(502):
        assert await ns.lookup("test.one", True) == (Uri(ONE), {"x", "y"})
        assert await ns.list("test.one", return_metadata=True) == {"test.one": (ONE, {"x", "y"})}
        assert await ns.list("test.one", None, cast(Any, True)) == {"test.one": (ONE, {"x", "y"})}


async def test_register_replaces_uri_and_metadata(ns: NameServer) -> None:
    await ns.register("test.one", Uri(TWO))
    assert await ns.lookup("test.one", True) == (Uri(TWO), set())
    await ns.register("", "PYRONAME:test.one\n", metadata=["a", "a"])
    assert await ns.list(metadata_all=["a"]) == {"": "PYRONAME:test.one"}


async def test_safe_registration_refuses_a_taken_name(ns: NameServer) -> None:
    with pytest.raises(NamingError, match=r"^name already registered: test\.one$"):
        await ns.register("test.one", TWO, safe=True)
    assert await ns.lookup("test.one") == Uri(ONE)


async def test_set_metadata(ns: NameServer) -> None:
    await ns.set_metadata("test.one", {"z"})
    assert await ns.lookup("test.one", True) == (Uri(ONE), {"z"})
    await ns.set_metadata("test.one", None)
    assert await ns.lookup("test.one", True) == (Uri(ONE), set())


async def test_list_filters(ns: NameServer) -> None:
    everything = {"Pyro.NameServer": OWN, "test.one": ONE, "test.two": TWO}
    assert await ns.list() == everything
    assert await ns.list(prefix="") == everything
    assert await ns.list(regex="") == everything
    assert await ns.list(metadata_all=[]) == everything
    assert await ns.list(prefix="test.o") == {"test.one": ONE}
    assert await ns.list(regex="est") == {}
    assert await ns.list(regex=r"test\.(one|none)") == {"test.one": ONE}
    assert await ns.list(metadata_all=["x", "y"]) == {"test.one": ONE}
    assert await ns.list(metadata_any={"x", "y"}) == {"test.one": ONE, "test.two": TWO}


async def test_yplookup(ns: NameServer) -> None:
    assert await ns.yplookup(meta_all=["x", "y"]) == {"test.one": (ONE, {"x", "y"})}
    assert await ns.yplookup(meta_any=("x", "y"), return_metadata=False) == {"test.one": ONE, "test.two": TWO}
    assert await ns.yplookup() == {}
    assert await ns.yplookup([], ()) == {}


async def test_remove(ns: NameServer) -> None:
    assert await ns.remove("nothing") == 0
    assert await ns.remove("Pyro.NameServer") == 0
    assert await ns.remove(prefix="Pyro.") == 0
    assert await ns.remove() == 0
    assert await ns.remove("test.one") == 1
    assert await ns.remove(regex=".*") == 1
    assert await ns.list() == {"Pyro.NameServer": OWN}


async def test_an_unknown_name_falls_through_to_the_prefix_for_pyro4_only(ns: NameServer) -> None:
    with caller(502):
        assert await ns.remove("nothing", prefix="test.") == 0
    with caller(48):
        assert await ns.remove("nothing", prefix="test.") == 2


ERRORS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda ns: ns.lookup("nothing"), NamingError, r"^unknown name: nothing$"),
    (lambda ns: ns.set_metadata("nothing", ["a"]), NamingError, r"^unknown name: nothing$"),
    (lambda ns: ns.register("a", "nonsense"), PyroError, "^invalid uri"),
    (lambda ns: ns.register("a", 3), TypeError, "only URIs or strings"),
    (lambda ns: ns.register(3, ONE), TypeError, "name must be a str"),
    (lambda ns: ns.register("a", ONE, metadata="text"), TypeError, "metadata should"),
    (lambda ns: ns.register("a", ONE, metadata=3), TypeError, "metadata should"),
    (lambda ns: ns.register("a", "PYRO:a@0.0.0.0:1"), NamingError, "wildcard"),
    (lambda ns: ns.register("a\x1b", ONE), NamingError, "control characters"),
    (lambda ns: ns.register("a" * 64 * 1024, ONE), NamingError, "too long"),
    (lambda ns: ns.list("a", "b"), ValueError, "^you can only filter on one thing at a time$"),
    (lambda ns: ns.list(regex="("), NamingError, "^invalid regex: "),
    (lambda ns: ns.list(regex=3), TypeError, "regex must be a str"),
    (lambda ns: ns.list(prefix=["a"]), TypeError, "prefix must be a str"),
    (lambda ns: ns.list(metadata_any="text"), TypeError, "metadata_any should"),
    (lambda ns: ns.yplookup(["a"], ["b"]), ValueError, "not both"),
    (lambda ns: ns.yplookup("text"), TypeError, "should be"),
    (lambda ns: ns.yplookup(meta_any="text"), TypeError, "should be"),
    (lambda ns: ns.remove(3), TypeError, "name must be a str"),
    (lambda ns: ns.remove(regex="("), NamingError, "^invalid regex: "),
]


@pytest.mark.parametrize("protocol", [48, 502])
@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
async def test_errors(
    ns: NameServer, call: Callable[[Any], Any], error: type[Exception], text: str, protocol: int
) -> None:
    """Each misuse is the error the stock servers raise, and changes nothing."""
    before = await ns.list()
    with caller(protocol), pytest.raises(error, match=text):
        await call(ns)
    assert await ns.list() == before


async def test_empty_filters_count_for_pyro4_only(ns: NameServer) -> None:
    with caller(502):
        assert await ns.list("", "test.one") == {"test.one": ONE}
    with caller(48), pytest.raises(ValueError, match="only filter on one"):
        await ns.list("", "test.one")


async def test_loopback_addresses_from_other_machines(storage: Registry) -> None:
    strict, lenient = NameServer(storage), NameServer(storage, allow_loopback=True)
    for peer in ("192.0.2.7:4000", "[fe80::1%2]:4000", "gone"):
        with caller(502, peer):
            with pytest.raises(NamingError, match="loopback address means another machine"):
                await strict.register("a", "PYRO:a@127.0.0.1:1")
            await strict.register("b", "PYRO:b@192.0.2.7:1")
            await lenient.register("a", "PYRO:a@127.0.0.1:1")
    for peer in ("127.0.0.1:4000", "[::1]:4000", "unix"):
        with caller(502, peer):
            await strict.register("a", "PYRO:a@localhost:1")


async def test_a_full_name_server_refuses_new_names_only(storage: Registry) -> None:
    ns = NameServer(storage, max_entries=3)
    await ns.register("test.one", TWO)
    with pytest.raises(NamingError, match="full: it holds 3 names"):
        await ns.register("new", ONE)
    await ns.remove("test.two")
    await ns.register("new", ONE)


async def test_pyros_members_and_ours_are_exposed() -> None:
    exposed = {name for name, member in vars(NameServer).items() if getattr(member, "_pyroExposed", False) is True}
    assert exposed - {"_pyroExposed"} == {
        "ping", "count", "lookup", "register", "set_metadata", "remove", "list", "yplookup",
        "lookup_all", "reach_back", "renew", "revoke", "watch",
    }  # fmt: skip
    assert rules.NAME_SERVER == "Pyro.NameServer"
