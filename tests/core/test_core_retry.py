"""What is sent again, when, and how often; what never is."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from doubles import FaultProxy, fault_proxy, until
from facade_doubles import StockServer, plain_answer, serving

from pyroxfer_core import Daemon, Proxy, Settings, behavior, expose, idempotent
from pyroxfer_core import blocking as pyro
from pyroxfer_core.client.retry import FIRST_RETRIES, MAX_ATTEMPTS, MOST_SAVED, Attempts, RetryBudget, pause_before
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    RefusedError,
    SerializeError,
    SessionLost,
    TimeoutError,
)
from pyroxfer_core.wire.features import STOCK, Feature, Grant

OWN = Grant(Feature.ALL, b"n" * 16, b"e" * 16)
OTHER_EPOCH = Grant(Feature.ALL, b"n" * 16, b"f" * 16)
KEY = "sixteen bytes at least"
LOST = ConnectionClosedError


@pytest.mark.parametrize(
    ("error", "outcome", "idempotent", "keyed", "grant", "again"),
    [
        (LOST, Outcome.NOT_SENT, False, False, STOCK, True),
        (RefusedError, Outcome.NOT_SENT, False, False, OWN, True),
        (TimeoutError, Outcome.NOT_SENT, False, False, OWN, False),  # it took long enough
        (CommunicationError, Outcome.NOT_SENT, False, False, OWN, False),  # denied: it would be denied again
        (ProtocolError, Outcome.NOT_SENT, False, True, OWN, False),
        (SerializeError, Outcome.NOT_SENT, True, True, OWN, False),
        (LOST, Outcome.UNKNOWN, False, False, OWN, False),
        (LOST, Outcome.UNKNOWN, True, False, OWN, True),
        (LOST, Outcome.UNKNOWN, False, True, OWN, True),
        (LOST, Outcome.UNKNOWN, False, True, STOCK, False),  # it knows no keys
        (ProtocolError, Outcome.UNKNOWN, True, False, OWN, True),
        (TimeoutError, Outcome.UNKNOWN, True, True, OWN, False),
        (CommunicationError, Outcome.UNKNOWN, True, True, OWN, False),  # said by the daemon: it would say it again
        (LOST, Outcome.EXECUTED, True, True, OWN, False),
        (SerializeError, Outcome.EXECUTED, True, True, OWN, False),
        (LOST, None, True, True, OWN, False),
    ],
)
def test_what_may_go_again(
    error: type[CommunicationError],
    outcome: Outcome | None,
    idempotent: bool,
    keyed: bool,
    grant: Grant,
    again: bool,
) -> None:
    attempts = Attempts(RetryBudget(), keyed=keyed)
    pause = attempts.failed(error("it", outcome=outcome), 1, grant, idempotent=idempotent)
    assert (pause is not None) is again


def test_a_setting_of_the_user_repeats_connecting_too() -> None:
    attempts = Attempts(RetryBudget(), keyed=False, retries=1)
    late = TimeoutError("it", outcome=Outcome.NOT_SENT)
    assert attempts.failed(late, 1, STOCK, idempotent=False) is not None
    assert attempts.failed(late, 1, STOCK, idempotent=False) is None


def test_three_attempts_and_no_more() -> None:
    budget = RetryBudget()
    budget.spend(10_000)
    attempts = Attempts(budget, keyed=False)
    pauses = [attempts.failed(LOST("it", outcome=Outcome.NOT_SENT), 10_000, OWN, idempotent=False) for _ in range(4)]
    assert [pause is not None for pause in pauses] == [True] * (MAX_ATTEMPTS - 1) + [False] * 2


def test_a_doubt_stays_whatever_comes_later() -> None:
    """A retry that was refused does not make the first attempt unsent."""
    attempts = Attempts(RetryBudget(), keyed=True)
    assert attempts.failed(LOST("1", outcome=Outcome.UNKNOWN), 1, OWN, idempotent=False) is not None
    refused = RefusedError("busy")
    assert attempts.failed(refused, 2, OWN, idempotent=False) is not None
    assert attempts.verdict(refused).outcome is Outcome.UNKNOWN
    ran = SerializeError("3", outcome=Outcome.EXECUTED)
    assert attempts.verdict(ran).outcome is Outcome.EXECUTED


def test_a_key_goes_only_to_the_daemon_that_may_know_it() -> None:
    attempts = Attempts(RetryBudget(), keyed=True)
    first = LOST("1", outcome=Outcome.UNKNOWN)
    attempts.failed(first, 1, OWN, idempotent=False)
    attempts.check_daemon(OWN)
    for other in (OTHER_EPOCH, STOCK):
        with pytest.raises(ConnectionClosedError) as caught:
            attempts.check_daemon(other)
        assert caught.value is first
        assert attempts.failed(first, 1, OWN, idempotent=False) is None


def test_what_cannot_have_run_or_may_run_twice_goes_to_any_daemon() -> None:
    for outcome, twice in ((Outcome.NOT_SENT, False), (Outcome.UNKNOWN, True)):
        attempts = Attempts(RetryBudget(), keyed=True)
        assert attempts.failed(LOST("1", outcome=outcome), 1, OWN, idempotent=twice) is not None
        attempts.check_daemon(OTHER_EPOCH)


@pytest.mark.parametrize("calls", [1, 10, 30, 31, 200, 1_000, 70_000])
def test_one_retry_for_ten_calls(calls: int) -> None:
    """When every call fails, a tenth of them is sent again, and three of the first thirty."""
    budget, granted = RetryBudget(), 0
    for number in range(1, calls + 1):
        granted += budget.spend(number & 0xFFFF)
    assert granted == max(min(FIRST_RETRIES, calls), calls // 10)


def test_a_long_quiet_time_does_not_end_in_a_storm() -> None:
    budget = RetryBudget()
    assert budget.spend(1)
    granted = sum(budget.spend(60_000) for _ in range(10_000))
    assert granted == MOST_SAVED


def test_pauses_grow_and_differ() -> None:
    for attempt in range(10):
        pauses = {pause_before(attempt) for _ in range(20)}
        longest = min(0.05 * 2**attempt, 2.0)
        assert len(pauses) > 10
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


@expose
class Service:
    def __init__(self) -> None:
        self.ran: Counter[Any] = Counter()

    @idempotent
    async def read(self, name: Any) -> Any:
        self.ran[name] += 1
        return name

    async def write(self, name: Any) -> Any:
        self.ran[name] += 1
        return name


class Lossy:
    """A daemon behind a relay that swallows answers."""

    def __init__(self, relay: FaultProxy, service: Service) -> None:
        self.relay = relay
        self.service = service
        self.uri = f"PYRO:service@{relay.location}"


async def lose_answer(relay: FaultProxy) -> None:
    """Break the connection in the answer to the next call."""
    await trio.testing.wait_all_tasks_blocked(0.005)  # the relay has counted what came before
    relay.cut_in(to_client=10)


async def with_lossy(play: Callable[[Lossy], Any]) -> None:
    service = Service()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(service, "service")
        async with fault_proxy(daemon.location) as relay:
            await play(Lossy(relay, service))


async def test_an_idempotent_call_without_answer_is_sent_again() -> None:
    async def play(lossy: Lossy) -> None:
        async with Proxy(lossy.uri) as proxy:
            lossy.relay.cut_next()
            await proxy.read("warm up")
            await lose_answer(lossy.relay)
            assert await proxy.read("it") == "it"
            assert lossy.service.ran["it"] == 2
            assert lossy.relay.connections == 2

    await with_lossy(play)


async def test_no_other_call_is() -> None:
    async def play(lossy: Lossy) -> None:
        async with Proxy(lossy.uri) as proxy:
            lossy.relay.cut_next()
            await proxy.read("warm up")
            await lose_answer(lossy.relay)
            with pytest.raises(CommunicationError) as caught:
                await proxy.write("it")
            assert caught.value.outcome is Outcome.UNKNOWN
            assert lossy.service.ran["it"] == 1

    await with_lossy(play)


async def test_a_stock_client_is_not_told_what_is_idempotent() -> None:
    async def play(lossy: Lossy) -> None:
        async with Proxy(lossy.uri, settings=Settings(protocol=48)) as proxy:
            lossy.relay.cut_next()
            await proxy.read("warm up")
            await lose_answer(lossy.relay)
            with pytest.raises(CommunicationError):
                await proxy.read("it")
            assert lossy.service.ran["it"] == 1

    await with_lossy(play)


async def test_nobody_retries_beyond_the_budget() -> None:
    """Every answer is lost: of 40 idempotent calls four are sent again, and the rest is told so at once."""

    async def play(lossy: Lossy) -> None:
        async with Proxy(lossy.uri) as proxy:
            for number in range(40):
                proxy._pyroRelease()
                lossy.relay.cut_next()
                await proxy.read("warm up")
                await lose_answer(lossy.relay)
                try:
                    await proxy.read(number)
                except CommunicationError as error:
                    assert error.outcome is Outcome.UNKNOWN
        calls = sum(lossy.service.ran.values())
        extra = sum(count - 1 for name, count in lossy.service.ran.items() if name != "warm up")
        assert FIRST_RETRIES <= extra <= calls // 10

    await with_lossy(play)


async def test_a_retry_stays_inside_the_deadline() -> None:
    """The pause would end after the deadline: the call ends now, and says what is certain."""

    async def play(lossy: Lossy) -> None:
        async with Proxy(lossy.uri) as proxy:
            lossy.relay.cut_next()
            await proxy.read("warm up")
            await lose_answer(lossy.relay)
            with pytest.raises(CommunicationError) as caught:
                await proxy.read.options(deadline=0.02)("it")
            assert caught.value.outcome is Outcome.UNKNOWN
            assert lossy.service.ran["it"] == 1

    await with_lossy(play)


async def test_a_busy_daemon_is_asked_again() -> None:
    """Refused before it ran: nobody has to mark anything."""
    gate = threading.Event()

    @expose
    class Busy(Service):
        def block(self) -> None:
            gate.wait(60)

        def plain(self) -> str:
            return "done"

    settings = Settings(worker_threads=1, worker_queue=0, shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon, trio.open_nursery() as nursery:
        uri = daemon.register(Busy())
        async with Proxy(uri) as one, Proxy(uri) as two:

            @nursery.start_soon
            async def block() -> None:
                await one.block()

            await until(lambda: daemon.statistics().busy_threads)
            with pytest.raises(RefusedError) as caught:
                await two.plain()
            assert caught.value.outcome is Outcome.NOT_SENT

            @nursery.start_soon
            async def free() -> None:
                await trio.sleep(0.01)
                gate.set()

            assert await two.plain() == "done"


async def test_a_place_where_nobody_ever_was_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = trio.current_time()
    async with Proxy(f"PYRO:x@127.0.0.1:{port}") as proxy:
        with pytest.raises(ConnectionClosedError) as caught:
            await proxy.read()
    assert caught.value.outcome is Outcome.NOT_SENT
    assert trio.current_time() - began < 5


async def test_a_daemon_that_comes_back_gets_the_call() -> None:
    """It is gone for a moment, and the call that finds nobody waits a little and connects again."""
    service = Service()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        port = int(daemon.location.rpartition(":")[2])
        proxy = Proxy(daemon.register(service, "service"))
        await proxy.write(1)
    async with trio.open_nursery() as nursery, proxy:

        @nursery.start_soon
        async def come_back() -> None:
            await trio.sleep(0.01)
            async with Daemon(port=port) as again:
                again.register(service, "service")
                await until(lambda: service.ran[2])
                await trio.sleep(0.05)

        assert await proxy.write(2) == 2
    assert service.ran == {1: 1, 2: 1}


async def test_a_keyed_call_does_not_go_to_another_daemon() -> None:
    """A daemon that took its place does not know the key: the call stays Unknown."""
    service = Service()
    async with (
        Daemon(settings=Settings(shutdown_grace_s=0)) as first,
        Daemon(settings=Settings(shutdown_grace_s=0)) as second,
    ):
        first.register(service, "service")
        second.register(service, "service")
        async with fault_proxy(first.location) as relay, Proxy(f"PYRO:service@{relay.location}") as proxy:
            relay.cut_next()
            await proxy.write("warm up")
            await lose_answer(relay)
            relay._target = second.location
            with pytest.raises(CommunicationError) as caught:
                await proxy.write.options(key=KEY)("it")
            assert caught.value.outcome is Outcome.UNKNOWN
            assert service.ran["it"] == 1
            assert await proxy.write.options(key=KEY)("it") == "it", "the user may decide otherwise"


@behavior("session")
@expose
class Session:
    def __init__(self) -> None:
        self.count = 0

    async def next(self) -> int:
        self.count += 1
        return self.count

    @idempotent
    async def look(self) -> int:
        return self.count


async def test_a_lost_session_is_told_once() -> None:
    """The call that would have gone to a fresh object is not sent; the next one is."""
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(Session, "session")
        async with fault_proxy(daemon.location) as relay, Proxy(f"PYRO:session@{relay.location}") as proxy:
            relay.cut_next()
            assert [await proxy.next(), await proxy.next()] == [1, 2]
            relay.cut_in(to_client=0)
            await until(lambda: not daemon.peers)
            with pytest.raises(SessionLost) as caught:
                await proxy.next()
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await proxy.next() == 1


async def test_an_idempotent_call_does_not_jump_to_another_session() -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(Session, "session")
        async with fault_proxy(daemon.location) as relay, Proxy(f"PYRO:session@{relay.location}") as proxy:
            relay.cut_next()
            assert await proxy.next() == 1
            await lose_answer(relay)
            with pytest.raises(SessionLost) as caught:
                await proxy.look()
            assert caught.value.outcome is Outcome.UNKNOWN, "the first attempt may have run"
            assert await proxy.look() == 0


async def test_who_releases_a_proxy_has_ended_the_session_himself() -> None:
    async with Daemon() as daemon:
        async with Proxy(daemon.register(Session)) as proxy:
            assert await proxy.next() == 1
            proxy._pyroRelease()
            assert await proxy.next() == 1


@pytest.mark.parametrize("strict", [False, True])
async def test_towards_a_stock_peer_the_setting_decides(strict: bool) -> None:
    client = Settings(protocol=48, strict_session=strict)
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(Session, "session")
        uri = f"PYRO:session@{daemon.location}"
        async with Proxy(uri, settings=client) as proxy:
            assert await proxy.next() == 1
            for peer in list(daemon.peers):
                peer.close()
            await until(lambda: not daemon.peers)
            if strict:
                with pytest.raises(SessionLost):
                    await proxy.next()
            assert await proxy.next() == 1


def answers_from(lose: set[int]) -> Any:
    """A stock server that hangs up instead of answering some of its requests, counted from one."""
    count = 0

    def answer(request: Any) -> bytes:
        nonlocal count
        count += 1
        return b"" if count in lose else plain_answer(request)

    return answer


@pytest.mark.parametrize("strict", [False, True])
def test_the_facade_and_lost_sessions_of_stock_peers(strict: bool) -> None:
    with StockServer(answers_from(set())) as server:
        settings = Settings(strict_session=strict)
        with pyro.Proxy(f"PYRO:service@{server.location}", settings=settings) as proxy:
            assert proxy.echo(1) == "answer"
            assert proxy._pyroConnection is not None
            proxy._pyroConnection.sock.shutdown(socket.SHUT_RDWR)
            if strict:
                with pytest.raises(SessionLost):
                    proxy.echo(2)
            assert proxy.echo(3) == "answer"


def test_the_facade_repeats_what_is_idempotent_or_has_a_key() -> None:
    """Also without MAX_RETRIES; anything else stays Unknown, whatever MAX_RETRIES says."""
    service = Service()
    broken: list[str] = []

    class Breaking(Service):
        @expose
        @idempotent
        def look(self, name: str) -> str:
            return self.hang_up(name)

        @expose
        def change(self, name: str) -> str:
            return self.hang_up(name)

        def hang_up(self, name: str) -> str:
            service.ran[name] += 1
            if name not in broken:
                broken.append(name)
                pyro.current_context.client.connection.sock.shutdown(socket.SHUT_RDWR)
                time.sleep(0.02)
            return name

    with serving(pyro.Daemon()) as daemon:
        with pyro.Proxy(daemon.register(Breaking())) as proxy:
            assert proxy.look("idempotent") == "idempotent"
            assert proxy.change.options(key=KEY)("keyed") == "keyed"
            proxy._pyroMaxRetries = 5
            with pytest.raises(ConnectionClosedError) as caught:
                proxy.change("plain")
            assert caught.value.outcome is Outcome.UNKNOWN
    assert service.ran == {"idempotent": 2, "keyed": 1, "plain": 1}


def test_the_facade_tells_of_a_lost_session() -> None:
    with serving(pyro.Daemon()) as daemon:
        with pyro.Proxy(daemon.register(Session)) as proxy:
            assert [proxy.next(), proxy.next()] == [1, 2]
            assert proxy._pyroConnection is not None
            proxy._pyroConnection.sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(SessionLost):
                proxy.next()
            assert proxy.next() == 1
            proxy._pyroRelease()
            assert proxy.next() == 1


def test_a_failure_told_late_does_not_look_like_many_calls() -> None:
    """As when two threads fail at once, or on an old and a new connection."""
    budget = RetryBudget()
    for seq in (105, 104) * FIRST_RETRIES:
        budget.spend(seq)
    assert budget.spend(106)
    allowed = sum(budget.spend(seq) for seq in (104, 106) * MOST_SAVED)
    assert allowed < 2 * FIRST_RETRIES
