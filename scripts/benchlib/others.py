"""Small calls against other libraries than Pyro: rpyc, grpc.aio and zerorpc."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import report
from measure import Comparison, Contestant, Effort, in_turns
from processes import ONE_CORE, OURS, others, program
from rpc import UNIT, call_rate

TITLE = "Small calls, against other libraries"
NOTE = """\
`add(1, 2)`, server and client on one core. Ours: an `async def` handler, values typed (the default between own
peers). grpc: `grpc.aio` on both sides, msgpack bodies. rpyc: its threaded server; 64 in flight are its own async
calls, sent and awaited 64 at a time. zerorpc has one caller."""


def measure(effort: Effort) -> dict[str, Any]:
    """One table."""
    print("small calls: other libraries", file=sys.stderr)
    samples = in_turns(list(contestants(effort.seconds)), effort.repetitions)
    return {"Server and client on one core": report.section(UNIT, samples, comparisons())}


def contestants(seconds: float) -> Iterator[Contestant]:
    for library, callers in (("rpyc", (1, 64)), ("grpc", (1, 64)), ("zerorpc", (1,))):
        server = program(others(), "others_server.py", library)
        for in_flight in callers:
            client = program(others(), "others_client.py", library, "{uri}", seconds, in_flight)
            yield Contestant(named(library, in_flight), partial(call_rate, server, client, ONE_CORE))
    server = program(OURS, "rpc_server.py")
    blocking = program(OURS, "rpc_client_blocking.py", "{uri}", "default", seconds)
    yield Contestant("ours, blocking proxy", partial(call_rate, server, blocking, ONE_CORE))
    for in_flight in (1, 64):
        client = program(OURS, "rpc_client_trio.py", "{uri}", "default", seconds, in_flight)
        yield Contestant(named("ours, trio proxy", in_flight), partial(call_rate, server, client, ONE_CORE))


def named(who: str, in_flight: int) -> str:
    return f"{who}, {in_flight} in flight"


def comparisons() -> list[Comparison]:
    rows = [
        Comparison(f"{ours}, against {peer}", ours, [named(peer, in_flight)], wanted)
        for peer, wanted in (("rpyc", 1.5), ("grpc", 6.0))
        for ours, in_flight in (
            ("ours, blocking proxy", 1),
            (named("ours, trio proxy", 1), 1),
            (named("ours, trio proxy", 64), 64),
        )
    ]
    return [*rows, Comparison("ours, blocking proxy, against zerorpc", "ours, blocking proxy", [named("zerorpc", 1)])]
