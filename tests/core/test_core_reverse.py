"""Calls in the reverse direction on the same connection, and calls that come back to where they began."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from doubles import fault_proxy, until

from pyroxfer_core import Daemon, Proxy, Settings, Tokens, behavior, current_call, expose, oneway
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    PyroError,
    RefusedError,
    TimeoutError,
)

OWN = Settings()
STOCK = Settings(protocol=48)
FORCED = Settings(protocol=502)


@expose
class Listener:
    """An object of the client."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gate = trio.Event()

    async def told(self, value: Any) -> Any:
        self.log.append(value)
        return value

    def told_plainly(self, value: Any) -> Any:
        self.log.append(value)
        return value

    @oneway
    async def noted(self, value: Any) -> None:
        self.log.append(value)

    async def fail(self) -> None:
        raise LookupError("of the client")

    async def wait(self) -> str:
        self.log.append("begun")
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        return "waited"

    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    async def deadline(self) -> bool:
        return current_call.deadline is not None


@expose
class Service:
    """An object of the daemon."""

    def __init__(self) -> None:
        self.kept: list[Proxy] = []

    async def call(self, listener: Proxy, method: str, *args: Any) -> Any:
        try:
            return await getattr(listener, method)(*args)
        finally:
            listener._pyroRelease()

    async def call_within(self, listener: Proxy, method: str, deadline: float) -> Any:
        return await getattr(listener, method).options(deadline=deadline)()

    async def read(self, listener: Proxy, end: int) -> list[int]:
        return [item async for item in listener.count(end)]

    async def keep(self, listener: Proxy) -> None:
        self.kept.append(listener)

    async def echo(self, value: Any) -> Any:
        return value


class Pair:
    """A client with a daemon of its own, and a daemon that calls back."""

    def __init__(self, mine: Daemon, theirs: Daemon, service: Service, listener: Listener, proxy: Proxy) -> None:
        self.mine = mine
        self.theirs = theirs
        self.service = service
        self.listener = listener
        self.proxy = proxy

    @property
    def connections(self) -> tuple[int, int]:
        """Connections that were made to the client's daemon and to the other one."""
        return len(self.mine.peers), len(self.theirs.peers)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    quick = Settings(shutdown_grace_s=0)
    service, listener = Service(), Listener()
    async with Daemon(settings=quick) as theirs, Daemon(settings=quick) as mine:
        mine.register(listener, "listener")
        async with Proxy(theirs.register(service, "service")) as proxy:
            yield Pair(mine, theirs, service, listener, proxy)


@pytest.mark.parametrize("method", ["told", "told_plainly"])
async def test_a_callback_uses_the_connection_of_the_call(pair: Pair, method: str) -> None:
    assert await pair.proxy.call(pair.listener, method, "it") == "it"
    assert pair.listener.log == ["it"]
    assert pair.connections == (0, 1)


async def test_values_and_errors_travel_as_in_any_call(pair: Pair) -> None:
    value = {"tuple": (1, 2), "set": {3}, "bytes": bytes(40_000), "deep": [pair.listener]}
    answer = await pair.proxy.call(pair.listener, "told", value)
    assert (answer["tuple"], answer["set"], len(answer["bytes"])) == ((1, 2), {3}, 40_000)
    with pytest.raises(LookupError, match="of the client"):
        await pair.proxy.call(pair.listener, "fail")
    with pytest.raises(AttributeError, match="no_such"):
        await pair.proxy.call(pair.listener, "no_such")
    assert await pair.proxy.read(pair.listener, 5) == list(range(5))
    await pair.proxy.call(pair.listener, "noted", "one way")
    await until(lambda: pair.listener.log[-1] == "one way")
    assert pair.connections == (0, 1)


async def test_a_kept_proxy_calls_back_while_nobody_waits_at_the_client(pair: Pair) -> None:
    await pair.proxy.keep(pair.listener)
    (kept,) = pair.service.kept
    for number in range(3):
        assert await kept.told(number) == number
        assert await pair.proxy.echo(number) == number
    assert pair.connections == (0, 1)


async def test_many_calls_in_both_directions_at_once(pair: Pair) -> None:
    await pair.proxy.keep(pair.listener)
    (kept,) = pair.service.kept

    async def there(number: int) -> None:
        assert await pair.proxy.call(pair.listener, "told", number) == number

    async def back(number: int) -> None:
        assert await kept.told(number) == number

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(there, number)
            nursery.start_soon(back, number)
    assert sorted(pair.listener.log) == sorted([*range(50), *range(50)])
    assert pair.connections == (0, 1)


async def test_cancelling_the_call_cancels_the_callback(pair: Pair) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def call() -> None:
                await pair.proxy.call(pair.listener, "wait")

            await until(lambda: pair.listener.log)
            scope.cancel()
    await until(lambda: pair.listener.log == ["begun", "cancelled"])
    assert await pair.proxy.call(pair.listener, "told", 1) == 1


async def test_deadlines_hold_in_the_reverse_direction(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        await pair.proxy.call_within(pair.listener, "wait", 0.05)
    await until(lambda: pair.listener.log == ["begun", "cancelled"])
    assert await pair.proxy.call_within(pair.listener, "deadline", 5)
    assert await pair.proxy.call.options(deadline=5)(pair.listener, "deadline"), "it is inherited"


async def test_a_lost_connection_ends_the_callback_as_unknown_and_the_next_finds_another_way(pair: Pair) -> None:
    async with fault_proxy(pair.theirs.location) as relay, Proxy(f"PYRO:service@{relay.location}") as proxy:
        relay.cut_next()
        await proxy.keep(pair.listener)
        (kept,) = pair.service.kept
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def call() -> None:
                with pytest.raises(ConnectionClosedError) as caught:
                    await kept.wait()
                assert caught.value.outcome is Outcome.UNKNOWN

            await until(lambda: pair.listener.log)
            relay.cut_in(to_server=0)
        await until(lambda: pair.listener.log == ["begun", "cancelled"])
        assert pair.connections == (0, 0)
        async with kept:
            assert await kept.told("over a connection of its own") == "over a connection of its own"
            assert pair.connections == (1, 0)


async def test_a_released_callback_leaves_the_connection_to_the_others(pair: Pair) -> None:
    await pair.proxy.keep(pair.listener)
    await pair.proxy.keep(pair.listener)
    first, second = pair.service.kept
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def call() -> None:
            with pytest.raises(ConnectionClosedError):
                await first.wait()

        await until(lambda: pair.listener.log)
        first._pyroRelease()
    assert await second.told(2) == 2
    assert await first.told(1) == 1
    assert await pair.proxy.echo(3) == 3
    assert pair.connections == (0, 1)


async def test_a_client_whose_daemon_is_closed_is_not_called_any_more() -> None:
    service, listener = Service(), Listener()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as theirs:
        async with Proxy(theirs.register(service)) as proxy:
            async with Daemon(settings=Settings(shutdown_grace_s=0)) as mine:
                mine.register(listener, "listener")
                await proxy.keep(listener)
            (kept,) = service.kept
            with pytest.raises(CommunicationError) as caught:
                await kept.told(1)
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await proxy.echo(2) == 2, "the connection goes on"
            async with Daemon(settings=Settings(shutdown_grace_s=0)) as again:
                again.register(listener, "listener", force=True)
                assert await proxy.call(listener, "told", 3) == 3
                assert not again.peers


@pytest.mark.parametrize("settings", [STOCK, Settings(protocol=502, serializer="json")])
async def test_towards_others_a_callback_uses_a_connection_of_its_own(pair: Pair, settings: Settings) -> None:
    """A client of protocol 48 gets no reverse calls; what a peer of ours writes with does not matter."""
    async with Proxy(pair.theirs.uri_for("service"), settings=settings) as proxy:
        await proxy.keep(pair.listener)
        (kept,) = pair.service.kept
        async with kept:
            assert await kept.told(1) == 1
            assert len(pair.mine.peers) == (settings is STOCK)


async def test_a_proxy_for_somebody_else_does_not_lead_back(pair: Pair) -> None:
    """Only what the client said it serves is called over its connection."""
    async with Daemon() as third:
        other = Listener()
        third.register(other, "listener")
        await pair.proxy.call(pair.listener, "told", "announced")
        stranger = Proxy(third.uri_for("listener"))
        assert await pair.proxy.call(stranger, "told", 1) == 1
        assert other.log == [1]
        assert pair.listener.log == ["announced"]


async def test_a_session_object_is_entered_again_by_a_call_of_its_own_chain() -> None:
    """A to B to A to B: the second call to B is made while the first one waits for it."""

    @behavior("session")
    @expose
    class Session:
        def __init__(self) -> None:
            self.inside = 0
            self.most = 0

        async def enter(self, depth: int, listener: Any) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if depth:
                await listener.again(depth)
            self.inside -= 1
            return self.most

    @expose
    class Again(Listener):
        async def again(self, depth: int) -> None:
            await proxy.enter(depth - 1, self)

    quick = Settings(shutdown_grace_s=0)
    async with Daemon(settings=quick) as theirs, Daemon(settings=quick) as mine:
        again = Again()
        mine.register(again)
        async with Proxy(theirs.register(Session)) as proxy:
            assert await proxy.enter(3, again) == 4
            assert len(theirs.peers) == 1
            assert not mine.peers


async def test_calls_of_other_chains_still_take_turns(pair: Pair) -> None:
    @behavior("session")
    @expose
    class Session:
        def __init__(self) -> None:
            self.inside = 0

        async def enter(self, listener: Any) -> Any:
            self.inside += 1
            assert self.inside == 1
            await listener.told("inside")
            await trio.lowlevel.checkpoint()
            self.inside -= 1

    async with Proxy(pair.theirs.register(Session)) as proxy, trio.open_nursery() as nursery:
        for _ in range(10):

            @nursery.start_soon
            async def call() -> None:
                await proxy.enter(pair.listener)


async def test_a_circle_of_three_daemons_with_session_objects_does_not_block() -> None:
    """A calls B, B calls C, C calls A back, and A's object is still busy with the first call."""

    @behavior("session")
    @expose
    class Step:
        async def go(self, places: list[str], left: int) -> int:
            if not left:
                return 0
            async with Proxy(places[0]) as proxy:
                return 1 + int(await proxy.go([*places[1:], places[0]], left - 1))

    quick = Settings(shutdown_grace_s=0)
    async with Daemon(settings=quick) as a, Daemon(settings=quick) as b, Daemon(settings=quick) as c:
        places = [str(daemon.register(Step, f"step{number}", force=True)) for number, daemon in enumerate((a, b, c))]
        async with Proxy(places[0]) as proxy:
            assert await proxy.go([*places[1:], places[0]], 7) == 7


@pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])
async def test_a_circle_through_plain_methods_does_not_run_out_of_threads(client: Settings) -> None:
    """Every thread of the daemon waits for a call that comes back to it."""

    @expose
    class Circle:
        def go(self, uri: str, left: int) -> int:
            return trio.from_thread.run(self.back, uri, left)

        async def back(self, uri: str, left: int) -> int:
            if not left:
                return 0
            async with Proxy(uri, settings=client) as proxy:
                return 1 + int(await proxy.go(uri, left - 1))

    async with Daemon(settings=Settings(worker_threads=3, shutdown_grace_s=0)) as daemon:
        uri = str(daemon.register(Circle()))
        async with trio.open_nursery() as nursery:
            for _ in range(3):

                @nursery.start_soon
                async def call() -> None:
                    async with Proxy(uri, settings=client) as proxy:
                        assert await proxy.go(uri, 1) == 1


async def test_only_what_was_handed_out_can_be_called(pair: Pair) -> None:
    """The other side may know the ids of other objects; this connection does not lead to them."""
    other = Listener()
    pair.mine.register(other, "secret")
    await pair.proxy.keep(pair.listener)
    (kept,) = pair.service.kept
    assert await kept.told(1) == 1
    for object_id, method in (("secret", "told"), ("Pyro.Daemon", "registered"), ("Pyro.Daemon", "ping")):
        link = kept._pyroLink
        assert link is not None
        link.object_id = object_id
        with pytest.raises(PyroError, match="unknown object"):
            await kept._pyroInvoke(method, () if method != "told" else (1,), {}, member="told")
    assert other.log == []
    await pair.proxy.keep(other)
    assert await pair.service.kept[1].told(2) == 2, "now it was handed out"


async def test_an_object_in_an_answer_is_handed_out_too(pair: Pair) -> None:
    @expose
    class Maker:
        async def make(self) -> Listener:
            return made

    made, maker = Listener(), Maker()
    pair.mine.register(made)
    pair.mine.register(maker)
    await pair.proxy.keep(maker)
    (kept,) = pair.service.kept
    product = await kept.make()
    assert await product.told(1) == 1
    assert pair.connections == (0, 1)


@pytest.mark.parametrize("kind", ["token", "hook"])
async def test_a_daemon_that_asks_who_calls_is_not_called_unasked(kind: str) -> None:
    class Asking(Daemon):
        def validateHandshake(self, conn: Any, data: Any) -> Any:
            return "hello"

    service, listener = Service(), Listener()
    tokens = Tokens({"me": "a-token-that-is-long-enough-for-anybody"})
    quick = Settings(shutdown_grace_s=0)
    guarded = Asking(settings=quick) if kind == "hook" else Daemon(settings=quick.with_changes(tokens=tokens))
    async with Daemon(settings=quick) as theirs, guarded as mine:
        mine.register(listener)
        async with Proxy(theirs.register(service)) as proxy:
            await proxy.keep(listener)
            (kept,) = service.kept
            async with kept:
                if kind == "token":
                    with pytest.raises(PyroError, match="token"):
                        await kept.told(1)
                else:
                    assert await kept.told(1) == 1
                    assert len(mine.peers) == 1


async def test_an_unknown_object_of_the_client_is_told(pair: Pair) -> None:
    await pair.proxy.keep(pair.listener)
    (kept,) = pair.service.kept
    pair.mine.unregister(pair.listener)
    with pytest.raises(PyroError, match="unknown object"):
        await kept.told(1)


async def test_too_many_calls_at_once_are_refused_at_the_client_too() -> None:
    service, listener = Service(), Listener()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as theirs:
        async with Daemon(settings=Settings(max_calls_in_flight=2, shutdown_grace_s=0)) as mine:
            mine.register(listener)
            async with Proxy(theirs.register(service)) as proxy:
                await proxy.keep(listener)
                (kept,) = service.kept
                async with trio.open_nursery() as nursery:
                    for _ in range(2):

                        @nursery.start_soon
                        async def call() -> None:
                            assert await kept.wait() == "waited"

                    await until(lambda: len(listener.log) == 2)
                    with pytest.raises(RefusedError, match="busy") as caught:
                        await kept.told(1)
                    assert caught.value.outcome is Outcome.NOT_SENT
                    listener.gate.set()
