"""From topics to services."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_dispatcher.routes import RouteTable, topic_of

TABLE = RouteTable({"orders": "exact", "orders.*": "orders", "orders.eu.*": "europe", "mail": "mail"})


@pytest.mark.parametrize(
    ("topic", "service"),
    [
        ("orders", "exact"),
        ("orders.", "orders"),
        ("orders.us", "orders"),
        ("orders.eu", "orders"),
        ("orders.eu.de", "europe"),
        ("mail", "mail"),
        ("mail.x", None),
        ("order", None),
        ("", None),
        ("Orders", None),
    ],
)
def test_exact_before_prefix_and_longest_prefix_first(topic: str, service: str | None) -> None:
    assert TABLE.find(topic) == service


def test_a_star_takes_the_rest() -> None:
    table = RouteTable({"a*": "a", "*": "rest", "ab": "exact"})
    assert [table.find(topic) for topic in ("ab", "abc", "b", "")] == ["exact", "a", "rest", "rest"]


def test_globs_come_after_prefixes_in_their_order_and_before_the_rest() -> None:
    table = RouteTable({"*.eu": "eu", "a*b": "ab", "o?d": "od", "[xy]": "letters", "orders.*": "orders", "*": "rest"})
    topics = ("orders.eu", "mail.eu", "aXb", "old", "x", "z", "")
    assert [table.find(topic) for topic in topics] == ["orders", "eu", "ab", "od", "letters", "rest", "rest"]


def test_an_unlucky_glob_does_not_take_for_ever() -> None:
    """Many stars and a topic that nearly fits are answered at once."""
    assert RouteTable({"*a" * 30 + "b": "x"}).find("a" * 4000) is None


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern"):
        RouteTable({"": "x"})


@pytest.mark.parametrize(
    ("info", "topic"),
    [
        ("a", "a"),
        (("a", 1), "a"),
        (["a"], "a"),
        ((), None),
        ([], None),
        ((1, "a"), None),
        ((("a",),), None),
        (b"a", None),
        (1, None),
        (None, None),
    ],
)
def test_the_topic_is_the_info_or_its_first_item(info: object, topic: str | None) -> None:
    assert topic_of(info) == topic


@given(st.dictionaries(st.text("ab", max_size=4), st.booleans(), max_size=8), st.text("ab", max_size=6))
def test_the_table_agrees_with_its_definition(patterns: dict[str, bool], topic: str) -> None:
    """The exact pattern if there is one, else the longest prefix that fits."""
    routes = {text + "*" * is_prefix: text for text, is_prefix in patterns.items() if text or is_prefix}
    fitting = [text for text, is_prefix in patterns.items() if is_prefix and topic.startswith(text)]
    exact = [topic] if topic and patterns.get(topic) is False else []
    best = [*exact, *sorted(fitting, key=len, reverse=True)]
    expected = best[0] if best else None
    assert RouteTable(routes).find(topic) == expected
