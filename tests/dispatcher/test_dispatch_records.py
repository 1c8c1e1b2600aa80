"""Records of calls: one for each, whatever became of it, and nothing in them that a peer could forge a line with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
from doubles_dispatch import (
    POISON,
    answer_to,
    ask,
    blob,
    call,
    client_of,
    config_for,
    echo,
    led_config_for,
    raw_backend,
    raw_client,
    wait_for,
)
from doubles_plays import sealed

from pyroxfer_core import Connection, Daemon, Proxy, Uri, behavior, expose
from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.wire import Flags, Message, MessageType, codec_for
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.admission import Admission, Limits
from pyroxfer_dispatcher.backends import Backend, BackendGroup
from pyroxfer_dispatcher.control import ask_control
from pyroxfer_dispatcher.recorded import RecordedRelay
from pyroxfer_dispatcher.records import Records
from pyroxfer_dispatcher.relay import Relay

ID = str(UUID(bytes=bytes(range(16))))
STEPS = ("queue_s", "connect_s", "send_s", "execute_s", "answer_s")


def records_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_call_leaves_one_record(tmp_path: Path) -> None:
    """An answer, an exception, a large one in pieces, a lost backend, a client that leaves: one line each."""
    path = tmp_path / "log\u00e9"
    never = trio.Event()
    how = iter(["ok", "exception", "ok", "lost", "never"])

    async def script(connection: Connection, request: Message) -> None:
        match next(how):
            case "ok":
                await echo(connection, request)
            case "exception":
                await connection.send(answer_to(request, b"x" * 10, Flags.EXCEPTION))
            case "lost":
                connection.close()
            case _:
                await never.wait()

    large = POISON * 1024
    async with raw_backend(script) as backend:
        async with Dispatcher(config_for(backend.uri, head=f'access_log = "{path}"')) as dispatcher:
            async with raw_client(dispatcher.location) as client:
                await ask(client, blob(1))
                await ask(client, blob(2))
                client.decoder.max_message = 2 * len(large)
                await ask(client, blob(3, large))
                await ask(client, blob(4))
                await client.send(blob(5))
                await wait_for(lambda: len(backend.seen) == 5)
            await wait_for(lambda: dispatcher.facts["clients"] == 0)
        never.set()
    found = records_in(path)
    assert [(one["outcome"], one["ended_by"]) for one in found] == [
        ("ok", "backend"), ("exception", "backend"), ("ok", "backend"), ("Unknown", "backend"),
        ("cancelled", "client"),
    ]  # fmt: skip
    sizes = [(one["bytes_in"], one["bytes_out"]) for one in found]
    assert sizes[:3] == [(len(POISON), len(POISON)), (len(POISON), 10), (len(large), len(large))]
    assert {(one["service"], one["backend"], one["correlation_id"]) for one in found} == {("orders", "b0", ID)}
    assert all(one[step] >= 0 for one in found for step in STEPS)


async def test_an_answer_that_was_cut_is_recorded_as_what_it_is(tmp_path: Path) -> None:
    """The call ran, and its client has half of the answer."""
    path = tmp_path / "log"
    head = codec_for(502).encode_head(answer_to(blob(1)), 1_000_000)

    async def script(connection: Connection, request: Message) -> None:
        await connection.send_encoded(head + bytes(500_000))
        connection.close()

    async with (
        raw_backend(script) as backend,
        Dispatcher(config_for(backend.uri, head=f'access_log = "{path}"')) as dispatcher,
    ):
        async with raw_client(dispatcher.location) as client:
            await client.send(blob(1))
            await wait_for(lambda: dispatcher.facts["clients"] == 0)
    (found,) = records_in(path)
    assert (found["outcome"], found["ended_by"]) == ("Executed", "backend")
    assert found["reason"].startswith("backend lost within its answer")


async def test_trace_follows_one_correlation_id(tmp_path: Path) -> None:
    """Only calls with the id are told, and following ends with who follows."""
    control = str(tmp_path / "control")
    async with raw_backend(echo) as backend:
        async with Dispatcher(config_for(backend.uri, head=f'control = "{control}"')) as dispatcher:
            records = dispatcher._management.records
            found: list[dict[str, Any]] = []

            def follow() -> None:
                answers = ask_control(control, {"do": "trace", "id": ID})
                found.append(next(answers))

            async with raw_client(dispatcher.location) as client, trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, follow)
                await wait_for(lambda: records.wanted)
                other = blob(1)
                other.correlation_id = bytes(16)
                await ask(client, other)
                await ask(client, blob(2))
                await wait_for(lambda: found)
            assert (found[0]["correlation_id"], found[0]["outcome"]) == (ID, "ok")
            await wait_for(lambda: not records.wanted)


# -- calls of clients that belong to one backend


def fresh(said: str | None = None) -> tuple[RecordedRelay, list[dict[str, Any]]]:
    """A relay with a reader of its records; ``said``: what the backend says of a call that failed."""
    found: list[dict[str, Any]] = []

    class Taken(Records):
        def take(self, record: dict[str, Any]) -> None:
            found.append(record)

    known = Backend("b", Uri("PYRO:x@h:1"), max_in_flight=2)
    limits = Limits(max_queue=1, queue_timeout_s=5.0)
    admission = Admission("orders", BackendGroup([known]), limits, lambda call: None)
    records = Taken(None)
    records.wanted = True
    return RecordedRelay(
        records, "1.2.3.4:5", "orders", lambda _: said, admission, known, None, lambda verdict: None
    ), found


def told(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(one["outcome"], one["reason"], one["ended_by"]) for one in found]


def test_a_record_has_the_times_and_sizes_of_its_call() -> None:
    relay, found = fresh()
    request, answer = sealed(MessageType.INVOKE, 1), sealed(MessageType.RESULT, 1, Flags.EXCEPTION)
    assert relay.asked(request, 1.0, size=100)
    relay.handed_over(request, 140, 3.0)
    relay.answered(answer, 6.0, whole=False, size=1000)
    relay.answered_whole(10.0)
    (record,) = found
    assert record == {
        "client": "1.2.3.4:5", "service": "orders", "backend": "b", "correlation_id": None,
        "bytes_in": 100, "bytes_out": 1000, "queue_s": 0.0, "connect_s": 0.0, "send_s": 2.0, "execute_s": 3.0,
        "answer_s": 4.0, "sends": 1, "outcome": "exception", "reason": "", "ended_by": "backend",
    }  # fmt: skip
    assert not relay._entries


@pytest.mark.parametrize(
    ("said", "ending"),
    [
        (None, ("exception", "", "backend")),
        ("N", ("NotSent", "the backend did not run it", "backend")),
        ("U", ("Unknown", "the backend cut it short", "backend")),
    ],
)
def test_what_a_backend_says_of_a_call_that_failed_is_recorded(said: str | None, ending: tuple[str, ...]) -> None:
    relay, found = fresh(said)
    assert relay.asked(sealed(MessageType.INVOKE, 1), 0.0)
    relay.answered(sealed(MessageType.RESULT, 1, Flags.EXCEPTION), 1.0, whole=True)
    assert told(found) == [ending]


def test_every_end_of_a_call_is_recorded() -> None:
    """Answered, one-way, refused, waiting when the client left, and lost with or without an answer begun."""
    relay, found = fresh()
    one, two, three, four = (sealed(MessageType.INVOKE, number) for number in (1, 2, 3, 4))
    for request in (one, two):
        assert relay.asked(request, 0.0)
    relay.handed_over(one, 10, 0.0)
    assert not relay.asked(three, 0.0)
    relay._admission.look(5.0)
    relay.woken(5.0, admitted=False)
    relay.refuse(three, 5.0, "it waited too long")
    oneway = sealed(MessageType.INVOKE, 4, Flags.ONEWAY)
    assert relay.asked(oneway, 6.0)
    relay.handed_over(oneway, 30, 6.0)
    relay.backend_lost(10, "reset", 7.0)
    assert relay.asked(four, 8.0)
    assert relay.clear(9.0) == 1
    assert told(found) == [
        ("NotSent", "it waited too long", "dispatcher"),
        ("ok", "", "backend"),
        ("Unknown", "backend lost before it answered: reset", "backend"),
        ("NotSent", "backend lost while sending: reset", "backend"),
        ("cancelled", "the client left", "client"),
    ]
    assert found[0]["queue_s"] == 5.0
    assert found[0]["sends"] == 0


def test_a_backend_lost_within_an_answer_is_no_success() -> None:
    """The call whose answer was cut ran; of the other one nobody knows."""
    relay, found = fresh()
    for number in (1, 2):
        request = sealed(MessageType.INVOKE, number)
        relay.asked(request, 0.0)
        relay.handed_over(request, 10 * number, 0.0)
    relay.answered(sealed(MessageType.RESULT, 2), 1.0, whole=False)
    assert relay.backend_lost(20, "reset", 2.0) == []
    assert told(found) == [
        ("Executed", "backend lost within its answer: reset", "backend"),
        ("Unknown", "backend lost within another answer: reset", "backend"),
    ]


async def test_pinned_calls_leave_a_record_each(tmp_path: Path) -> None:
    """Stock or ours, small or in pieces, an answer or an exception; what passes is not decoded for it."""
    path = tmp_path / "log"

    @expose
    @behavior(instance_mode="single")
    class Worker:
        def echo(self, value: Any) -> Any:
            return value

        def fail(self) -> None:
            raise ValueError("no")

    async with Daemon() as daemon:
        config = led_config_for(daemon.register(Worker, "worker"), head=f'access_log = "{path}"')
        async with Dispatcher(config) as dispatcher:
            async with Proxy(f"PYRO:worker@{dispatcher.location}") as own:
                assert await own.echo(b"x" * 300_000) == b"x" * 300_000
                with pytest.raises(ValueError, match="no"):
                    await own.fail()
            async with client_of(dispatcher.location) as stock:
                await ask(stock, call(1, b"# serpent utf-8 python3.2\n('worker','echo',(1,),{})"))
                await ask(stock, call(2, POISON))
            await wait_for(lambda: dispatcher.facts["clients"] == 0)
    found = records_in(path)
    assert [one["outcome"] for one in found] == ["ok", "exception", "ok", "exception"]
    assert found[0]["bytes_in"] > 300_000
    assert found[0]["bytes_out"] > 300_000
    assert found[2]["bytes_in"] == len(b"# serpent utf-8 python3.2\n('worker','echo',(1,),{})")
    assert found[2]["correlation_id"] == ID
    assert {(one["service"], one["backend"], one["ended_by"]) for one in found} == {("work", "b0", "backend")}
    assert all(one[step] >= 0 for one in found for step in STEPS)


async def test_a_call_that_its_backend_refuses_raised_nothing(tmp_path: Path) -> None:
    """The object is made for each connection, so a call with a key cannot run at most once: it does not begin."""
    path = tmp_path / "log"

    @expose
    @behavior(instance_mode="session")
    class Worker:
        def echo(self, value: Any) -> Any:
            return value

    async with Daemon() as daemon:
        config = led_config_for(daemon.register(Worker, "worker"), head=f'access_log = "{path}"')
        async with Dispatcher(config) as dispatcher:
            async with Proxy(f"PYRO:worker@{dispatcher.location}") as own:
                with pytest.raises(CommunicationError, match="a key needs an object") as caught:
                    await own.echo.options(key="k" * 22)(1)
                assert caught.value.outcome is Outcome.NOT_SENT
            await wait_for(lambda: dispatcher.facts["clients"] == 0)
    found = records_in(path)
    assert {(one["outcome"], one["reason"], one["ended_by"]) for one in found} == {
        ("NotSent", "the backend did not run it", "backend")
    }


async def test_nothing_is_recorded_where_nobody_can_want_it() -> None:
    async with raw_backend(echo) as backend, Dispatcher(led_config_for(backend.uri)) as dispatcher:
        async with client_of(dispatcher.location) as client:
            await ask(client, call())
            (pinned,) = dispatcher.guests
            assert type(pinned._relay) is Relay  # type: ignore[attr-defined]  # it looks inside
