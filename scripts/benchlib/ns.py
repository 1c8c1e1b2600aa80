"""Name servers: lookups a second against stock Pyro5's, and how ours grows with entries and watchers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import report
from measure import Comparison, Contestant, Effort, Growth, Sample, in_turns
from processes import ALL_CORES, ONE_CORE, OURS, Cores, Server, program, run_client, stock

UNIT = "lookups/s"
TITLE = "Name server"
NOTE = """\
`lookup(name)` over 1,000 entries, Pyro5's name server with its default storage (memory), ours with its default
(SQLite, every change on the disk before it is acknowledged). Pyro5's clients are threads of one process with a
connection each, ours are tasks on one connection. A watcher is a connection of its own; the time is from a
registration until all of them have it, clients and server on the same machine."""
ENTRIES = 1_000
SIZES = (100, 1_000, 10_000, 100_000)
WATCHERS = (1, 10, 100, 1_000)
LOOKUPS = Growth(
    "Server CPU of a lookup, by entries", {size: f"{size:,} entries" for size in SIZES}, "server CPU µs a lookup"
)
TELLING = Growth(
    "Time for each watcher, by watchers", {number: f"{number:,} watchers" for number in WATCHERS}, "ms a watcher"
)
PLACES = {"Server and client on one core": ONE_CORE, "Where the scheduler places them": ALL_CORES}


def measure(effort: Effort) -> dict[str, Any]:
    """Lookups in both placements, then growth."""
    seconds = effort.seconds
    tables = {}
    for title, on in list(PLACES.items())[: 1 if effort.quick else None]:
        print(f"name server: {title.lower()}", file=sys.stderr)
        tables[title] = report.section(
            UNIT, in_turns(list(contestants(seconds, on)), effort.repetitions), comparisons()
        )
    print("name server: growth", file=sys.stderr)
    sizes, watchers = effort.some(SIZES), effort.some(WATCHERS)
    tables["Lookups with many entries, 64 in flight"] = report.section(
        UNIT, in_turns([_with_entries(size, seconds) for size in sizes], effort.repetitions), [], [LOOKUPS]
    )
    seen = in_turns([_with_watchers(number) for number in watchers], effort.repetitions)
    tables["From a registration until every watcher has it"] = report.section("ms", seen, [], [TELLING])
    return tables


def contestants(seconds: float, on: Cores) -> Iterator[Contestant]:
    theirs = program(stock(), "pyro5_ns_server.py", ENTRIES)
    ours = program(OURS, "ns_server.py", "sql", ENTRIES)
    for clients in (1, 8):
        client = program(stock(), "pyro5_ns_client.py", "{uri}", seconds, clients, ENTRIES)
        text = f"{clients} Pyro5 client{'s' * (clients > 1)}"
        yield Contestant(f"Pyro5 name server, {text}", partial(lookup_rate, theirs, client, on))
        yield Contestant(f"our name server, {text}", partial(lookup_rate, ours, client, on))
    for name, how in (("our blocking proxy", "blocking"), ("our trio proxy, 64 in flight", "64")):
        client = program(OURS, "ns_client.py", "{uri}", seconds, how, ENTRIES)
        yield Contestant(f"our name server, {name}", partial(lookup_rate, ours, client, on))


def comparisons() -> list[Comparison]:
    def theirs(clients: str) -> list[str]:
        return [f"Pyro5 name server, {clients}"]

    one, eight = theirs("1 Pyro5 client"), theirs("8 Pyro5 clients")
    ours = "our name server"
    return [
        Comparison("our clients, 64 in flight", f"{ours}, our trio proxy, 64 in flight", [*one, *eight], 3.0),
        Comparison("our blocking client", f"{ours}, our blocking proxy", one, 3.0),
        Comparison("8 stock clients on our name server", f"{ours}, 8 Pyro5 clients", eight, 3.0),
        Comparison("1 stock client on our name server", f"{ours}, 1 Pyro5 client", one, 3.0),
    ]


def lookup_rate(server: list[str], client: list[str], on: Cores) -> Sample:
    """``{uri}`` in the client's command becomes that of the server."""
    with Server(server, on) as running:
        before = running.cpu_s()
        result = run_client([word.replace("{uri}", running.uri) for word in client], on)
        used = running.cpu_s() - before
        return Sample(
            result["calls"] / result["seconds"],
            {"server CPU µs a lookup": used / result["calls"] * 1e6, "server MiB": running.peak_rss_mib()},
        )


def _with_entries(size: int, seconds: float) -> Contestant:
    server = program(OURS, "ns_server.py", "sql", size)
    client = program(OURS, "ns_client.py", "{uri}", seconds, "64", size)
    return Contestant(f"{size:,} entries", partial(lookup_rate, server, client, ALL_CORES))


def _with_watchers(number: int) -> Contestant:
    def run() -> Sample:
        with Server(program(OURS, "ns_server.py", "sql", ENTRIES)) as running:
            result = run_client(program(OURS, "ns_watchers.py", running.uri, number, 20))
            return Sample(
                result["ms"],
                {
                    "ms a watcher": result["ms"] / number,
                    "slowest of 20, ms": result["worst_ms"],
                    "server MiB": running.peak_rss_mib(),
                },
            )

    return Contestant(f"{number:,} watchers", run)
