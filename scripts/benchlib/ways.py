"""More ways to call: one-way, batch, large bytes, connecting, many stock clients, plain methods."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import ONE_CORE, OURS, Server, program, run_client, stock

NOTE = "Ours with `async def` methods unless it says plain; peer: its better server type for many clients."
CLIENTS = (1, 8, 64)
STOCK_WANTED = {1: 1.0, 8: 1.1, 64: 1.3}


def measure(effort: Effort) -> dict[str, Any]:
    """The tables of this part, all on one core."""
    print("small calls: more ways", file=sys.stderr)
    seconds = effort.seconds
    clients = CLIENTS[:: 2 if effort.quick else 1]
    rates = in_turns(list(_rates(seconds, clients)), effort.repetitions)
    return {
        "More ways to call, on one core": report.section("calls/s", rates, list(_comparisons())),
    }


def _rate(server: list[str], client: list[str]) -> Sample:
    with Server(server, ONE_CORE) as running:
        before = running.cpu_s()
        result = run_client([word.replace("{uri}", running.uri) for word in client], ONE_CORE)
        used, memory = running.cpu_s() - before, running.peak_rss_mib()
    columns = {"p50 µs": result.get("p50_us"), "p99 µs": result.get("p99_us")}
    return Sample(
        result["calls"] / result["seconds"],
        {
            **{name: value for name, value in columns.items() if value is not None},
            "server CPU µs a call": used / result["calls"] * 1e6,
            "server MiB": memory,
        },
    )


def _server(library: str, kind: str) -> list[str]:
    return program(OURS if library == "ours" else stock(), "ways_server.py", library, kind)


def _client(library: str, serializer: str, seconds: float, way: str, number: int = 1) -> list[str]:
    python = OURS if library == "ours" else stock()
    return program(python, "ways_client.py", library, "{uri}", serializer, seconds, way, number)


def _rates(seconds: float, amounts: Sequence[int]) -> Iterator[Contestant]:
    def contestant(
        name: str, server: tuple[str, str], client: tuple[str, str], way: str, number: int = 1
    ) -> Contestant:
        return Contestant(name, partial(_rate, _server(*server), _client(*client, seconds, way, number)))

    for way in ("oneway", "batch", "large", "connect"):
        yield contestant(f"Pyro5, {way}", ("Pyro5", "thread"), ("Pyro5", "msgpack"), way)
        yield contestant(f"ours, {way}", ("ours", "async"), ("ours", "msgpack"), way)
    for library, serializer in (("Pyro5", "msgpack"), ("Pyro4", "serpent")):
        for clients in amounts:
            who = f"{library} clients, {clients}"
            for kind in ("thread", "multiplex"):
                yield contestant(f"{who}, own {kind} server", (library, kind), (library, serializer), "call", clients)
            for kind in ("async", "plain"):
                yield contestant(f"{who}, our daemon, {kind}", ("ours", kind), (library, serializer), "call", clients)
    yield contestant("ours, call, plain", ("ours", "plain"), ("ours", "msgpack"), "call")


def _comparisons() -> Iterator[Comparison]:
    for way, wanted in (("oneway", 3.0), ("batch", 1.2), ("large", 1.2), ("connect", 2.5)):
        yield Comparison(way, f"ours, {way}", [f"Pyro5, {way}"], wanted)
    for library in ("Pyro5", "Pyro4"):
        for clients in CLIENTS:
            who = f"{library} clients, {clients}"
            # the thread server for a single caller, the better of both for many: as agreed for all small calls
            own = [f"{who}, own {kind} server" for kind in (("thread",) if clients == 1 else ("thread", "multiplex"))]
            yield Comparison(f"{who}, async", f"{who}, our daemon, async", own, STOCK_WANTED[clients])
            yield Comparison(f"{who}, plain", f"{who}, our daemon, plain", own, 1.0)
    yield Comparison("blocking proxy, plain", "ours, call, plain", ["Pyro5 clients, 1, own thread server"], 1.0)
