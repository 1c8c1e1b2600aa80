"""Several blobs in flight on one connection of a client of ours: each goes its own way, and has its own end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from doubles import run, until
from doubles_dispatch import blob, config_for, echo, held, raw_backend
from doubles_multiplex import (
    MANY,
    Worker,
    agreed_client,
    backends_of,
    dispatched,
    guest_of,
    hang,
    in_flight,
    order,
)

from pyroxfer_core import (
    Connection,
    Proxy,
)
from pyroxfer_core import blocking as facade
from pyroxfer_core.errors import CommunicationError, Outcome, RefusedError
from pyroxfer_core.wire import Feature, Flags, Message, MessageType
from pyroxfer_dispatcher import Dispatcher, multiplex
from pyroxfer_dispatcher.links import MAX_IDLE

# -- together


async def test_as_many_calls_run_at_once_as_are_in_flight() -> None:
    """Each waits for all the others, on two back ends; and all of them come from one connection."""
    worker = Worker(MANY)
    results: list[int] = []
    async with dispatched([worker, worker]) as dispatcher, Proxy(dispatcher.uri) as proxy:

        async def call(number: int) -> None:
            results.append(await proxy.meet(order(number)))

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(call, number)
        assert sorted(results) == list(range(MANY))
        assert dispatcher.facts["clients"] == 1
        assert in_flight(dispatcher) == 0
        tally = dispatcher.directory.services["orders"].tally
        assert tally["calls"] == MANY


async def test_a_client_that_is_idle_keeps_none_of_what_its_calls_needed() -> None:
    """Thousands that once had many in flight would cost as much as if they still had; the next call is like any."""
    worker = Worker(MANY)
    async with dispatched([worker]) as dispatcher, Proxy(dispatcher.uri) as proxy:
        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(run, proxy.meet, order(number))
        guest = guest_of(dispatcher)
        assert len(guest._lanes) == MANY
        guest.look(1e9)
        guest.look(2e9)
        assert not guest._lanes
        assert await proxy.process(order(7)) == 7
        assert len(guest._lanes) == 1


async def test_no_more_run_than_the_limits_allow() -> None:
    worker = Worker()
    async with (
        dispatched([worker, worker], backend="max_in_flight = 4") as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):
        for number in range(20):
            nursery.start_soon(run, proxy.hang, order(number))
        admission = dispatcher.directory.services["orders"].admission
        await until(lambda: worker.running == 8 and admission.waiting == 12)
        worker.gate.set()
    assert worker.most == 8


async def test_threads_share_the_connection_of_a_blocking_proxy() -> None:
    worker = Worker(8)
    async with dispatched([worker]) as dispatcher:
        with facade.Proxy(str(dispatcher.uri)) as proxy:

            def call(number: int) -> None:
                assert proxy.meet(facade.SerializedBlob("orders", number)) == number

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(trio.to_thread.run_sync, call, number)
                await until(lambda: worker.met.is_set())
                assert dispatcher.facts["clients"] == 1


async def test_fast_calls_pass_a_slow_one() -> None:
    worker = Worker()
    async with (
        dispatched([worker]) as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, proxy.hang, order(0))
        await until(lambda: worker.running == 1)
        assert [await proxy.process(order(number)) for number in range(20)] == list(range(20))
        assert worker.running == 1
        worker.gate.set()


async def test_two_clients_take_turns_in_the_queue() -> None:
    """One with many calls in flight does not keep the other from its turn."""
    worker = Worker()
    service = 'fair_by = "connection"'
    async with (
        dispatched([worker], service=service, backend="max_in_flight = 1") as dispatcher,
        Proxy(dispatcher.uri) as greedy,
        Proxy(dispatcher.uri) as modest,
        trio.open_nursery() as nursery,
    ):
        admission = dispatcher.directory.services["orders"].admission
        for number in range(10):
            nursery.start_soon(run, greedy.hang, order(number))
        await until(lambda: admission.waiting == 9)
        nursery.start_soon(run, modest.hang, order("modest"))
        await until(lambda: admission.waiting == 10)
        worker.gate.set()
    assert "modest" in worker.begun[:3]


async def test_one_way_calls_stay_in_order() -> None:
    """Although there is no connection to the back end yet, and each could have one of its own."""
    worker = Worker()
    async with dispatched([worker]) as dispatcher, Proxy(dispatcher.uri) as proxy:
        for number in range(50):
            await proxy.note(order(number))
        await until(lambda: len(worker.begun) == 50)
    assert worker.begun == list(range(50))


async def test_connections_that_nobody_needs_any_more_are_closed() -> None:
    """Those that were needed at once are kept until nobody has needed them for a while."""
    release = trio.Event()
    async with (
        raw_backend(held(release)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        for seq in range(MANY):
            await client.send(blob(seq + 1))
        await until(lambda: len(backend.seen) == MANY)
        release.set()
        for _ in range(MANY):
            await client.receive()
        pool = dispatcher._reception.pool_after(0)
        await client.send(blob(MANY + 1))
        await client.receive()
        pool.look(1e9)
        assert len(backend.connections) == MANY
        pool.look(2e9)
        await until(lambda: len(backend.connections) == MAX_IDLE)


# -- the end of one


async def test_a_call_that_is_cancelled_is_cancelled_at_its_backend() -> None:
    """And no other one."""
    worker = Worker()
    async with (
        dispatched([worker]) as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, proxy.hang, order("stays"))
        await until(lambda: worker.running == 1)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when, scope, lambda: worker.running == 2)
            await proxy.hang(order("goes"))
        await until(lambda: worker.cancelled == 1 and in_flight(dispatcher) == 1)
        kept = dispatcher._reception.pool_after(0)._idle
        await until(lambda: sum(map(len, kept.values())) == 1)  # the connection of the call is as good as before
        assert await proxy.process(order(1)) == 1
        assert dispatcher.facts["clients"] == 1
        worker.gate.set()
    assert worker.cancelled == 1


async def _cancel_when(scope: trio.CancelScope, condition: Callable[[], object]) -> None:
    await until(condition)
    scope.cancel()


@pytest.mark.parametrize("ends_by", ["cancel", "deadline"])
async def test_a_call_that_ends_while_it_waits_was_not_sent(ends_by: str) -> None:
    worker = Worker()
    async with (
        dispatched([worker], backend="max_in_flight = 1") as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        admission = dispatcher.directory.services["orders"].admission
        await client.send(hang(1))
        await until(lambda: worker.running == 1)
        waits = hang(2)
        if ends_by == "deadline":
            waits.annotations["PXDL"] = client.grant.deadline(50)
        await client.send(waits)
        if ends_by == "cancel":
            await until(lambda: admission.waiting == 1)
            await client.send(Message(MessageType.CANCEL, 2, "ping", 0, b""))
        answer = await client.receive()
        assert (answer.seq, client.outcome(answer)) == (2, "N")
        assert (b"cancelled while it waited" if ends_by == "cancel" else b"deadline") in answer.body
        worker.gate.set()
        assert (await client.receive()).seq == 1
    assert worker.begun == [1]


async def test_a_cancel_behind_a_one_way_call_that_waits_is_heard_when_that_has_waited_long_enough() -> None:
    worker = Worker()
    async with (
        dispatched([worker], backend="max_in_flight = 1", service="queue_timeout = 0.3") as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        await client.send(hang(1))
        await until(lambda: worker.running == 1)
        one_way = hang(2)
        one_way.flags |= Flags.ONEWAY
        await client.send(one_way)
        await client.send(Message(MessageType.CANCEL, 1, "ping", 0, b""))
        while (answer := await client.receive()).type == MessageType.ALIVE:
            assert worker.running == 1
        assert answer.seq == 1
    assert worker.begun == [1]
    assert worker.cancelled == 1


async def test_the_connection_of_a_call_that_is_cancelled_is_given_up_towards_a_stock_backend() -> None:
    release = trio.Event()

    async def hold(connection: Connection, request: Message) -> None:
        await release.wait()

    async with (
        raw_backend(hold) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        await client.send(blob(1))
        await until(lambda: backend.seen)
        await client.send(Message(MessageType.CANCEL, 1, "ping", 0, b""))
        answer = await client.receive()
        assert (answer.seq, client.outcome(answer)) == (1, "U")
        assert in_flight(dispatcher) == 0
        release.set()


async def test_a_deadline_ends_one_call_and_not_the_others() -> None:
    worker = Worker()
    async with (
        dispatched([worker]) as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, proxy.hang, order("stays"))
        await until(lambda: worker.running == 1)
        with pytest.raises(CommunicationError) as caught:
            await proxy.hang.options(deadline=0.2)(order("late"))
        await until(lambda: in_flight(dispatcher) == 1 and worker.running == 1)
        assert worker.cancelled == worker.begun.count("late")
        assert caught.value.outcome in (Outcome.NOT_SENT, Outcome.UNKNOWN)
        worker.gate.set()


async def test_a_backend_of_ours_gets_what_is_left_of_the_deadline(tmp_path: Path) -> None:
    """The dispatcher counts it from the arrival of the call; what the back end says of it stands in the record."""
    worker, log = Worker(), tmp_path / "calls"
    async with (
        dispatched([worker], head=f'access_log = "{log}"\n') as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        late = hang(1)
        late.annotations["PXDL"] = client.grant.deadline(50)
        await client.send(late)  # nobody but the back end itself looks at the time
        answer = await client.receive()
        assert client.outcome(answer) == ("U" if worker.begun else "N")
        assert worker.cancelled == len(worker.begun)
        dispatcher._management.records.flush()
        (record,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert record["outcome"] == ("Unknown" if worker.begun else "NotSent")


async def test_what_is_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the limit, and bytes beyond the limit, are NotSent at once; the others go on."""
    worker = Worker()
    async with dispatched([worker]) as dispatcher:
        reception = dispatcher._reception
        reception._settings = reception._settings.with_changes(max_calls_in_flight=2)
        async with agreed_client(dispatcher) as client:
            for seq in (1, 2, 3):
                await client.send(hang(seq))
            answer = await client.receive()
            assert (answer.seq, client.outcome(answer)) == (3, "N")
            assert b"busy: 2 calls are in flight" in answer.body
            monkeypatch.setattr(multiplex, "MAX_HELD", 1)
            await client.send(Message(MessageType.CANCEL, 2, "ping", 0, b""))
            assert (await client.receive()).seq == 2
            await client.send(hang(4))
            answer = await client.receive()
            assert (answer.seq, client.outcome(answer)) == (4, "N")
            worker.gate.set()
            assert (await client.receive()).seq == 1


async def test_an_overload_is_known_as_not_sent() -> None:
    worker = Worker()
    async with (
        dispatched([worker], service="max_queue = 0", backend="max_in_flight = 1") as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, proxy.hang, order(1))
        await until(lambda: worker.running == 1)
        with pytest.raises(RefusedError, match="overloaded") as caught:
            await proxy.process(order(2))
        assert caught.value.outcome is Outcome.NOT_SENT
        worker.gate.set()


async def test_nothing_is_left_of_a_client_that_leaves(tmp_path: Path) -> None:
    """What it had in flight is cancelled, with a record for each."""
    worker, log = Worker(), tmp_path / "calls"
    async with dispatched([worker], head=f'access_log = "{log}"\n') as dispatcher:
        async with agreed_client(dispatcher) as client:
            for seq in range(1, 9):
                await client.send(hang(seq))
            await until(lambda: worker.running == 8)
        await until(lambda: not dispatcher.facts["clients"])
        assert in_flight(dispatcher) == 0
        await until(lambda: worker.cancelled == 8)
        dispatcher._management.records.flush()
        outcomes = [json.loads(line)["outcome"] for line in log.read_text().splitlines()]
    assert outcomes == ["cancelled"] * 8


async def test_each_call_has_a_record(tmp_path: Path) -> None:
    worker, log = Worker(), tmp_path / "calls"
    async with (
        dispatched([worker], head=f'access_log = "{log}"\n') as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        for seq in (1, 2):
            await client.send(hang(seq))
        await until(lambda: worker.running == 2)
        await client.send(Message(MessageType.CANCEL, 1, "ping", 0, b""))
        assert (await client.receive()).seq == 1
        await client.send(hang(3, topic="nobody"))
        assert (await client.receive()).seq == 3
        worker.gate.set()
        assert (await client.receive()).seq == 2
        dispatcher._management.records.flush()
        records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(record["outcome"], record["backend"]) for record in records] == [("cancelled", "b0"), ("ok", "b0")]
    assert dispatcher.directory.services["orders"].tally == {"calls": 2, "cancelled": 1}


async def test_what_becomes_of_the_calls_of_a_backend_that_dies() -> None:
    """Those that it had are Unknown, each on its own; those that wait go to the other one."""

    async def nothing(connection: Connection, request: Message) -> None:
        """Begin, and never answer."""

    async with raw_backend(nothing) as mortal, raw_backend(echo) as other:
        config = config_for(mortal.uri, other.uri, backend="max_in_flight = 16", service="eject_after = 0")
        async with Dispatcher(config) as dispatcher, agreed_client(dispatcher) as client:
            for seq in range(1, 33):
                await client.send(blob(seq))
            await until(lambda: len(mortal.seen) == 16)
            for seq in range(33, 37):
                await client.send(blob(seq))
            mortal.die()
            outcomes = {answer.seq: client.outcome(answer) for answer in [await client.receive() for _ in range(36)]}
            assert sorted(outcomes) == list(range(1, 37))
            assert list(outcomes.values()).count("U") == 16
            assert list(outcomes.values()).count(None) == 20
            assert len(other.seen) == 20


# -- item streams, and the end of the dispatcher


async def test_several_item_streams_of_one_connection() -> None:
    """Each goes on at the back end that began it, with other calls between."""
    worker = Worker()
    async with dispatched([worker, worker]) as dispatcher, Proxy(dispatcher.uri) as proxy:
        streams = [aiter(proxy.count(order(3))) for _ in range(4)]
        for number in range(3):
            for stream in streams:
                assert await anext(stream) == number
            assert await proxy.process(order(number)) == number
        for stream in streams:
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert not any(map(guest_of(dispatcher).belongs_to, backends_of(dispatcher)))
        assert [backend.clients for backend in backends_of(dispatcher)] == [0, 0]


async def test_items_that_are_asked_for_ahead_come_in_order() -> None:
    """Calls about one stream wait for each other; one that is cancelled meanwhile never begins."""
    release = trio.Event()
    numbers: list[int] = []

    async def stream(connection: Connection, request: Message) -> None:
        if request.flags & Flags.KEEPSERIALIZED:
            flags, annotations = Flags.EXCEPTION | Flags.ITEMSTREAM, {"STRM": b"s1"}
            await connection.send(Message(MessageType.RESULT, request.seq, "serpent", flags, b"x", dict(annotations)))
            return
        numbers.append(int(request.body[-3:]))
        await release.wait()
        await connection.send(Message(MessageType.RESULT, request.seq, "serpent", 0, b"None"))

    def item(seq: int) -> Message:
        body = b"# serpent utf-8 python3.2\n('Pyro.Daemon','get_next_stream_item',('s1',),{})#%03d" % seq
        return Message(MessageType.INVOKE, seq, "serpent", 0, body)

    async with (
        raw_backend(stream) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        await client.send(blob(1))
        assert (await client.receive()).flags & Flags.ITEMSTREAM
        for seq in (2, 3, 4):
            await client.send(item(seq))
        await client.send(Message(MessageType.CANCEL, 3, "ping", 0, b""))
        answer = await client.receive()
        assert (answer.seq, client.outcome(answer)) == (3, "N")
        release.set()
        assert [(await client.receive()).seq for _ in range(2)] == [2, 4]
        assert numbers == [2, 4]
        backend.drop_all()
        await until(lambda: not guest_of(dispatcher).belongs_to(backends_of(dispatcher)[0]))
        await client.send(item(5))
        answer = await client.receive()
        assert (answer.seq, client.outcome(answer)) == (5, "N")
        assert b"its backend is lost" in answer.body


async def test_a_client_that_cannot_be_told_of_a_refusal_is_cut() -> None:
    """Nothing can be written in the serializer that it uses."""
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with agreed_client(dispatcher) as client:
            await client.send(blob(1, serializer="ping", topic="nobody"))
            assert await client.connection.receive() is None
        await until(lambda: not dispatcher.facts["clients"])


async def test_a_dispatcher_that_stops_lets_calls_in_flight_end() -> None:
    """Further ones are NotSent."""
    worker = Worker()
    async with (
        dispatched([worker]) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        for seq in (1, 2):
            await client.send(hang(seq))
        await until(lambda: worker.running == 2)
        guest_of(dispatcher).leave()
        assert (await client.receive()).type == MessageType.GOAWAY
        guest_of(dispatcher).stop()
        await client.send(hang(3))
        answer = await client.receive()
        assert (answer.seq, client.outcome(answer)) == (3, "N")
        worker.gate.set()
        assert {(await client.receive()).seq, (await client.receive()).seq} == {1, 2}
        assert await client.connection.receive() is None


# -- who makes one call after another


async def test_only_who_knows_all_of_it_has_several_calls_in_flight() -> None:
    """A client that would take its answers whole gets them one after another."""
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with agreed_client(dispatcher, Feature.ALL & ~Feature.PIECES) as client:
            assert client.grant.bits == Feature.GOAWAY | Feature.DEADLINE
            await client.send(blob(1))
            assert (await client.receive()).seq == 1
        async with agreed_client(dispatcher) as client:
            assert Feature.CONCURRENT in client.grant
            await client.connection.send(blob(1))  # and does not confirm it
            assert await client.connection.receive() is None


async def test_who_does_not_understand_a_goodbye_is_told_none() -> None:
    """All else is agreed on."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher, Feature.ALL & ~Feature.GOAWAY) as client,
    ):
        await client.send(blob(1))
        assert (await client.receive()).seq == 1
        guest_of(dispatcher).leave()
        await client.send(blob(2))
        assert (await client.receive()).seq == 2


async def test_heartbeats_are_answered_while_calls_run() -> None:
    worker = Worker()
    async with dispatched([worker]) as dispatcher, agreed_client(dispatcher) as client:
        await client.send(hang(1))
        await until(lambda: worker.running == 1)
        await client.send(Message(MessageType.HEARTBEAT, 0, "ping", 0, b""))
        assert (await client.receive()).type == MessageType.ALIVE
        worker.gate.set()
        assert (await client.receive()).seq == 1
