"""Daemons that close, restart and die; protocols found out and remembered."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
import trio.testing
from doubles import RawClient, connectok_bytes, fake_server, fault_proxy, raw_client, result_bytes, run, until

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose, oneway
from pyroxfer_core.client import versions
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    PyroError,
    RefusedError,
)
from pyroxfer_core.server.execute import Job
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Message, MessageType

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


@expose
class Service:
    def __init__(self) -> None:
        self.calls = 0
        self.log: list[str] = []
        self.gate = trio.Event()

    async def echo(self, value: Any) -> Any:
        return value

    async def count(self) -> int:
        self.calls += 1
        return self.calls

    async def hang(self) -> str:
        self.calls += 1
        self.log.append("begun")
        await self.gate.wait()
        self.log.append("done")
        return "done"

    async def large_when_open(self) -> bytes:
        self.log.append("begun")
        await self.gate.wait()
        return bytes(20_000_000)

    @oneway
    async def hang_oneway(self) -> None:
        await self.hang()


@pytest.fixture
async def service() -> Service:
    return Service()


async def close_while_running(daemon: Daemon, *, then: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.aclose)
        await until(lambda: daemon.draining)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await then()


@BOTH
async def test_running_calls_finish_and_new_ones_are_refused(service: Service, client: Settings) -> None:
    results: list[Any] = []
    async with Daemon(settings=Settings(shutdown_grace_s=5)) as daemon:
        uri = daemon.register(service)
        idle = Proxy(uri, settings=STOCK)
        assert await idle.count() == 1
        async with Proxy(uri, settings=client) as proxy, trio.open_nursery() as nursery:

            async def call() -> None:
                results.append(await proxy.hang())

            async def check() -> None:
                with pytest.raises(PyroError, match=r"NotSent: .*closing"):
                    await idle.count()
                with pytest.raises(CommunicationError, match="closing") as caught:
                    await Proxy(uri).count()
                assert caught.value.outcome is Outcome.NOT_SENT
                service.gate.set()

            nursery.start_soon(call)
            await until(lambda: service.log == ["begun"])
            await close_while_running(daemon, then=check)
        idle._pyroRelease()
    assert results == ["done"]
    assert service.calls == 2


async def test_own_clients_are_told_to_go_elsewhere(service: Service) -> None:
    """Running calls end on the old connection while new ones go to the daemon that took the address over."""
    old = Daemon(settings=Settings(shutdown_grace_s=5))
    other = Service()
    async with old, Daemon() as new:
        uri = old.register(service, "service")
        async with fault_proxy(old.location) as relay, Proxy(f"PYRO:service@{relay.location}") as proxy:
            results: list[Any] = []

            async def call() -> None:
                results.append(await proxy.hang())

            async def move_on() -> None:
                relay._target = new.location
                assert await proxy.count() == 1
                assert other.calls == 1
                assert results == []
                service.gate.set()

            new.register(other, "service")
            assert await proxy.count() == 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await until(lambda: service.log == ["begun"])
                await close_while_running(old, then=move_on)
            assert results == ["done"]
            assert proxy._pyroLeaving == [] or proxy._pyroLeaving[0].connection.broken, "closed after its last answer"
            assert uri.object == "service"


async def test_an_idle_client_connects_elsewhere_after_going_away(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=5)) as old, Daemon() as new:
        old.register(service, "service")
        new.register(other := Service(), "service")
        async with fault_proxy(old.location) as relay, Proxy(old.uri_for("service")) as busy:
            async with Proxy(f"PYRO:service@{relay.location}") as proxy, trio.open_nursery() as nursery:
                assert await proxy.count() == 1
                nursery.start_soon(run, busy.hang)
                await until(lambda: service.log == ["begun"])
                relay._target = new.location
                nursery.start_soon(old.aclose)
                await until(lambda: old.draining)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert await proxy.count() == 1
                assert (service.calls, other.calls) == (2, 1)
                service.gate.set()


async def test_the_grace_is_limited(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0.05)) as daemon:
        async with Proxy(daemon.register(service)) as proxy, trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(ConnectionClosedError) as caught:
                    await proxy.hang()
                assert caught.value.outcome is Outcome.UNKNOWN

            nursery.start_soon(call)
            await until(lambda: service.log == ["begun"])
            await daemon.aclose()
    assert service.log == ["begun"]


async def test_closing_waits_for_large_answers_to_leave(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=10)) as daemon:
        async with Proxy(daemon.register(service)) as proxy, trio.open_nursery() as nursery:
            sizes: list[int] = []

            async def call() -> None:
                sizes.append(len(await proxy.large_when_open()))

            async def open_gate() -> None:
                service.gate.set()

            nursery.start_soon(call)
            await until(lambda: service.log == ["begun"])
            await close_while_running(daemon, then=open_gate)
    assert sizes == [20_000_000]


async def test_closing_waits_for_one_way_calls(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=10)) as daemon:
        async with Proxy(daemon.register(service)) as proxy:
            await proxy.hang_oneway()
            await until(lambda: service.log == ["begun"])

        async def open_gate() -> None:
            service.gate.set()

        await close_while_running(daemon, then=open_gate)
    assert service.log == ["begun", "done"], "although the client has left"


async def test_closing_does_not_wait_for_a_client_that_left(service: Service) -> None:
    with trio.fail_after(30):
        async with Daemon(settings=Settings(shutdown_grace_s=100)) as daemon:
            async with Proxy(daemon.register(service)) as proxy, trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(ConnectionClosedError):
                        await proxy.hang()

                async def leave() -> None:
                    proxy._pyroRelease()

                nursery.start_soon(call)
                await until(lambda: service.log == ["begun"])
                await close_while_running(daemon, then=leave)


async def test_cancelling_while_it_begins_leaves_neither_tasks_nor_the_address() -> None:
    daemon = Daemon()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with daemon:
            raise AssertionError("it began")
    assert scope.cancelled_caught
    assert not daemon.listeners


async def test_what_fails_while_it_begins_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(limit_s: float) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("pyroxfer_core.server.daemon.Watchdog.start", fail)
    daemon = Daemon(settings=Settings(slow_handler_s=1))
    with pytest.raises(RuntimeError, match="new thread"):
        async with daemon:
            raise AssertionError("it began")
    assert not daemon.listeners


async def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Daemon():
            raise KeyError("mine")


async def test_opening_and_closing_at_once() -> None:
    for _ in range(20):
        async with Daemon():
            pass


@BOTH
async def test_a_daemon_restarted_between_calls(service: Service, client: Settings) -> None:
    async with Daemon() as daemon:
        daemon.register(service, "service")
        port = daemon._address.port
        proxy = Proxy(daemon.uri_for("service"), settings=client)
        assert await proxy.count() == 1
    daemon.unregister(service)
    async with Daemon(port=port) as daemon:
        daemon.register(service, "service")
        assert await proxy.count() == 2
        assert proxy._pyroSeq == 1, "numbers go on over a reconnect"
    with pytest.raises(ConnectionClosedError) as caught:
        await proxy.count()
    assert caught.value.outcome is Outcome.NOT_SENT
    assert service.calls == 2


async def test_a_restart_after_an_abandoned_call_is_noticed_before_sending(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(service, "service")
        port = daemon._address.port
        proxy = Proxy(daemon.uri_for("service"))
        assert await proxy.count() == 1
        with trio.move_on_after(0.02):
            await proxy.hang()
    daemon.unregister(service)
    async with Daemon(port=port) as daemon, proxy:
        daemon.register(service, "service")
        assert await proxy.count() == 3


@BOTH
async def test_a_daemon_that_dies_during_a_call(service: Service, client: Settings) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        proxy = Proxy(daemon.register(service), settings=client)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(ConnectionClosedError) as caught:
                    await proxy.hang()
                assert caught.value.outcome is Outcome.UNKNOWN

            nursery.start_soon(call)
            await until(lambda: service.log == ["begun"])
            await daemon.aclose()
    assert service.calls == 1, "and it is not sent again"


async def test_calls_queued_for_a_stock_peer_move_to_a_fresh_connection() -> None:
    """The first call dies with the connection and is Unknown; those behind it were not sent, and are sent now."""
    served = 0

    async def play(client: RawClient) -> None:
        nonlocal served
        served += 1
        assert len(await client.messages(502, 1)) == 1
        await client.send(connectok_bytes("{'echo'}"))
        if served == 1:
            assert len(await client.messages(502, 1)) == 1
            return
        for _ in range(3):
            (request,) = await client.messages(502, 1)
            await client.send(result_bytes("'fine'", seq=request.seq))

    outcomes: list[Any] = []
    async with fake_server(play) as location, Proxy(f"PYRO:x@{location}") as proxy:

        async def call() -> None:
            try:
                outcomes.append(await proxy.echo())
            except ConnectionClosedError as error:
                outcomes.append(error.outcome)

        await proxy._pyroBind()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)
    assert sorted(map(str, outcomes)) == ["Outcome.UNKNOWN", "fine", "fine", "fine"]
    assert served == 2


async def test_releasing_the_proxy_ends_what_is_queued(service: Service) -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        proxy = Proxy(daemon.register(service), settings=STOCK)
        outcomes: list[Any] = []

        async def call(member: Any) -> None:
            with pytest.raises(ConnectionClosedError) as caught:
                await member()
            outcomes.append(caught.value.outcome)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, proxy.hang)
            await until(lambda: service.log == ["begun"])
            nursery.start_soon(call, proxy.count)
            nursery.start_soon(call, proxy.count)
            await trio.testing.wait_all_tasks_blocked(0.01)
            proxy._pyroRelease()
        assert sorted(map(str, outcomes)) == ["Outcome.NOT_SENT", "Outcome.NOT_SENT", "Outcome.UNKNOWN"]
        assert service.calls == 1


# --- protocols ---------------------------------------------------------------------------------------------------


class StockPyro4:
    """Answers protocol 48 only; tells in which versions it was greeted."""

    def __init__(self) -> None:
        self.greeted: list[int] = []

    async def play(self, client: RawClient) -> None:
        first = await client.receive()
        version = int.from_bytes(first[4:6], "big")
        self.greeted.append(version)
        if version != 48:
            refusal = Message(MessageType.CONNECTFAIL, 0, "marshal", 0, b"\xfa\x02no")
            await client.send(codec_for(48).encode(refusal))
            return
        await client.send(connectok_bytes("['echo']", version=48))
        while requests := await client.messages(48, 1):
            await client.send(result_bytes("'fine'", seq=requests[0].seq, version=48))


async def test_protocol_48_is_found_out_and_remembered() -> None:
    stock = StockPyro4()
    async with fake_server(stock.play) as location:
        for _ in range(3):
            async with Proxy(f"PYRO:x@{location}") as proxy:
                assert await proxy.echo() == "fine"
        assert stock.greeted == [502, 48, 48, 48]
        with pytest.raises(CommunicationError):
            await Proxy(f"PYRO:x@{location}", settings=Settings(protocol=502)).echo()
        assert stock.greeted[4:] == [502], "a forced protocol is not changed"


async def test_a_daemon_that_was_upgraded_is_found_out_too(service: Service) -> None:
    async with Daemon(settings=Settings()) as daemon:
        uri = daemon.register(service)
        versions.remember_version(daemon.location, 48)
        async with Proxy(uri) as proxy:
            assert await proxy.count() == 1
            assert proxy._pyroLink is not None
            assert proxy._pyroLink.version == 48, "it still speaks 48, so nobody is the wiser"


@pytest.mark.parametrize("after", [0, 3, 10, 39, 40, 100])
@pytest.mark.parametrize("known", [False, True])
async def test_a_cut_handshake_is_tried_again_in_the_same_protocol(service: Service, known: bool, after: int) -> None:
    """A connection that speaks 48 has no large annotations and no parallel calls as long as it lives."""
    async with Daemon() as daemon, fault_proxy(daemon.location) as relay:
        daemon.register(service, "service")
        if known:
            versions.remember_version(relay.location, 502)
        relay.cut_next(to_client=after)
        async with Proxy(f"PYRO:service@{relay.location}") as proxy:
            assert await proxy.count() == 1
            assert proxy._pyroLink is not None
            assert proxy._pyroLink.version == 502


@pytest.mark.parametrize("after", [0, 10, 100])
async def test_the_facade_tries_a_cut_handshake_again_too(service: Service, after: int) -> None:
    async with Daemon() as daemon, fault_proxy(daemon.location) as relay:
        daemon.register(service, "service")
        relay.cut_next(to_client=after)

        def call() -> tuple[int, int]:
            with blocking.Proxy(f"PYRO:service@{relay.location}") as proxy:
                count = proxy.count()
                assert proxy._pyroLink is not None
                return count, proxy._pyroLink.version

        assert await trio.to_thread.run_sync(call) == (1, 502)


async def test_a_place_that_goes_back_to_protocol_48_is_found_out() -> None:
    stock = StockPyro4()
    async with fake_server(stock.play) as location:
        versions.remember_version(location, 502)
        for _ in range(2):
            async with Proxy(f"PYRO:x@{location}") as proxy:
                assert await proxy.echo() == "fine"
        assert stock.greeted == [502, 48, 48]


def test_only_so_many_places_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_known", {})
    monkeypatch.setattr(versions, "MAX_REMEMBERED", 3)
    for number in range(5):
        versions.remember_version(f"place {number}", 48)
    assert list(versions._known) == ["place 2", "place 3", "place 4"]
    assert versions.versions_to_try("place 4", Settings()) == (48, 502)
    assert versions.versions_to_try("place 0", Settings()) == (502, 502, 48)
    assert versions.versions_to_try("place 0", Settings(hmac_key=b"k")) == (48,)


async def test_one_port_for_all(service: Service) -> None:
    async with Daemon() as daemon:
        uri = daemon.register(service)
        for settings in (OWN, STOCK, Settings(protocol=502, serializer="json")):
            async with Proxy(uri, settings=settings) as proxy:
                await proxy.count()
        async with raw_client(daemon.location) as client:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.until_closed()).startswith(b"PYRO\x01\xf6\x03")
        assert service.calls == 3


async def test_refused_is_a_type_of_its_own() -> None:
    assert RefusedError("x").outcome is Outcome.NOT_SENT


async def test_when_serving_fails_its_error_comes_out_not_the_cancellation_of_the_body() -> None:
    class Rude(Daemon):
        async def _sweep_streams(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(BaseExceptionGroup) as caught:
        async with Rude():
            await trio.sleep_forever()
    assert caught.value.subgroup(KeyboardInterrupt) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), SystemExit()], ids=repr)
async def test_whatever_error_of_the_body_comes_out_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with Daemon():
            raise error
    assert caught.value is error


@pytest.mark.parametrize("client", [OWN, STOCK.with_changes(serializer="serpent")], ids=["own", "48"])
async def test_an_idle_connection_does_not_go_on_holding_its_last_large_call(client: Settings) -> None:
    """Once a large call is answered, nothing of the request, its arguments or its answer is left."""
    text = "large" * 100_000

    def left() -> int:
        gc.collect()
        return sum(
            len(getattr(thing, "body", b"")) > len(text) or getattr(thing, "args", ()) == (text,)
            for thing in gc.get_objects()
            if isinstance(thing, (Message, Job))
        )

    async with Daemon() as daemon:
        async with Proxy(daemon.register(Service(), "service"), settings=client) as proxy:
            assert await proxy.echo(text) == text
            await trio.testing.wait_all_tasks_blocked()
            assert left() == 0
