"""A connection that is being made: whoever wants it is told what came of it, and nobody else has it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing
from doubles_dispatch import PARTY, service_of
from doubles_plays import Stage, request

from pyroxfer_core import Connection, Uri
from pyroxfer_core.errors import ConnectionClosedError, RefusedError
from pyroxfer_core.wire import STOCK, V502, Decoder
from pyroxfer_dispatcher.attempts import Attempt
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.clients import DirectClient
from pyroxfer_dispatcher.conversation import Conversation
from pyroxfer_dispatcher.dialects import BlobDialect
from pyroxfer_dispatcher.events import BackendLost, BackendRefused
from pyroxfer_dispatcher.hub import Hub
from pyroxfer_dispatcher.links import Link
from pyroxfer_dispatcher.routes import Service

HOME = Backend("b", Uri("PYRO:worker@h:1"))


class Source:
    """Links that are made when they may be, or the error instead of one."""

    def __init__(self, link: Link, error: Exception | None = None) -> None:
        self.made = trio.Event()
        self._link = link
        self._error = error

    def idle(self, backend: Backend, version: int) -> Link | None:
        return None

    async def open(self, service: Service, backend: Backend, version: int) -> Link:
        await self.made.wait()
        if self._error is not None:
            raise self._error
        return self._link

    def put(self, link: Link) -> None:
        raise AssertionError("nobody gives one back")

    def forget(self, link: Link) -> None:
        raise AssertionError("none was idle")


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def link(hub: Hub) -> Iterator[Link]:
    with ExitStack() as stack:
        near, far = socket.socketpair()
        near.setblocking(False)
        stack.enter_context(far)
        connection = cast(Connection, SimpleNamespace(sock=near))
        link = Link(HOME, hub, connection, V502, Decoder(V502), "worker", STOCK, lambda backend: None)
        stack.callback(link.channel.close)
        yield link


async def what_came_of(source: Source, then: Callable[[Attempt], None]) -> list[object]:
    """What was told of an attempt with which something is done at the moment in which its connection is there."""
    told: list[object] = []
    async with trio.open_nursery() as nursery:
        attempt = Attempt(nursery, source, told.append)
        attempt.begin(service_of(HOME), HOME, 502)
        await trio.testing.wait_all_tasks_blocked()
        source.made.set()
        then(attempt)
    return told


async def test_a_connection_that_was_made_is_told(link: Link) -> None:
    assert await what_came_of(Source(link), lambda attempt: None) == [link]
    assert not link.channel.closed


async def test_one_that_is_given_up_when_it_is_there_already_is_closed_and_told_to_nobody(link: Link) -> None:
    assert await what_came_of(Source(link), Attempt.give_up) == []
    assert link.channel.closed


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (RefusedError("full"), BackendRefused("full")),
        (ConnectionClosedError("gone"), BackendLost("gone")),
        (OSError("no room"), BackendLost("an error inside the dispatcher")),
    ],
)
async def test_an_error_is_told_unless_nobody_wants_to_know(
    link: Link, error: Exception, event: BackendRefused | BackendLost
) -> None:
    assert await what_came_of(Source(link, error), lambda attempt: None) == [event]
    assert await what_came_of(Source(link, error), Attempt.give_up) == []


class Calling:
    """A client whose call waits for the connection that ``source`` makes.

    Args:
        then: done at the moment in which that is there.
    """

    def __init__(self, hub: Hub, source: Source, then: Callable[[Calling], object]) -> None:
        self.stage = Stage()
        self.ended = False
        self._hub = hub
        self._source = source
        self._then = then
        self.conversation: Conversation

    async def run(self) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            async with trio.open_nursery() as nursery:
                dialect = BlobDialect(self.stage.directory)
                conversation = self.conversation = Conversation(
                    self._hub, nursery, self._source, dialect, V502, Decoder(V502), PARTY, "a client", stall_s=10
                )
                lost = conversation._client_lost
                client = DirectClient(self._hub, near, V502, conversation.client_said, lost)
                conversation.begin(client, self._end)
                conversation.begin_call(request(), None)
                await trio.testing.wait_all_tasks_blocked()
                self._source.made.set()
                self._then(self)
            client.close()
            conversation.end()

    def _end(self) -> None:
        self.ended = True


async def test_a_client_that_leaves_when_the_connection_is_there_already_is_the_only_one_to_go(
    hub: Hub, link: Link
) -> None:
    calling = Calling(hub, Source(link), lambda calling: calling.conversation.lose_client())
    await calling.run()
    assert calling.ended
    assert link.channel.closed
    assert calling.stage.in_flight == [0, 0, 0]


async def test_a_call_that_fails_unexpectedly_when_its_connection_is_there_ends_its_client_only(
    hub: Hub, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(link: Link) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Link, "next_seq", fail)
    calling = Calling(hub, Source(link), lambda calling: None)
    await calling.run()
    assert "a call ended with an unexpected error" in caplog.text
    assert calling.ended
    assert link.channel.closed
    assert calling.stage.in_flight == [0, 0, 0]
