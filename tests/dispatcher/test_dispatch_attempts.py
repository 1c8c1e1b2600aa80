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
from pyroxfer_core.errors import ConnectionClosedError, PyroError, RefusedError
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

    def __init__(self, link: Link, error: PyroError | None = None) -> None:
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
    [(RefusedError("full"), BackendRefused("full")), (ConnectionClosedError("gone"), BackendLost("gone"))],
)
async def test_an_error_is_told_unless_nobody_wants_to_know(
    link: Link, error: PyroError, event: BackendRefused | BackendLost
) -> None:
    assert await what_came_of(Source(link, error), lambda attempt: None) == [event]
    assert await what_came_of(Source(link, error), Attempt.give_up) == []


async def test_a_client_that_leaves_when_the_connection_is_there_already_is_the_only_one_to_go(
    hub: Hub, link: Link
) -> None:
    stage, source, near_and_far = Stage(), Source(link), socket.socketpair()
    near_and_far[0].setblocking(False)
    ended: list[bool] = []
    with near_and_far[1]:
        async with trio.open_nursery() as nursery:
            dialect = BlobDialect(stage.directory)
            conversation = Conversation(
                hub, nursery, source, dialect, V502, Decoder(V502), PARTY, "a client", stall_s=10
            )
            client = DirectClient(hub, near_and_far[0], V502, conversation.client_said, lambda reason: None)
            conversation.begin(client, lambda: ended.append(True))
            conversation.begin_call(request(), None)
            await trio.testing.wait_all_tasks_blocked()
            source.made.set()
            conversation.lose_client()
        client.close()
    assert ended
    assert link.channel.closed
    assert stage.in_flight == [0, 0, 0]
