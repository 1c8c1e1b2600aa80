"""Large values and item streams: ours with its defaults against stock Pyro5 with msgpack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import ONE_CORE, OURS, Server, program, run_client, stock

TITLE = "Large values and streams"
NOTE = """\
5 MiB of bytes as an argument (`take`) or as a result (`give`), and the small items of a generator (`items`), one
caller, server and client on one core. Our handlers are coroutines, but for `plain items`, which come from a plain
generator as Pyro5's do."""
SERVERS = ("thread", "multiplex")
BYTES = ("take", "give")
ITEMS = ("items", "plain_items")


def measure(effort: Effort) -> dict[str, Any]:
    """A table for each unit."""
    seconds = effort.seconds
    tables = {}
    for title, unit, ways, wanted in (
        ("5 MiB a call", "MB/s", BYTES, 1.2),
        ("Streams of small items", "items/s", ITEMS, 3.0),
    ):
        print(title, file=sys.stderr)
        samples = in_turns(list(contestants(ways, seconds)), effort.repetitions)
        tables[title] = report.section(unit, samples, list(comparisons(ways, wanted)))
    return tables


def rate(server: list[str], client: list[str]) -> Sample:
    """``{uri}`` in the client's command becomes that of the server."""
    with Server(server, ONE_CORE) as running:
        before = running.cpu_s()
        result = run_client([word.replace("{uri}", running.uri) for word in client], ONE_CORE)
        used, memory = result["cpu_s"] + running.cpu_s() - before, running.peak_rss_mib()
    done = result["bytes"] / 1e6 or result["calls"]
    columns = {"CPU µs a call or item": used / result["calls"] * 1e6, "server MiB": memory}
    return Sample(done / result["seconds"], columns)


def contestants(ways: tuple[str, ...], seconds: float) -> Iterator[Contestant]:
    """Those that are compared stand next to each other."""
    for way in ways:
        if way != "plain_items":
            for kind in SERVERS:
                server = program(stock(), "pyro5_bulk_server.py", kind)
                client = program(stock(), "pyro5_bulk_client.py", "{uri}", way, seconds)
                yield Contestant(f"Pyro5 {kind} server, {way}", partial(rate, server, client))
        for proxy in ("blocking", "trio"):
            client = program(OURS, f"bulk_client_{proxy}.py", "{uri}", way, seconds)
            yield Contestant(f"{proxy} proxy, {way}", partial(rate, program(OURS, "bulk_server.py"), client))


def comparisons(ways: tuple[str, ...], wanted: float) -> Iterator[Comparison]:
    for way in ways:
        theirs = [f"Pyro5 {kind} server, {way.removeprefix('plain_')}" for kind in SERVERS]
        for proxy in ("blocking", "trio"):
            yield Comparison(f"{proxy} proxy, {way}", f"{proxy} proxy, {way}", theirs, wanted)
