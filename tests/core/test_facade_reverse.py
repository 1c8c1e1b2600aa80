"""Callbacks of programs without a loop: with ``background=True`` over the connection of the call, else their own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from facade_doubles import WITHIN_S, StockServer, plain_answer, serving

from pyroxfer_core import Settings, behavior, expose, oneway
from pyroxfer_core.blocking import Daemon, Proxy
from pyroxfer_core.blocking.sending import MOST_ASIDE
from pyroxfer_core.blocking.waiting import Waiter
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, Outcome, PyroError, TimeoutError
from pyroxfer_core.wire.message import Message
from pyroxfer_core.wire.session import alive


@expose
class Listener:
    """An object of the client."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.noted_one = threading.Event()
        self.release = threading.Event()

    def told(self, value: Any) -> Any:
        self.log.append(value)
        return value

    @oneway
    def noted(self, value: Any) -> None:
        self.log.append(value)
        self.noted_one.set()

    def fail(self) -> None:
        raise LookupError("of the client")

    def wait(self) -> str:
        self.release.wait(WITHIN_S)
        return "waited"

    def count(self, end: int) -> Iterator[int]:
        yield from range(end)


@expose
class Service:
    """An object of the daemon."""

    def __init__(self) -> None:
        self.kept: list[Proxy] = []

    def call(self, listener: Any, method: str, *args: Any) -> Any:
        with listener:
            return getattr(listener, method)(*args)

    def read(self, listener: Any, end: int) -> list[int]:
        with listener:
            return list(listener.count(end))

    def call_within(self, listener: Any, seconds: float) -> Any:
        with listener:
            return listener.wait.options(deadline=seconds)()

    def keep(self, listener: Any) -> None:
        self.kept.append(listener)

    async def call_in_loop(self, listener: Any) -> bool:
        """A blocking proxy must not be waited for here; it knows that it cannot be led back."""
        return listener._pyroVia() is None

    def echo(self, value: Any) -> Any:
        return value


class Pair:
    def __init__(self) -> None:
        self.mine, self.theirs = Daemon(), Daemon()
        self.listener, self.service = Listener(), Service()
        self.mine.register(self.listener)
        self.uri = self.theirs.register(self.service)

    def connections_to_me(self) -> int:
        return self.mine.statistics().connections


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    with serving(pair.mine), serving(pair.theirs):
        yield pair


@contextmanager
def kept(pair: Pair, proxy: Proxy) -> Iterator[Proxy]:
    proxy.keep(pair.listener)
    with pair.service.kept[-1] as back:
        yield back


def test_a_callback_uses_the_connection_of_the_call(pair: Pair) -> None:
    with Proxy(pair.uri, background=True) as proxy:
        for number in range(20):
            assert proxy.call(pair.listener, "told", number) == number
        value = {"tuple": (1, 2), "bytes": bytes(400_000)}
        assert proxy.call(pair.listener, "told", value) == value
        with pytest.raises(LookupError, match="of the client"):
            proxy.call(pair.listener, "fail")
        assert proxy.read(pair.listener, 5) == list(range(5))
        proxy.call(pair.listener, "noted", 1)
        assert pair.listener.noted_one.wait(WITHIN_S)
        assert pair.connections_to_me() == 0
        assert pair.theirs.statistics().connections == 1


def test_a_kept_proxy_calls_back_while_the_client_does_nothing(pair: Pair) -> None:
    with Proxy(pair.uri, background=True) as proxy, kept(pair, proxy) as back:
        for number in range(5):
            assert back.told(number) == number
            assert proxy.echo(number) == number
        assert pair.connections_to_me() == 0


def test_many_threads_in_both_directions(pair: Pair) -> None:
    with Proxy(pair.uri, background=True) as proxy, kept(pair, proxy) as back, ThreadPoolExecutor(8) as threads:
        there = threads.map(lambda number: proxy.call(pair.listener, "told", number), range(40))
        directly = threads.map(back.told, range(40))
        assert list(there) == list(directly) == list(range(40))
        assert pair.connections_to_me() == 0


def test_without_a_background_thread_a_callback_has_its_own_connection(pair: Pair) -> None:
    """The client waits for its own call meanwhile; its daemon answers the other connection."""
    with Proxy(pair.uri) as proxy:
        assert proxy.call(pair.listener, "told", 1) == 1
        with kept(pair, proxy) as back:
            assert back.told(2) == 2
            assert pair.connections_to_me() == 1


def test_an_object_that_nobody_serves_yet_is_not_offered(pair: Pair) -> None:
    """As in Pyro the caller waits for the daemon to be served; here not longer than for any connection."""
    idle = Daemon()
    try:
        other = Listener()
        idle.register(other)
        with Proxy(pair.uri, background=True) as proxy:
            pair.theirs.settings = pair.theirs.settings.with_changes(connect_timeout_s=0.1)
            with pytest.raises(CommunicationError):
                proxy.call(other, "told", 1)
            assert proxy.echo(2) == 2
        assert other.log == []
    finally:
        idle.close()


def test_deadlines_hold(pair: Pair) -> None:
    with Proxy(pair.uri, background=True) as proxy:
        with pytest.raises(TimeoutError):  # told by the daemon, whose call of ours it was
            proxy.call_within(pair.listener, 0.05)
        pair.listener.release.set()
        assert proxy.call(pair.listener, "told", 1) == 1


def test_a_lost_connection_ends_the_callback_and_the_next_finds_another_way(pair: Pair) -> None:
    proxy = Proxy(pair.uri, background=True)
    with kept(pair, proxy) as back, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(back.wait)
        while not pair.mine.statistics().calls_in_flight:
            assert not waiting.done()
        proxy._pyroRelease()
        error = waiting.exception(WITHIN_S)
        assert isinstance(error, ConnectionClosedError)
        assert error.outcome is Outcome.UNKNOWN
        pair.listener.release.set()
        assert back.told(1) == 1
        assert pair.connections_to_me() == 1


def test_a_client_whose_daemon_has_ended_is_not_called(pair: Pair) -> None:
    with Proxy(pair.uri, background=True) as proxy:
        mine = Daemon()
        listener = Listener()
        mine.register(listener)
        with serving(mine):
            proxy.keep(listener)
            back = pair.service.kept[0]
            assert back.told(1) == 1
        with back, pytest.raises(CommunicationError) as caught:
            back.told(2)
        assert caught.value.outcome is Outcome.NOT_SENT
        assert proxy.echo(3) == 3


def test_a_session_object_is_entered_again_by_its_own_chain(pair: Pair) -> None:
    @behavior("session")
    @expose
    class Session:
        def enter(self, depth: int, listener: Any) -> int:
            with listener:
                return int(listener.again(depth)) + 1 if depth else 0

    @expose
    class Again:
        def again(self, depth: int) -> int:
            return int(proxy.enter(depth - 1, self))

    again = Again()
    pair.mine.register(again)
    with Proxy(pair.theirs.register(Session), background=True) as proxy:
        assert proxy.enter(3, again) == 3
        assert pair.theirs.statistics().connections == 1


def test_a_task_of_the_loop_is_not_led_back(pair: Pair) -> None:
    """It would wait for what only its own loop can bring."""
    with Proxy(pair.uri, background=True) as proxy:
        assert proxy.call_in_loop(pair.listener)


def test_idle_background_threads_end_with_their_proxies(pair: Pair) -> None:
    def readers() -> int:
        return sum(thread.name == "pyroxfer reader" for thread in threading.enumerate())

    before = readers()
    with Proxy(pair.uri, background=True, settings=Settings(heartbeat_s=0.02)) as proxy:
        assert proxy.echo(1) == 1
        assert readers() == before + 1
        (reader,) = (thread for thread in threading.enumerate() if thread.name == "pyroxfer reader")
        reader.join(0.2)
        assert reader.is_alive(), "nothing is owed, so silence is no reason to end"
    reader.join(WITHIN_S)
    assert not reader.is_alive()


def test_towards_a_stock_peer_there_is_no_thread() -> None:
    with StockServer(plain_answer) as server:
        with Proxy(f"PYRO:service@{server.location}", background=True) as proxy:
            assert proxy.echo(1) == "answer"
            assert not any(thread.name == "pyroxfer reader" for thread in threading.enumerate())


@expose
@behavior(instance_mode="single")
class Circle:
    """Calls the next in a ring."""

    following = ""
    settings = Settings()

    def go(self, depth: int) -> str:
        if depth == 0:
            return "round"
        with Proxy(self.following, settings=self.settings) as proxy:
            return str(proxy.go(depth - 1))


@pytest.mark.parametrize("protocol", [None, 48], ids=["own", "48"])
def test_a_circle_that_takes_all_threads_is_refused(protocol: int | None) -> None:
    """It has as many threads more as there are; then nobody would ever get one, so nobody waits."""
    settings = Settings(worker_threads=1, protocol=protocol)
    with serving(Daemon(settings=settings)) as one, serving(Daemon(settings=settings)) as two:
        first, second = Circle(), Circle()
        first.settings = second.settings = settings
        first.following, second.following = str(two.register(second)), str(one.register(first))
        with Proxy(second.following, settings=settings) as proxy:
            proxy._pyroTimeout = WITHIN_S
            assert proxy.go(3) == "round"
            with pytest.raises(PyroError, match="wait for what this call is a part of"):
                proxy.go(8)
            assert proxy.go(3) == "round"


def test_nothing_leaves_between_the_confirmation_of_the_features_and_what_carries_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first message of a connection may be the offer of an object, while other threads make calls."""
    with serving(Daemon()) as daemon, serving(Daemon()) as own:
        listener, held = Listener(), list[bool]()
        own.register(listener)
        uri = daemon.register(Service(), "service")
        with Proxy(uri, background=True) as proxy:
            proxy._pyroBind()
            link = proxy._pyroLink
            assert link is not None
            serves = link.session.serves

            def noted(location: str) -> Message:
                held.append(link.sending.lock.locked())
                return serves(location)

            monkeypatch.setattr(link.session, "serves", noted)
            assert proxy.call(listener, "told", 1) == 1
        assert held[0]


def test_an_object_offered_while_another_thread_closes_the_connection_is_offered_on_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Daemon()) as daemon, serving(Daemon()) as own:
        listener = Listener()
        own.register(listener)
        uri = daemon.register(Service(), "service")
        with Proxy(uri, background=True) as proxy:
            proxy._pyroBind()
            link = proxy._pyroLink
            assert link is not None
            serves = link.sending.serves

            def close_and_serve(location: str) -> None:
                link.close()
                serves(location)

            monkeypatch.setattr(link.sending, "serves", close_and_serve)
            assert proxy.call(listener, "told", 1) == 1
            assert proxy._pyroLink is not link


def test_an_object_of_a_daemon_whose_loop_has_just_ended_can_be_written() -> None:
    """Who calls it is told that it is not there; the call that it is an argument of goes on."""
    with serving(Daemon()) as daemon, serving(Daemon()) as own:
        listener = Listener()
        own.register(listener)
        with Proxy(daemon.register(Service(), "service"), background=True) as proxy:
            proxy._pyroBind()
            link = proxy._pyroLink
            assert link is not None and link.offers is not None
            home, own.home = own.home, trio.run(_token_of_this_loop)
            assert link.offers.offer(listener) is not None
            own.home = home
            assert proxy.call(listener, "told", 1) == 1


async def _token_of_this_loop() -> trio.lowlevel.TrioToken:
    return trio.lowlevel.current_trio_token()


def test_an_object_offered_on_a_connection_that_is_over_leaves_nobody_waiting() -> None:
    """A call may be written while the connection ends: what would answer on it goes on as long as its daemon."""
    with serving(Daemon()) as daemon, serving(Daemon()) as own:
        listener = Listener()
        own.register(listener)
        earlier = {*threading.enumerate()}
        with Proxy(daemon.register(Service(), "service"), background=True) as proxy:
            proxy._pyroBind()
            link = proxy._pyroLink
            assert link is not None
            assert link.offers is not None
            (reader,) = (one for one in {*threading.enumerate()} - earlier if one.name == "pyroxfer reader")
            link.close()
            reader.join(WITHIN_S)
            assert link.offers.offer(listener) is not None
            assert proxy.call(listener, "told", 1) == 1
            assert len(own.callees) == 1


def test_a_message_aside_waits_for_nobody_who_began_to_send_at_that_moment() -> None:
    """The thread that sends may wait for the peer, and the peer for the thread that reads, which says this."""

    class TakenRightNow:
        def locked(self) -> bool:
            return False

        def acquire(self, blocking: bool = True) -> bool:
            assert not blocking, "it waits"
            return False

        def __enter__(self) -> None:
            raise AssertionError("it waits")

        def __exit__(self, *args: object) -> None: ...

    with serving(Daemon()) as daemon, Proxy(daemon.register(Service(), "service"), background=True) as proxy:
        assert proxy.echo(0) == 0
        link = proxy._pyroLink
        assert link is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link.sending, "lock", TakenRightNow())
            link.sending.aside(alive())
            link.try_oneway(proxy._pyroClosingMessage(link, "a stream"))
        assert proxy.echo(1) == 1


def test_a_peer_that_makes_us_say_more_and_more_and_takes_nothing_is_left() -> None:
    with serving(Daemon()) as daemon, Proxy(daemon.register(Service(), "service")) as proxy:
        assert proxy.echo(0) == 0
        link = proxy._pyroLink
        assert link is not None
        with link.sending.lock:
            for _ in range(MOST_ASIDE):
                link.sending.aside(alive())
            assert not link.closed
            link.sending.aside(alive())
            assert link.closed
        assert proxy.echo(1) == 1  # on another connection


def test_calls_that_begin_while_a_connection_is_closed_do_not_disturb_that() -> None:
    """Collecting garbage lets other threads go on in the middle of it."""

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if len(begun) < 500:
                begun.append(Waiter())
                pending[10_000 + len(begun)] = begun[-1]
                Garbage()

    begun: list[Waiter] = []
    with serving(Daemon()) as daemon, Proxy(daemon.register(Service(), "service")) as proxy:
        proxy._pyroBind()
        link = proxy._pyroLink
        assert link is not None
        waiting = [Waiter() for _ in range(5_000)]
        pending = link.session.pending
        pending.update(enumerate(waiting, 1_000))
        thresholds = gc.get_threshold()
        Garbage()
        gc.set_threshold(1, 1_000_000)
        try:
            link.close()
        finally:
            gc.set_threshold(*thresholds)
        assert begun
        assert all(waiter.error for waiter in waiting)
