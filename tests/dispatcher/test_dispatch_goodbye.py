"""Backends that say goodbye: they get no call any more, none is lost, and they come back when they are there."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import doubles_dispatch
import pytest
import trio
from doubles_dispatch import config_for, echo, led_config_for, raw_backend, raw_client, wait_for
from doubles_plays import Play, Stage, called, item, request, said, sealed, stream_reply

from pyroxfer_core import (
    Connection,
    Daemon,
    Proxy,
    SerializedBlob,
    Settings,
    Uri,
    behavior,
    expose,
    introduce,
    open_connection,
)
from pyroxfer_core.errors import Outcome, PyroError, RefusedError
from pyroxfer_core.wire import (
    OUTCOME_KEY,
    Body,
    Decoder,
    Feature,
    Flags,
    Grant,
    Head,
    Message,
    MessageType,
    codec_for,
)
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.backends import FIRST_BACKOFF_S, Backend, BackendGroup
from pyroxfer_dispatcher.balance import RoundRobin
from pyroxfer_dispatcher.commands import (
    CloseBackend,
    Fail,
    Forward,
    KeepBackend,
    OpenBackend,
    Reply,
    UseKeptBackend,
)
from pyroxfer_dispatcher.config import Config
from pyroxfer_dispatcher.events import BackendLeaves, BackendOpened, BlobArrived, ReplyArrived, RequestSent
from pyroxfer_dispatcher.frames import Sealed
from pyroxfer_dispatcher.hub import Hub
from pyroxfer_dispatcher.links import Link, LinkPool, from_backend
from pyroxfer_dispatcher.relay import Relay
from pyroxfer_dispatcher.status import state_of

INVOKE, GOAWAY = MessageType.INVOKE, MessageType.GOAWAY

# -- its state


def test_a_backend_that_leaves_gets_nothing_until_a_connection_works() -> None:
    """Each of its connections may say so; while it refuses it still leaves; once nobody is there it is down."""
    first, second = (Backend(f"b{n}", Uri(f"PYRO:x@localhost:{n}")) for n in range(2))
    group = BackendGroup((first, second), RoundRobin(0.0))
    assert [group.left(first, 0.0), group.left(first, 0.1)] == [True, False]
    assert (state_of(first, 0.0), first.describe(0.0)) == ("leaving", "b0 is leaving, next try in 0.2 s")
    assert {group.pick(0.0) for _ in range(4)} == {second}
    now = FIRST_BACKOFF_S
    assert first in (group.pick(now), group.pick(now))
    group.release(first)
    group.refused(first, now)
    assert (state_of(first, now), first.is_live(now + FIRST_BACKOFF_S)) == ("leaving", False)
    group.failed(first, now, "refused")
    assert state_of(first, now) == "down"
    assert group.opened(first, now)
    assert state_of(first, now) == "up"


def test_a_busy_backend_is_not_taken_for_one_that_leaves() -> None:
    one = Backend("b", Uri("PYRO:x@localhost:1"))
    BackendGroup([one]).refused(one, 0.0)
    assert one.is_live(0.0)


# -- a conversation


def test_a_call_that_was_not_begun_goes_to_another_backend() -> None:
    """And costs no retry, for it certainly has not run."""
    stage = Stage()
    asked = request()
    service = stage.directory.services["orders"]
    while service.retries.spend():
        pass
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (BackendLeaves(has_begun=False), [CloseBackend(), OpenBackend(stage.b, 502)]),
        ]
    )
    assert stage.in_flight == [0, 1, 0]


def test_a_call_that_was_begun_is_waited_for() -> None:
    stage = Stage()
    stage.perform([*called(stage, request(), stage.a), (BackendLeaves(has_begun=True), [])])
    assert stage.in_flight == [1, 0, 0]


def test_a_call_of_which_a_part_is_gone_is_not_sent() -> None:
    """Nobody has the rest of it any more."""
    stage = Stage()
    asked = request()
    play: Play = called(stage, asked, stage.a)
    stage.perform(play[:-1])
    assert stage.forwarding.call.is_whole
    stage.forwarding.call.body_length = 5
    stage.perform(
        [
            (RequestSent(), []),
            (
                BackendLeaves(has_begun=False),
                [CloseBackend(), Fail(asked, Outcome.NOT_SENT, "the backend is going away")],
            ),
        ]
    )


def test_a_stream_on_a_backend_that_leaves_does_not_bring_it_back() -> None:
    """The connection that holds it works until it ends, and says nothing about others."""
    stage = Stage()
    asked, answer, following = request(), stream_reply(1, b"id"), item(9)
    stage.perform(
        [*called(stage, asked, stage.a), (ReplyArrived(answer), [KeepBackend(), Reply(stream_reply(7, b"id"))])]
    )
    group = stage.directory.services["orders"].group
    group.left(stage.a, 0.0)
    stage.perform([(BlobArrived(following), [UseKeptBackend()])])
    [forward] = stage.forwarding.handle(BackendOpened(2, "obj", 502), 0.0)
    assert isinstance(forward, Forward)
    assert stage.a.leaving


# -- calls of a client that belongs to its backend


def notice(last: int | None) -> Sealed:
    body = b"" if last is None else last.to_bytes(2, "big")
    return Sealed(GOAWAY, 0, "ping", 0, b"", {}, None, b"head" + body, 4)


@pytest.mark.parametrize(
    ("last", "unread"), [(None, set()), (1, {2, 3, 5}), (3, {5}), (4, {5}), (5, set()), (0xFFF0, {1, 2, 3, 5})]
)
def test_calls_that_were_not_read_are_not_sent(relay: Relay, last: int | None, unread: set[int]) -> None:
    """Whatever left: the backend has promised not to begin them."""
    for number in (1, 2, 3):
        said(relay, sealed(INVOKE, number), 10)
    relay.asked(sealed(INVOKE, 4, flags=4), 0.0)
    said(relay, sealed(INVOKE, 5), 10)
    relay.backend_leaves(notice(last))
    assert relay.began_at is None, "nobody is to blame"
    fails = relay.backend_lost(10, "it closed the connection", 0.0)
    assert {fail.request.seq for fail in fails if fail.outcome is Outcome.NOT_SENT} == unread
    assert len(fails) == 4


def test_of_a_call_that_is_in_flight_for_long_nothing_is_known(relay: Relay) -> None:
    """Its number may stand behind those of newer ones."""
    said(relay, sealed(INVOKE, 105), 10)
    relay._places = 70_000
    relay._newest = 109
    said(relay, sealed(INVOKE, 110), 10)
    relay.backend_leaves(notice(100))
    fails = relay.backend_lost(10, "it closed the connection", 0.0)
    assert {fail.request.seq: fail.outcome for fail in fails} == {105: Outcome.UNKNOWN, 110: Outcome.NOT_SENT}


# -- the whole


@expose
@behavior(instance_mode="single")
class Worker:
    def __init__(self) -> None:
        self.calls = 0
        self.gate = trio.Event()

    async def process(self, blob: SerializedBlob) -> int:
        return await self.work()

    async def work(self) -> int:
        self.calls += 1
        await trio.lowlevel.checkpoint()
        return self.calls

    async def hang(self, blob: SerializedBlob) -> str:
        self.calls += 1
        await self.gate.wait()
        return "done"


def blob() -> SerializedBlob:
    return SerializedBlob("orders", 1)


def group_of(dispatcher: Dispatcher) -> tuple[Backend, ...]:
    (service,) = dispatcher.directory.services.values()
    return service.group.backends


async def test_a_backend_that_leaves_ends_its_calls_and_is_seen_leaving(caplog: pytest.LogCaptureFixture) -> None:
    """One is in flight there, one has been: neither connection gets anything new, and the log tells it once."""
    caplog.set_level(logging.INFO, "pyroxfer.dispatcher")
    bad, good = Worker(), Worker()
    results: list[object] = []
    async with Daemon(settings=Settings(shutdown_grace_s=20)) as old, Daemon() as other:
        uris = [old.register(bad, "worker"), other.register(good, "worker")]
        config = config_for(*uris, head='methods = ["process", "hang"]', service="")
        async with Dispatcher(config) as dispatcher, Proxy(dispatcher.uri) as one, Proxy(dispatcher.uri) as two:
            first, _ = group_of(dispatcher)
            assert {await one.process(blob()), await one.process(blob())} == {1}
            async with trio.open_nursery() as nursery:

                async def hang() -> None:
                    results.append(await two.hang(blob()))

                nursery.start_soon(hang)
                await wait_for(lambda: bad.calls == 2)
                nursery.start_soon(old.aclose)
                await wait_for(lambda: first.leaving)
                for calls in range(2, 6):
                    assert await one.process(blob()) == calls
                assert (bad.calls, first.in_flight) == (2, 1)
                bad.gate.set()
            assert results == ["done"]
            assert caplog.text.count("backend_leaving backend=b0") == 1
            assert first.ejections == first.failed_calls == 0


async def test_a_goodbye_between_two_items_does_not_end_the_client() -> None:
    """The stream is there until the backend closes; then it is lost, and nothing else."""

    @expose
    class Counting:
        async def process(self, blob: SerializedBlob):  # type: ignore[no-untyped-def]  # an item stream
            for number in range(3):
                yield number

    async with Daemon(settings=Settings(shutdown_grace_s=20)) as daemon:
        worker = Worker()
        held = daemon.register(worker, "held")
        async with (
            Dispatcher(config_for(daemon.register(Counting, "worker"))) as dispatcher,
            Proxy(dispatcher.uri) as client,
            Proxy(held) as holder,
            trio.open_nursery() as nursery,
        ):
            stream = aiter(client.process(blob()))
            assert await anext(stream) == 0
            (first,) = group_of(dispatcher)

            async def hang() -> None:
                assert await holder.hang(blob()) == "done"

            nursery.start_soon(hang)
            await wait_for(lambda: worker.calls == 1)
            nursery.start_soon(daemon.aclose)
            await wait_for(lambda: first.leaving)
            assert dispatcher.facts["clients"] == 1
            worker.gate.set()
            await wait_for(lambda: not any(guest.belongs_to(first) for guest in dispatcher.guests))
            with pytest.raises(RefusedError, match="has ended, or its backend is lost"):
                await anext(stream)
            assert dispatcher.facts["clients"] == 1


async def test_an_active_check_does_not_take_a_refusal_for_a_return() -> None:
    """The daemon says that it is closing to everybody who asks, and is down when it is gone."""
    worker = Worker()
    head = 'health_interval = 0.05\nmethods = ["process", "hang"]'
    async with Daemon(settings=Settings(shutdown_grace_s=20)) as daemon:
        uri = daemon.register(worker, "worker")
        async with (
            Dispatcher(config_for(uri, head=head)) as dispatcher,
            Proxy(dispatcher.uri) as client,
            trio.open_nursery() as nursery,
        ):
            (first,) = group_of(dispatcher)

            async def hang() -> None:
                assert await client.hang(blob()) == "done"

            nursery.start_soon(hang)
            await wait_for(lambda: worker.calls == 1)
            nursery.start_soon(daemon.aclose)
            await wait_for(lambda: first.failures >= 3)
            assert first.leaving
            worker.gate.set()
            await wait_for(lambda: not first.leaving)
            assert state_of(first, 0.0) == "down"


async def test_what_the_dispatcher_agrees_on_is_its_own_affair() -> None:
    """It offers to hear a goodbye, and nothing else, to backends, and to say one to clients: two agreements, of which
    either side sees its own."""
    async with raw_backend(echo) as stock, Daemon() as daemon:
        uris = [daemon.register(Worker, "worker")]
        async with Dispatcher(led_config_for(*uris, service="stateless = true")) as dispatcher:
            with closing(await open_connection(dispatcher.location)) as connection:
                welcome = await introduce(connection, "worker", Settings(), offer=Feature.ALL)
                assert (welcome.grant.bits, welcome.grant.epoch == daemon.epoch) == (Feature.GOAWAY, False)
                (peer,) = daemon.peers
                assert peer.session.may_confirm
                call = Message(INVOKE, 1, "serpent", 0, b"# serpent utf-8 python3.2\n('worker','work',(),{})")
                await connection.send(call)
                answer = await connection.receive()
                assert isinstance(answer, Message)
                assert (answer.seq, answer.annotations, answer.body) == (1, {}, b"# serpent utf-8 python3.2\n1")
                assert peer.session.grant.bits == Feature.GOAWAY
        async with Dispatcher(config_for(stock.uri)) as dispatcher, raw_client(dispatcher.location) as client:
            await doubles_dispatch.ask(client, doubles_dispatch.blob())
            (seen,) = stock.seen
            assert set(seen.annotations) == {"BLBI"}


async def test_a_client_that_offers_nothing_sees_no_trace_of_the_grant() -> None:
    async with Daemon() as daemon:
        config = led_config_for(daemon.register(Worker, "worker"), service="stateless = true")
        async with Dispatcher(config) as dispatcher:
            with closing(await open_connection(dispatcher.location)) as connection:
                body = b"# serpent utf-8 python3.2\n{'handshake':'hello','object':'worker'}"
                await connection.send(Message(MessageType.CONNECT, 0, "serpent", 0, body))
                welcome = await connection.receive()
                assert isinstance(welcome, Message)
                assert (welcome.type, welcome.annotations) == (MessageType.CONNECTOK, {})


async def test_a_dispatcher_that_goes_away_tells_nothing_of_calls_on_their_way() -> None:
    """It still serves them, so nobody may take one for unread."""
    async with raw_backend(echo) as worker, Dispatcher(config_for(worker.uri)) as dispatcher:
        with closing(await open_connection(dispatcher.location)) as client:
            welcome = await introduce(client, dispatcher.config.object, Settings(), offer=Feature.GOAWAY)
            first = doubles_dispatch.blob(1, PXFT=welcome.grant.confirmation)
            await doubles_dispatch.ask(client, first)
            await doubles_dispatch.ask(client, doubles_dispatch.blob(2))
            dispatcher.begin_drain()
            notice = await client.receive()
            assert isinstance(notice, Message)
            assert (notice.type, notice.body) == (GOAWAY, b"")
            assert (await doubles_dispatch.ask(client, doubles_dispatch.blob(3))).seq == 3


@asynccontextmanager
async def idle_link() -> AsyncIterator[tuple[LinkPool, Link, trio.SocketStream, list[Backend]]]:
    """A pool, a link to a backend that agreed on goodbyes, its other end, and who said one. The hub does not run."""
    near, far = socket.socketpair()
    left: list[Backend] = []
    hub = Hub()
    near.setblocking(False)
    known = Backend("b", Uri("PYRO:x@localhost:1"))
    codec = codec_for(502)
    pool = LinkPool(Settings(), no_name, hub, left.append)
    connection = Connection(near, Decoder(codec))
    grant = Grant(Feature.GOAWAY)
    link = Link(known, hub, connection, codec, connection.decoder, "x", grant, left.append)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(far)) as stream:
        yield pool, link, stream, left
    link.channel.close()
    hub.close()


async def no_name(uri: Uri) -> Uri:
    raise AssertionError("nobody connects")


async def test_a_goodbye_on_an_idle_link_is_heard_before_the_next_call() -> None:
    """Also when that comes before the hub has looked."""
    async with idle_link() as (pool, link, stream, left):
        pool.put(link)
        await stream.send_all(codec_for(502).encode(Message(GOAWAY, 0, "ping", 0, b"")))
        assert pool.idle(link.backend, 502) is None
        assert left == [link.backend]
        assert link.channel.closed


async def test_a_link_whose_backend_said_goodbye_is_not_kept() -> None:
    async with idle_link() as (pool, link, _, left):
        assert link.leaves(Message(GOAWAY, 0, "ping", 0, b""))
        pool.put(link)
        assert (left, link.channel.closed) == ([link.backend], True)


@pytest.mark.parametrize("length", [None, 200_000])
async def test_what_a_backend_says_of_a_call_is_heard_however_large_the_answer_is(length: int | None) -> None:
    async with idle_link() as (_, link, _, _):
        said: dict[str, Body] = {OUTCOME_KEY: link._grant.outcome(b"N")}
        answer = Message(MessageType.RESULT, 1, "serpent", Flags.EXCEPTION, b"", said)
        event = from_backend(link, answer if length is None else Head(answer, length))
    assert event == ReplyArrived(answer, length, "N")


async def test_a_goodbye_that_was_not_agreed_on_is_none() -> None:
    async with idle_link() as (_, link, _, left):
        link._grant = Grant()
        assert not link.leaves(Message(GOAWAY, 0, "ping", 0, b""))
        assert left == []


class Fleet:
    """Backends that can be restarted, one after the other."""

    def __init__(self, folder: Path, count: int) -> None:
        self.workers = [Worker() for _ in range(count)]
        self.uris = [Uri(f"PYRO:worker@./u:{folder / str(number)}") for number in range(count)]
        self._restart = [trio.Event() for _ in range(count)]
        self._up = [trio.Event() for _ in range(count)]

    async def live(self, number: int) -> None:
        place = self.uris[number].sockname
        while True:
            async with Daemon(unixsocket=place, settings=Settings(shutdown_grace_s=20)) as daemon:
                daemon.register(self.workers[number], "worker")
                self._up[number].set()
                await self._restart[number].wait()
                self._restart[number] = trio.Event()

    async def wait_until_up(self) -> None:
        for event in self._up:
            await event.wait()

    async def restart(self, number: int) -> None:
        self._up[number] = trio.Event()
        self._restart[number].set()
        await self._up[number].wait()

    @property
    def calls(self) -> int:
        return sum(worker.calls for worker in self.workers)


@asynccontextmanager
async def fleet_of(folder: Path, count: int) -> AsyncIterator[Fleet]:
    fleet = Fleet(folder, count)
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(fleet.live, number)
        await fleet.wait_until_up()
        yield fleet
        nursery.cancel_scope.cancel()


def with_blobs(
    fleet: Fleet,
) -> tuple[Config, Callable[[Dispatcher], Uri | str], Callable[[Proxy], Awaitable[object]]]:
    return config_for(*fleet.uris), lambda dispatcher: dispatcher.uri, lambda proxy: proxy.process(blob())


def pinned(fleet: Fleet) -> tuple[Config, Callable[[Dispatcher], Uri | str], Callable[[Proxy], Awaitable[object]]]:
    config = led_config_for(*fleet.uris, service="")
    return config, lambda dispatcher: f"PYRO:worker@{dispatcher.location}", lambda proxy: proxy.work()


def spread(fleet: Fleet) -> tuple[Config, Callable[[Dispatcher], Uri | str], Callable[[Proxy], Awaitable[object]]]:
    config = led_config_for(*fleet.uris, service="stateless = true")
    return config, lambda dispatcher: f"PYRO:worker@{dispatcher.location}", lambda proxy: proxy.work()


CLIENTS = 6
MORE_CALLS = 60
"""Between two restarts."""


@pytest.mark.parametrize("mode", [with_blobs, pinned, spread])
async def test_a_rolling_restart_under_load_costs_no_call(
    tmp_path_factory: pytest.TempPathFactory,
    mode: Callable[[Fleet], tuple[Config, Callable[[Dispatcher], Uri | str], Callable[[Proxy], Awaitable[object]]]],
) -> None:
    """Three backends are restarted, each when the one before is up again: clients that never pause see no error, and
    each call runs once."""
    done, errors = 0, []
    stop = False
    async with fleet_of(tmp_path_factory.mktemp("f"), 3) as fleet:
        config, place, call = mode(fleet)
        async with Dispatcher(config) as dispatcher, trio.open_nursery() as nursery:

            async def load() -> None:
                nonlocal done
                async with Proxy(place(dispatcher)) as proxy:
                    while not stop:
                        try:
                            await call(proxy)
                            done += 1
                        except PyroError as error:
                            errors.append(error)

            for _ in range(CLIENTS):
                nursery.start_soon(load)
            for number, backend in enumerate(group_of(dispatcher)):
                seen = done + MORE_CALLS
                await wait_for(lambda seen=seen: done >= seen or errors)  # type: ignore[misc]  # mypy cannot infer it
                await fleet.restart(number)
                await wait_for(lambda one=backend: state_of(one, 0.0) == "up" or errors)  # type: ignore[misc]  # as above
            stop = True
        assert errors == []
        assert fleet.calls == done
        assert all(worker.calls for worker in fleet.workers)
