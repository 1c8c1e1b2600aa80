"""What a connection costs: memory of an idle one, and what a call costs among many."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dispatch
import report
from children import END_WITH_PARENT
from measure import Comparison, Contestant, Effort, Growth, Sample, in_turns
from processes import ONE_CORE, OURS, ROOT, Server, cores, memory_kib, program, stock

TITLE = "Connections"
NOTE = """\
Each connection has had its handshake and one call, in the words of a stock Pyro5 client unless the row says ours;
the server's growth, and the processor time it took meanwhile, is divided by their number. The project wants 6 KiB for
a plain connection and 32 KiB for one under TLS. The dispatcher has one back end, and was called with a small blob.
Calls among many: 64 connections call at a time, each in its turn, `add(1, 2)` with serpent; server and client on one
core."""
HELD = 1000
"""Connections held open to find out what one costs."""
AMOUNTS = (1, 100, 1_000, 10_000)
THEIRS = (1, 100, 1_000)
PYRO5 = ("Pyro5 multiplex server", "Pyro5 thread server")


class Cost(NamedTuple):
    """What a server has used."""

    cpu_s: float
    kib: int


Load = tuple[Server, Cost, "subprocess.Popen[str]"]
"""A server with connections, what it had cost before them, and the client that holds them until it gets a line."""
Held = Callable[[int], AbstractContextManager[Load]]


CALLS = Growth(
    "Server CPU of a call, by open connections",
    {amount: f"ours, {amount:,} connections" for amount in AMOUNTS},
    "server CPU µs a call",
)


def measure(effort: Effort) -> dict[str, Any]:
    """A table for memory, one for calls."""
    print("connections: idle", file=sys.stderr)
    held_open = HELD // 4 if effort.quick else HELD
    idle = in_turns(
        [Contestant(name, partial(weigh, held, held_open)) for name, held in ways().items()], effort.repetitions
    )
    print("connections: calls among many", file=sys.stderr)
    among = in_turns(list(callers(effort)), effort.repetitions)
    return {
        "Memory of an idle connection": report.section(
            "KiB", idle, [Comparison("a plain connection, less memory", "ours", PYRO5, lower_is_better=True)]
        ),
        "Calls among many connections": report.section("calls/s", among, list(comparisons()), [CALLS]),
    }


def ways() -> dict[str, Held]:
    """How connections are held, by the name of the row."""
    return {
        "ours": partial(at_daemon, "ours"),
        "ours, our client": from_proxies,
        "ours, TLS": partial(at_daemon, "tls"),
        "our dispatcher": partial(at_dispatcher, stock_blobs),
        "our dispatcher, our client": partial(at_dispatcher, our_blobs),
        PYRO5[0]: partial(at_daemon, "multiplex"),
        PYRO5[1]: partial(at_daemon, "thread"),
    }


def weigh(held: Held, amount: int) -> Sample:
    """What the server's resident size grows by, for one connection."""
    with held(amount) as (server, before, _):
        opening = (server.cpu_s() - before.cpu_s) / amount
        return Sample(
            (memory_kib(server.pid, "VmRSS") - before.kib) / amount, {"server CPU µs to open one": opening * 1e6}
        )


def callers(effort: Effort) -> Iterator[Contestant]:
    for amount in effort.some(AMOUNTS):
        yield Contestant(f"ours, {amount:,} connections", partial(call_among, "ours", amount, effort.seconds))
        if amount in THEIRS:
            yield Contestant(
                f"Pyro5, {amount:,} connections", partial(call_among, "multiplex", amount, effort.seconds)
            )


def call_among(kind: str, amount: int, seconds: float) -> Sample:
    with at_daemon(kind, amount, seconds) as (server, _, client):
        before = server.cpu_s()
        result = finished(client)
        used = server.cpu_s() - before
        return Sample(
            result["calls"] / result["seconds"],
            {"server CPU µs a call": used / result["calls"] * 1e6, "server MiB": server.peak_rss_mib()},
        )


def comparisons() -> Iterator[Comparison]:
    for amount in THEIRS:
        yield Comparison(
            f"{amount:,} connections", f"ours, {amount:,} connections", [f"Pyro5, {amount:,} connections"]
        )


@contextmanager
def at_daemon(kind: str, amount: int, seconds: float = 0.0) -> Iterator[Load]:
    """A daemon with so many connections in the words of a stock client, which call for so long when told to."""
    with daemon(kind) as (server, ca):
        command = partial(program, OURS, "connections_client.py", server.uri)
        with connected(server, command(1, 0.0, *ca), command(amount, seconds, *ca)) as load:
            yield load


@contextmanager
def from_proxies(amount: int) -> Iterator[Load]:
    """Our daemon with so many proxies of ours."""
    with daemon("ours") as (server, _):
        command = partial(program, OURS, "connections_proxies.py", server.uri)
        with connected(server, command(1, "add"), command(amount, "add")) as load:
            yield load


@contextmanager
def at_dispatcher(client: Callable[[str, int], list[str]], amount: int) -> Iterator[Load]:
    """Our dispatcher with so many proxies, whose commands this gives."""
    with (
        Server(program(OURS, "blob_server.py"), ONE_CORE) as backend,
        dispatch.ours(backend.uri, ONE_CORE) as dispatcher,
        connected(dispatcher, client(dispatcher.uri, 1), client(dispatcher.uri, amount)) as load,
    ):
        yield load


def our_blobs(uri: str, count: int) -> list[str]:
    return program(OURS, "connections_proxies.py", uri, count, "blob")


def stock_blobs(uri: str, count: int) -> list[str]:
    return program(stock(), "pyro5_connections_proxies.py", uri, count)


@contextmanager
def daemon(kind: str) -> Iterator[tuple[Server, list[Path]]]:
    """A daemon, and the file of its authority, where it has one."""
    python = OURS if kind in ("ours", "tls") else stock()
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(program(python, "connections_server.py", kind, folder), ONE_CORE) as server,
    ):
        yield server, [Path(folder) / "ca.pem"] if kind == "tls" else []


@contextmanager
def connected(server: Server, one: list[str], all_of_them: list[str]) -> Iterator[Load]:
    """The connections of a client that is run by a command, after one that has a single connection."""
    finished(started(one))  # what the first connection of a process brings along
    before = Cost(server.cpu_s(), memory_kib(server.pid, "VmRSS"))
    client = started(all_of_them)
    try:
        yield server, before, client
    finally:
        client.kill()
        client.communicate()


def started(command: list[str]) -> subprocess.Popen[str]:
    """A client that has opened its connections and waits for a line."""
    with cores(ONE_CORE):
        client = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=END_WITH_PARENT
        )
    assert client.stdout is not None, "a pipe"
    if client.stdout.readline() != "held\n":
        raise RuntimeError(f"the connections of {' '.join(command)} could not be opened")
    return client


def finished(client: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = client.communicate("\n", timeout=120)
    result: dict[str, Any] = json.loads(output)
    return result
