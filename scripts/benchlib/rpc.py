"""Small calls: ours against stock Pyro5, one caller and sixty-four."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import report
import tools
import ways
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import ALL_CORES, ONE_CORE, OURS, Cores, Server, program, run_client, stock

SERIALIZERS = ("serpent", "marshal", "msgpack")
SERVERS = ("thread", "multiplex")
UNIT = "calls/s"
LIMIT = "limit in C, 1 client"
TITLE = "Small calls"
NOTE = """\
`add(1, 2)`; our handler is an `async def`, Pyro5's a plain method; one instance for all callers. Pyro5's 64
clients are threads of one process with a connection each, ours are 64 tasks on one connection; Pyro5's thread
pool has 200 threads. A single caller is held against Pyro5's thread server, many against the better of both. The
limit in C sends messages of the size of such a call back and forth."""
PLACES = {"Server and client on one core": True, "Where the scheduler places them": False}


def measure(effort: Effort) -> dict[str, Any]:
    """A table for each placement."""
    tables = {}
    for title, pinned in list(PLACES.items())[: 1 if effort.quick else None]:
        print(f"small calls: {title.lower()}", file=sys.stderr)
        samples = in_turns(contestants(effort, pinned), effort.repetitions)
        tables[title] = report.section(UNIT, samples, comparisons())
    return tables | ways.measure(effort)


def call_rate(server: list[str], client: list[str], on: Cores) -> Sample:
    """``{uri}`` and ``{port}`` in the client's command become those of the server."""
    with Server(server, on) as running:
        before = running.cpu_s()
        port = running.uri.rpartition(":")[2]
        result = run_client([word.replace("{uri}", running.uri).replace("{port}", port) for word in client], on)
        used = result["cpu_s"] + running.cpu_s() - before
        columns = {"CPU µs a call": used / result["calls"] * 1e6, "server MiB": running.peak_rss_mib()}
    return Sample(result["calls"] / result["seconds"], columns)


def contestants(effort: Effort, pinned: bool) -> list[Contestant]:
    on = ONE_CORE if pinned else ALL_CORES
    serializers = SERIALIZERS[:: 2 if effort.quick else 1]
    seconds = effort.seconds
    both = (*limit(seconds), *peers(seconds, serializers), *products(seconds, serializers))
    return [Contestant(name, partial(call_rate, server, client, on)) for name, server, client in both]


def limit(seconds: float) -> Iterator[tuple[str, list[str], list[str]]]:
    """What the machine can do: messages of the size of a small call, back and forth, by a program in C."""
    if tools.present(tools.LIMIT):
        binary = tools.NEEDED[tools.LIMIT][0]
        yield LIMIT, [binary, "echo-server"], [binary, "echo-client", "{port}", str(seconds)]


def peers(seconds: float, serializers: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    for serializer in serializers:
        for kind in SERVERS:
            server = program(stock(), "pyro5_rpc_server.py", kind)
            for clients in (1, 64):
                client = program(stock(), "pyro5_rpc_client.py", "{uri}", serializer, seconds, clients)
                yield f"Pyro5 {kind} server, {serializer}, {clients} client{'s' * (clients > 1)}", server, client


def products(seconds: float, serializers: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    server = program(OURS, "rpc_server.py")
    for serializer in (*serializers, "default"):
        yield (f"blocking proxy, {serializer}", server,
               program(OURS, "rpc_client_blocking.py", "{uri}", serializer, seconds))  # fmt: skip
        yield (f"trio proxy, {serializer}", server,
               program(OURS, "rpc_client_trio.py", "{uri}", serializer, seconds, 1))  # fmt: skip
    for serializer in (*serializers, "default"):
        yield (f"trio proxy, {serializer}, 64 in flight", server,
               program(OURS, "rpc_client_trio.py", "{uri}", serializer, seconds, 64))  # fmt: skip
    for serializer in serializers:
        yield (f"stock Pyro5 client on our daemon, {serializer}", server,
               program(stock(), "pyro5_rpc_client.py", "{uri}", serializer, seconds, 1))  # fmt: skip


def comparisons() -> list[Comparison]:
    def alone(serializer: str) -> list[str]:
        return [f"Pyro5 thread server, {serializer}, 1 client"]

    def together(serializer: str) -> list[str]:
        return [f"Pyro5 {kind} server, {serializer}, 64 clients" for kind in SERVERS]

    rows = [
        Comparison(f"64 calls in flight on one connection, {serializer}", f"trio proxy, {serializer}, 64 in flight",
                   together(serializer), wanted)
        for serializer, wanted in (("msgpack", 4.0), ("marshal", 4.0), ("serpent", 2.0))
    ]  # fmt: skip
    for serializer in SERIALIZERS:
        rows += [
            Comparison(f"blocking proxy, {serializer}", f"blocking proxy, {serializer}", alone(serializer), 1.5),
            Comparison(f"trio proxy, {serializer}", f"trio proxy, {serializer}", alone(serializer), 1.0),
            Comparison(f"stock client on our daemon, {serializer}", f"stock Pyro5 client on our daemon, {serializer}",
                       alone(serializer)),
        ]  # fmt: skip
    rows.append(Comparison("blocking proxy, msgpack, of the limit", "blocking proxy, msgpack", [LIMIT]))
    rows.append(Comparison("both with their defaults", "blocking proxy, default", alone("serpent"), 1.2))
    return rows
