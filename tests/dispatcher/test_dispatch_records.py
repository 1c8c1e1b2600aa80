"""Records of calls: one for each, whatever became of it, and nothing in them that a peer could forge a line with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
from doubles_dispatch import POISON, answer_to, ask, blob, config_for, echo, raw_backend, raw_client, wait_for

from pyroxfer_core import Connection
from pyroxfer_core.wire import Flags, Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.control import ask_control

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
