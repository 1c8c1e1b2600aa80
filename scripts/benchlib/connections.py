"""What a connection costs: memory of an idle one, and what a call costs among many."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Growth, Sample, in_turns
from processes import ONE_CORE, OURS, ROOT, Server, cores, program, stock

TITLE = "Connections"
NOTE = """\
Each connection has had its handshake and one call, in the words of a stock Pyro5 client; the server's growth is
divided by their number. The project wants 6 KiB for a plain connection and 32 KiB for one under TLS. Calls among
many: 64 connections call at a time, each in its turn, `add(1, 2)` with serpent; server and client on one core."""
HELD = 1000
"""Connections held open to find out what one costs."""
AMOUNTS = (1, 100, 1_000, 10_000)
THEIRS = (1, 100, 1_000)
KINDS = {"ours": "ours", "ours, TLS": "tls", "Pyro5 multiplex server": "multiplex", "Pyro5 thread server": "thread"}
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
        [Contestant(name, partial(weigh, kind, held_open)) for name, kind in KINDS.items()], effort.repetitions
    )
    print("connections: calls among many", file=sys.stderr)
    among = in_turns(list(callers(effort)), effort.repetitions)
    rivals = [name for name in KINDS if name.startswith("Pyro5")]
    return {
        "Memory of an idle connection": report.section(
            "KiB", idle, [Comparison("a plain connection, less memory", "ours", rivals, lower_is_better=True)]
        ),
        "Calls among many connections": report.section("calls/s", among, list(comparisons()), [CALLS]),
    }


def weigh(kind: str, amount: int) -> Sample:
    """What the server's resident size grows by, for one connection."""
    with held(kind, amount, 0) as (server, before, _):
        opening = server.cpu_s() / amount  # with the start of the process, which all of them share
        return Sample((resident_kib(server.pid) - before) / amount, {"server CPU µs to open one": opening * 1e6})


def callers(effort: Effort) -> Iterator[Contestant]:
    for amount in effort.some(AMOUNTS):
        yield Contestant(f"ours, {amount:,} connections", partial(call_among, "ours", amount, effort.seconds))
        if amount in THEIRS:
            yield Contestant(
                f"Pyro5, {amount:,} connections", partial(call_among, "multiplex", amount, effort.seconds)
            )


def call_among(kind: str, amount: int, seconds: float) -> Sample:
    with held(kind, amount, seconds) as (server, _, client):
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
def held(kind: str, amount: int, seconds: float) -> Iterator[tuple[Server, int, subprocess.Popen[str]]]:
    """A server with so many connections: the server, its KiB before them, and the client that waits for a line."""
    python = OURS if kind in ("ours", "tls") else stock()
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(program(python, "connections_server.py", kind, folder), ONE_CORE) as server,
    ):
        ca = [Path(folder) / "ca.pem"] if kind == "tls" else []
        finished(start_client(server.uri, 1, 0.0, ca))  # what the first connection of a process brings along
        before = resident_kib(server.pid)
        client = start_client(server.uri, amount, seconds, ca)
        try:
            yield server, before, client
        finally:
            client.kill()
            client.communicate()


def start_client(uri: str, amount: int, seconds: float, more: list[Path]) -> subprocess.Popen[str]:
    command = program(OURS, "connections_client.py", uri, amount, seconds, *more)
    with cores(ONE_CORE):
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert client.stdout is not None, "a pipe"
    if client.stdout.readline() != "held\n":
        raise RuntimeError(f"{amount} connections could not be opened")
    return client


def finished(client: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = client.communicate("\n", timeout=120)
    result: dict[str, Any] = json.loads(output)
    return result


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
