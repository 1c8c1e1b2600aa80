"""Entries of a registry as backends: which are meant, which can be used, and what their tags say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import Uri
from pyroxfer_core.nameserver import Address, Entry
from pyroxfer_dispatcher.config import DiscoverConfig
from pyroxfer_dispatcher.found import Found, Unusable, Wanted, leads_to

HERE = Uri("PYRO:pyroxfer.dispatcher@10.0.0.5:9095")


def wanted(**section: object) -> Wanted:
    return Wanted(DiscoverConfig(**section), lambda uri: uri.location == HERE.location)  # type: ignore[arg-type]  # any


def entry(*uris: str, tags: str = "") -> Entry:
    return Entry(tuple(Address(uri, frozenset(tags.split())) for uri in uris))


@pytest.mark.parametrize(
    ("section", "chosen"),
    [
        ({"name": "orders"}, {"orders"}),
        ({"prefix": "orders"}, {"orders", "orders.eu"}),
        ({"all": ("a", "b")}, {"orders.eu"}),
        ({"any": ("a", "z")}, {"orders", "orders.eu"}),
        ({"all": ("a",), "any": ("b",)}, {"orders.eu"}),
        ({"name": "orders", "all": ("b",)}, set()),
        ({"prefix": "mail"}, {"mail"}),
    ],
)
def test_all_conditions_must_hold(section: dict[str, object], chosen: set[str]) -> None:
    entries = {
        "orders": entry("PYRO:x@h:1", tags="a"),
        "orders.eu": entry("PYRO:x@h:2", tags="a b"),
        "mail": entry("PYRO:x@h:3"),
    }
    asked = wanted(**section)
    assert {name for name, one in entries.items() if asked.addresses(name, one)} == chosen


def test_tags_count_for_each_address_by_itself() -> None:
    """Two backends under one name may stand in different zones."""
    here = Address("PYRO:x@h:1", frozenset({"zone:a"}))
    there = Address("PYRO:x@h:2", frozenset({"zone:b"}))
    assert wanted(name="orders", all=("zone:b",)).addresses("orders", Entry((here, there))) == (there,)


def test_tags_give_weight_and_preference() -> None:
    address = Address("PYRO:x@h:1", frozenset({"weight:2.5", "zone:a"}), frozenset({502, 46}))
    found = wanted(prefix="o", max_in_flight=4).read("orders", address)
    assert found == Found("orders", Uri("PYRO:x@h:1"), 2.5, address.metadata, frozenset({502}), 4)
    assert found.label == "orders@h:1"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nonsense", "invalid uri"),
        ("PYRO:x@h", "invalid port"),
        ("PYRO:x@0.0.0.0:1", "wildcard"),
        ("PYRO:x@[::]:1", "wildcard"),
        ("PYRO:x@:1", "wildcard"),
        ("PYRO:x@h:0", "port 0"),
        ("PYRONAME:other", "another name"),
        ("PYROMETA:a,b", "another name"),
        (str(HERE), "the dispatcher itself"),
        ("PYRO:any@10.0.0.5:9095", "the dispatcher itself"),
        ("PYRO:x\x1b[2J@h:1", "control characters"),
        (f"PYRO:{'x' * 2000}@h:1", "too long"),
    ],
)
def test_what_is_no_place_for_calls_is_refused_with_a_reason(uri: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        wanted(name="orders").read("orders", Address(uri))


@pytest.mark.parametrize("tag", ["weight:0", "weight:-1", "weight:many", "weight:", "weight:nan", "weight:1001"])
def test_a_weight_that_is_none_is_refused(tag: str) -> None:
    with pytest.raises(Unusable, match="above 0"):
        wanted(name="orders").read("orders", Address("PYRO:x@h:1", frozenset({tag})))


def test_one_weight_only() -> None:
    with pytest.raises(Unusable, match="not one number"):
        wanted(name="orders").read("orders", Address("PYRO:x@h:1", frozenset({"weight:1", "weight:2"})))


def test_other_protocols_and_dispatchers_are_refused() -> None:
    with pytest.raises(Unusable, match="neither protocol 48 nor 502 but 46"):
        wanted(name="orders").read("orders", Address("PYRO:x@h:1", protocols=frozenset({46})))
    with pytest.raises(Unusable, match=r"tag pyroxfer\.dispatcher"):
        wanted(name="orders").read("orders", Address("PYRO:x@h:1", frozenset({"pyroxfer.dispatcher"})))


TEXTS = st.text(max_size=40) | st.sampled_from(["weight:1", "weight:1e999", "PYRO:x@h:1", "PYRO:x@[::1]:5", "a"])


@given(TEXTS, TEXTS, st.frozensets(TEXTS, max_size=4), st.frozensets(st.integers(), max_size=3))
def test_any_address_is_used_or_refused(name: str, uri: str, tags: frozenset[str], protocols: frozenset[int]) -> None:
    """No other error comes out, and what is used can be shown on a terminal."""
    try:
        found = wanted(prefix="x").read(name, Address(uri, tags, protocols))
    except Unusable:
        return
    assert 0 < found.weight <= 1000
    assert found.uri.protocol == "PYRO"
    assert "".join([found.label, *found.tags]).isprintable()


@pytest.mark.parametrize(
    ("uri", "bound", "is_own"),
    [
        ("PYRO:x@localhost:9095", "127.0.0.1", True),
        ("PYRO:x@[::1]:9095", "127.0.0.1", True),
        ("PYRO:x@localhost:9096", "127.0.0.1", False),
        ("PYRO:x@10.0.0.5:9095", "127.0.0.1", False),
        ("PYRO:x@10.0.0.5:9095", "10.0.0.5", True),
        ("PYRO:x@localhost:9095", "10.0.0.5", False),
        ("PYRO:x@localhost:9095", "0.0.0.0", True),
        ("PYRO:x@127.0.0.1:9095", "::", True),
        ("PYRO:x@192.0.2.1:9095", "0.0.0.0", False),
        ("PYRO:x@backend.example:9095", "0.0.0.0", False),
        ("PYRO:x@./u:/run/socket", "0.0.0.0", False),
    ],
)
def test_the_own_address_is_known_by_its_place(uri: str, bound: str, is_own: bool) -> None:
    assert leads_to(Uri(uri), [("/run/other", None), (bound, 9095)]) is is_own


def test_the_own_unix_socket_is_known() -> None:
    assert leads_to(Uri("PYRO:x@./u:/run/d.sock"), [("127.0.0.1", 9095), ("/run/d.sock", None)])
