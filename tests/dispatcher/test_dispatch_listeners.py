"""Listeners that register for topics, as in Pyro's blob-dispatch example."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from doubles import until
from doubles_dispatch import ask, blob, raw_client, text_of

from pyroxfer_core import BatchProxy, Daemon, Proxy, SerializedBlob, Settings, Uri, expose, oneway
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.backends import BackendGroup
from pyroxfer_dispatcher.config import parse_config
from pyroxfer_dispatcher.listeners import MAX_LISTENERS, Listeners, uri_of

CONFIG = """
listen = "localhost:0"
oneway = ["notify"]
methods = ["process_blob", "notify"]
[[services]]
name = "events"
match = "events.*"
listeners = "{mode}"
"""


@expose
class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, Any]] = []
        self.fails = False

    def process_blob(self, blob: SerializedBlob) -> str:
        self.heard.append((blob.info, blob.deserialized()))
        if self.fails:
            raise ValueError("not today")
        return "heard"

    @oneway
    def notify(self, blob: SerializedBlob) -> None:
        self.heard.append((blob.info, blob.deserialized()))


@asynccontextmanager
async def dispatching(mode: str) -> AsyncIterator[Dispatcher]:
    async with Dispatcher(parse_config(CONFIG.format(mode=mode))) as dispatcher:
        yield dispatcher


@asynccontextmanager
async def listening(dispatcher: Dispatcher, count: int = 2, topic: str = "events.a") -> AsyncIterator[list[Listener]]:
    """Listeners of ours, registered by their own proxies."""
    found: list[Listener] = []
    async with Daemon(port=0) as daemon, Proxy(dispatcher.uri) as proxy:
        for number in range(count):
            listener = Listener()
            found.append(listener)
            await proxy.register(topic, Proxy(daemon.register(listener, f"listener{number}")))
        yield found


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack"])
async def test_all_listeners_of_a_topic_get_each_blob(serializer: str) -> None:
    """Once each, in the sender's serializer; the sender's result is None, as in the example."""
    async with dispatching("all") as dispatcher, listening(dispatcher, 3) as listeners:
        async with Proxy(dispatcher.uri, settings=Settings(serializer=serializer)) as proxy:
            for number in range(3):
                assert await proxy.process_blob(SerializedBlob("events.a", [number])) is None
            assert await proxy.process_blob(SerializedBlob("events.other", ["nobody"])) is None
    for listener in listeners:
        assert listener.heard == [("events.a", [number]) for number in range(3)]


async def test_one_of_many_gets_each_blob() -> None:
    """And its result comes back."""
    async with dispatching("one") as dispatcher, listening(dispatcher, 2) as listeners:
        async with Proxy(dispatcher.uri) as proxy:
            for number in range(40):
                assert await proxy.process_blob(SerializedBlob("events.a", [number])) == "heard"
        counts = [len(listener.heard) for listener in listeners]
        assert sum(counts) == 40
        assert min(counts) > 0


async def test_a_topic_that_nobody_listens_to_is_refused_where_one_must_answer() -> None:
    async with dispatching("one") as dispatcher, raw_client(dispatcher.location) as client:
        assert "NotSent: no live backend of service 'events/'" in text_of(await ask(client, blob(topic="events.x")))


async def test_one_way_blobs_reach_all_listeners() -> None:
    async with dispatching("all") as dispatcher, listening(dispatcher, 2) as listeners:
        async with Proxy(dispatcher.uri) as proxy:
            await proxy.notify(SerializedBlob("events.a", ["x"]))
            await proxy.process_blob(SerializedBlob("events.a", ["y"]))
        await until(lambda: all(len(listener.heard) == 2 for listener in listeners))  # nobody awaits a one-way call
        assert [sorted(data for _, data in listener.heard) for listener in listeners] == [[["x"], ["y"]]] * 2


async def test_a_listener_that_fails_or_is_gone_keeps_nothing_from_the_others() -> None:
    """The one that is gone is forgotten after some attempts."""
    async with dispatching("all") as dispatcher, listening(dispatcher, 2) as listeners:
        listeners[0].fails = True
        async with Proxy(dispatcher.uri) as proxy:
            await proxy.register("events.a", "PYRO:gone@localhost:1")
            for _ in range(2):
                assert await proxy.process_blob(SerializedBlob("events.a", [1])) is None
        assert [len(listener.heard) for listener in listeners] == [2, 2]
        service = dispatcher.directory.services["events"]
        assert (service.tally["delivered"], service.tally["not_delivered"]) == (4, 2)


async def test_unregistered_listeners_hear_nothing_more() -> None:
    async with dispatching("all") as dispatcher, Daemon(port=0) as daemon, Proxy(dispatcher.uri) as proxy:
        listener = Listener()
        uri = daemon.register(listener, "listener")
        for _ in range(2):
            await proxy.register("events.a", str(uri))
        await proxy.process_blob(SerializedBlob("events.a", [1]))
        await proxy.unregister("events.a", str(uri))
        await proxy.process_blob(SerializedBlob("events.a", [2]))
        assert listener.heard == [("events.a", [1])], "registered twice, called once"


async def test_a_large_blob_for_all_is_refused() -> None:
    """It would have to be kept for all of them."""
    async with dispatching("all") as dispatcher, listening(dispatcher, 1), raw_client(dispatcher.location) as client:
        answer = await ask(client, blob(topic="events.a", body=bytes(3_000_000)))
        assert "NotSent: a blob for all listeners of its topic must be smaller" in text_of(answer)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("events.a",), "takes a topic and a listener"),
        ((1, "PYRO:x@localhost:1"), "takes a topic and a listener"),
        (("events.a", "nonsense"), "invalid uri"),
        (("events.a", 5), "a listener is a proxy"),
        (("events.a", {"state": []}), "a listener is a proxy"),
        (("other", "PYRO:x@localhost:1"), "nobody can listen to topic 'other' here"),
    ],
)
async def test_registrations_that_make_no_sense_are_refused(args: tuple[object, ...], text: str) -> None:
    async with dispatching("all") as dispatcher, Proxy(dispatcher.uri) as proxy:
        with pytest.raises(Exception, match=text):
            await proxy.register(*args)


async def test_other_calls_of_the_dispatcher_are_still_refused() -> None:
    async with dispatching("all") as dispatcher, Proxy(dispatcher.uri) as proxy:
        batch = BatchProxy(proxy)
        batch.register("events.a", "PYRO:x@localhost:1")
        with pytest.raises(Exception, match="only calls with one SerializedBlob argument"):
            async for _ in batch():
                pass


def test_listeners_are_bounded() -> None:
    class Topic:
        def __init__(self) -> None:
            self.group = BackendGroup([])

    listeners = Listeners(lambda name, forget: Topic())
    for number in range(MAX_LISTENERS):
        listeners.register(f"t{number % 7}", Uri(f"PYRO:x@h:{number}"))
    with pytest.raises(LookupError, match="registered already"):
        listeners.register("t", Uri("PYRO:x@h:9999"))
    for number in range(MAX_LISTENERS):
        listeners.unregister(f"t{number % 7}", Uri(f"PYRO:x@h:{number}"))
    assert not list(listeners.topics())


def test_a_proxy_of_each_library_is_a_listener() -> None:
    states: list[list[Any]] = [
        ["PYRO:x@h:1", [], [], [], 0.0, None, "hello", 0, None],
        ["PYRO:x@h:1", [], [], [], "hello", None],
    ]
    for state in states:
        assert uri_of({"__class__": "Proxy", "state": state}) == Uri("PYRO:x@h:1")
    assert uri_of({"__class__": "URI", "state": ["PYRO", "x", None, "h", 1]}) == Uri("PYRO:x@h:1")
