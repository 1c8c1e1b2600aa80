"""Several workers of one server against one, by turns."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import OURS, Server, command, program, run_client

TITLE = "Workers"
NOTE = """\
The same server as one process and as two workers, `--workers`; the clients run beside it on the same cores, so with
two cores a server can win only what its clients leave. Calls: two client processes with 16 connections each; `work`
computes for half a millisecond. Transfers: eight files at once by one client process, both sides digest. Memory: the
sum of the largest resident sizes of all processes of the server; workers have one more, which watches over them."""
COUNTS = (1, 2)
CALLS = {"small calls": 0.0, "calls that compute for 0.5 ms": 0.0005}
TRANSFERS = 8
MIB = 1024 * 1024
MEMORY = "server MiB, all processes"


def measure(effort: Effort) -> dict[str, Any]:
    """A table for calls, one for transfers."""
    print("workers: calls", file=sys.stderr)
    called = in_turns(list(callers(effort)), effort.repetitions)
    print("workers: transfers", file=sys.stderr)
    moved = in_turns(list(movers(effort)), effort.repetitions)
    return {
        "Calls of 32 connections": report.section("calls/s", called, [compare(what) for what in CALLS]),
        "Eight transfers at once": report.section("MB/s", moved, [compare("uploads"), compare("downloads")]),
    }


def row(what: str, count: int) -> str:
    return f"{what}, {count} worker{'s' * (count > 1)}"


def compare(what: str) -> Comparison:
    return Comparison(f"{what}, 2 workers", row(what, 2), [row(what, 1)])


def callers(effort: Effort) -> Iterator[Contestant]:
    for what, work_s in CALLS.items():
        for count in COUNTS:
            yield Contestant(row(what, count), partial(call_rate, count, work_s, effort.seconds))


def call_rate(count: int, work_s: float, seconds: float) -> Sample:
    with Server(program(OURS, "workers_server.py", count)) as server:
        before = server.cpu_s()
        result = run_client(program(OURS, "workers_client.py", server.uri, work_s, seconds))
        used = server.cpu_s() - before
        return Sample(
            result["calls"] / result["seconds"],
            {"server CPU µs a call": used / result["calls"] * 1e6, MEMORY: server.peak_rss_mib()},
        )


def movers(effort: Effort) -> Iterator[Contestant]:
    size = (8 if effort.quick else 64) * MIB
    for direction in ("upload", "download"):
        for count in COUNTS:
            yield Contestant(row(f"{direction}s", count), partial(transfer_rate, count, direction, size))


def transfer_rate(count: int, direction: str, size: int) -> Sample:
    with tempfile.TemporaryDirectory(prefix="pyroxfer-bench-") as place:
        served, beside = Path(place, "served"), Path(place, "beside")
        for folder in (served, beside):
            folder.mkdir()
        for number in range(TRANSFERS):
            (beside if direction == "upload" else served).joinpath(f"f{number}").write_bytes(os.urandom(size))
        serve = command("pyroxfer", "serve", served, "--workers", count, "--state", Path(place, "state"))
        with Server(serve, pattern=r"at (\S+:\d+) ") as server:
            result = run_client(program(OURS, "workers_files.py", server.found[1], direction, beside, TRANSFERS))
            return Sample(result["bytes"] / result["seconds"] / 1e6, {MEMORY: server.peak_rss_mib()})
