"""What makes connecting cheap changes nothing that can be seen of it."""

from __future__ import annotations

import tracemalloc
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import pytest
from facade_doubles import Service, serving
from hypothesis import example, given
from hypothesis import strategies as st

from pyroxfer_core import Settings
from pyroxfer_core.blocking import Daemon, Proxy
from pyroxfer_core.client import handshake
from pyroxfer_core.client.handshake import HelloSerializer, Welcome, read_welcome
from pyroxfer_core.errors import PyroError
from pyroxfer_core.serializers.base import SerializerContext
from pyroxfer_core.serializers.factory import make_serializer
from pyroxfer_core.wire.features import Feature, Grant
from pyroxfer_core.wire.message import Flags, Message, MessageType

BUFFER = 64 * 1024
CONNECTIONS = 16
LOCATION = "localhost:1"

names = st.lists(st.text(max_size=5), max_size=4)
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.lists(st.integers(0, 9), max_size=2)
metadata = st.fixed_dictionaries(
    {}, optional={key: names | names.map(tuple) | plain for key in ("methods", "oneway", "attrs", "idempotent")}
)
answers = st.fixed_dictionaries({}, optional={"handshake": plain, "meta": metadata | plain}) | plain


def read(name: str, version: int, flags: int, body: Any) -> Welcome | tuple[type, str]:
    message = Message(MessageType.CONNECTOK, 0, name, flags, body)
    hello = HelloSerializer(name, lambda: SerializerContext(version))
    try:
        return read_welcome(message, version, LOCATION, Settings(), hello)
    except PyroError as error:
        return type(error), str(error)


@given(
    answers,
    st.sampled_from(["serpent", "json", "marshal", "msgpack"]),
    st.sampled_from([48, 502]),
    st.sampled_from([0, Flags.META_ON_CONNECT]),
)
@example({"handshake": "hello", "meta": {"methods": ["a"], "session": True}}, "serpent", 502, 0)
@example({"handshake": "hello", "meta": {"methods": ["a", 1]}}, "msgpack", 502, 0)
@example({"handshake": "__class__", "meta": {"__class__": "x"}}, "msgpack", 502, 0)
def test_a_usual_welcome_is_read_as_any(answer: Any, name: str, version: int, flags: int) -> None:
    body = make_serializer(name, SerializerContext(version)).dumps(answer)
    first, again = read(name, version, flags, body), read(name, version, flags, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "USUAL_BYTES", -1)
        assert first == again == read(name, version, flags, body)


def test_a_welcome_that_was_read_before_is_still_a_refusal_when_the_daemon_says_so() -> None:
    hello = HelloSerializer("msgpack", lambda: SerializerContext(502))
    body = hello.made("msgpack").dumps({"handshake": "hello", "meta": {"methods": ["a"]}})
    assert isinstance(read("msgpack", 502, 0, body), Welcome)
    refusal = Message(MessageType.CONNECTFAIL, 0, "msgpack", 0, body)
    with pytest.raises(PyroError, match="rejected"):
        read_welcome(refusal, 502, LOCATION, Settings(), hello)


def test_what_one_connection_was_welcomed_with_cannot_be_changed_for_the_next() -> None:
    body = make_serializer("msgpack", SerializerContext(502)).dumps({"handshake": ["mine"], "meta": {}})
    first = read("msgpack", 502, 0, body)
    assert isinstance(first, Welcome)
    first.response.append("changed")
    again = read("msgpack", 502, 0, body)
    assert isinstance(again, Welcome)
    assert again.response == ["mine"]


def test_only_a_connection_that_waits_for_something_has_a_buffer_and_none_that_is_closed() -> None:
    with serving(Daemon()) as daemon, ExitStack() as stack:
        uri = daemon.register(Service())
        with Proxy(uri) as first:
            first.echo(1)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        proxies = [stack.enter_context(Proxy(uri)) for _ in range(CONNECTIONS)]
        for proxy in proxies:
            proxy._pyroBind()
        assert tracemalloc.get_traced_memory()[0] < CONNECTIONS * BUFFER
        links = [proxy._pyroLink for proxy in proxies]
        for proxy in proxies:
            assert proxy.echo(1) == 1
        assert tracemalloc.get_traced_memory()[0] > CONNECTIONS * BUFFER
        for proxy in proxies:
            proxy._pyroRelease()
        assert tracemalloc.get_traced_memory()[0] < CONNECTIONS * BUFFER
        assert all(link is not None and link.closed for link in links)


def test_what_is_agreed_leaves_the_rest_of_a_context_alone() -> None:
    """It is copied field by field: a new one must not be forgotten."""
    changed = {"own", "out_of_band", "streams"}
    marks = {field.name: object() for field in fields(SerializerContext)}
    context = SerializerContext(**marks)  # type: ignore[arg-type]  # nothing looks at them
    granted = context.granted(Grant(Feature.ALL))
    assert {name for name, mark in marks.items() if getattr(granted, name) is not mark} == changed
    assert granted.own
    assert granted.out_of_band
    assert granted.streams
