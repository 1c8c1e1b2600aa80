"""A discrete simulation of installations that no single machine can hold, on trio's clock that jumps.

Everything that costs time is one of the constants below, as measured by the benchmark or stated as assumed. Each
scenario says which number breaks first. One node's share is simulated: the others see the same.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import trio
import trio.testing
from scale_arguments import parser

sys.path.append(str(Path(__file__).parents[1] / "benchlib"))
import quotes  # it lies beside the benchmark, whose figures these are

MEASURED: Final = json.loads((Path(__file__).parents[2] / "docs" / "measurements.json").read_text())


def measured(place: str) -> float:
    """What ``./scripts/bench`` found there."""
    return quotes.measured(MEASURED, place)


CALL_S: Final = measured("scale / Routes and back ends / 1 routes / dispatcher CPU µs a call") / 1e6
"""Processor time of a dispatcher for one small blob call."""
CLIENT: Final = "connections / Memory of an idle connection / our dispatcher, our client"
CONNECT_S: Final = measured(f"{CLIENT} / server CPU µs to open one") / 1e6
"""Processor time of a dispatcher for a client of ours that comes, without TLS: its handshake and its first blob."""
CLIENT_KIB: Final = measured(CLIENT)
"""Memory of one idle connection of ours at a dispatcher. What the kernel keeps for the socket is not in it."""
WATCH_S: Final = measured("ns / From a registration until every watcher has it / 1,000 watchers / ms a watcher") / 1e3
"""Time to tell one watcher of one change, watchers on the same machine."""
FILE_CPU_S: Final = measured("scale / Downloads at once / 8 at once / server CPU s/GiB")
"""Processor seconds at the server for one GiB in files of a few MiB."""
GIVES_UP_S: Final = 10
"""How long a client waits for its handshake (`connect_timeout_s`)."""
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0
"""How long programs wait before they connect again, at first and at most (assumed: it is theirs)."""
LAST_S: Final = 300.0
"""When clients that come back are waited for no more."""
TOGETHER: Final = 50
"""Clients of a crowd that are simulated as one, which takes as much of the core as all of them."""
DESCRIPTORS: Final = 1_024
"""What many systems let a process open unless told otherwise (``ulimit -n``)."""
ETCD_WRITES: Final = 10_000.0
"""Writes a second of an etcd cluster on fast disks (its documentation; assumed here)."""
STORE_TIMES_DISK: Final = 3.4
"""Processor time of a file server for bytes of an object store, by that for bytes of a disk: 3.3 for downloads, 3.5
for uploads of 256 MiB (not part of the benchmark: SeaweedFS beside it without TLS, by turns with a folder)."""
STORE_GIB_S: Final = 10.0
"""What an object store gives all file servers together (assumed: it is bought by the gigabyte a second)."""


@dataclass
class Core:
    """One core that does one thing at a time, in order of arrival."""

    busy_until: float = 0.0
    used: float = 0.0

    def take(self, seconds: float) -> float:
        """Enter the queue for it; how long until this work is done."""
        now = trio.current_time()
        self.busy_until = max(now, self.busy_until) + seconds
        self.used += seconds
        return self.busy_until - now

    async def work(self, seconds: float) -> None:
        """Wait for the core, and use it."""
        await trio.sleep(self.take(seconds))


@dataclass
class Result:
    """What a scenario found."""

    title: str
    lines: list[str] = field(default_factory=list)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def dispatcher_under_load(
    calls_per_second: float, seconds: float, random: Random
) -> tuple[float, float, float]:
    """One dispatcher, calls at random moments. Load of its core, and median and 99 % of what it adds, in seconds."""
    core, waits = Core(), []

    async def call() -> None:
        begin = trio.current_time()
        await core.work(CALL_S)
        waits.append(trio.current_time() - begin)

    end = trio.current_time() + seconds
    async with trio.open_nursery() as nursery:
        while trio.current_time() < end:
            await trio.sleep(random.expovariate(calls_per_second))
            nursery.start_soon(call)
    return core.used / seconds, statistics.median(waits), quantile(waits, 0.99)


@dataclass
class Return:
    """How the clients of a dispatcher that died came back."""

    took_s: float = 0.0
    """Until the last was back, or until it was given up to wait for that."""
    longest_s: float = 0.0
    """The longest handshake that succeeded."""
    gave_up: int = 0
    """How often one waited for too long, and came again."""
    lost: int = 0
    """Clients that were not back."""


async def come_to_one(clients: int, spread_s: float, random: Random, together: int = 1) -> Return:
    """So many clients come to one dispatcher, each at a random moment within ``spread_s``.

    One that waits longer than `GIVES_UP_S` gives up, and comes again after a pause that doubles; its handshake is
    work all the same, for it stands in the queue. After `LAST_S` no more is waited for.
    """
    core, found = Core(), Return(lost=clients)
    begin = trio.current_time()

    async def come_back() -> None:
        await trio.sleep(random.uniform(0, spread_s))
        pause = FIRST_PAUSE_S
        while (wait := core.take(CONNECT_S * together)) > GIVES_UP_S:
            found.gave_up += together
            await trio.sleep(GIVES_UP_S + pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, MOST_PAUSE_S)
        await trio.sleep(wait)
        found.longest_s = max(found.longest_s, wait)
        found.lost -= together

    with trio.move_on_after(LAST_S):
        async with trio.open_nursery() as nursery:
            for _ in range(clients // together):
                nursery.start_soon(come_back)
    found.took_s = trio.current_time() - begin
    return found


async def names_change(
    watchers: int, changes_per_second: float, seconds: float, random: Random
) -> tuple[float, float]:
    """One name server that tells each change to all watchers. Load of its core, and the longest delay."""
    core, waits = Core(), []

    async def tell() -> None:
        begin = trio.current_time()
        await core.work(WATCH_S * watchers)
        waits.append(trio.current_time() - begin)

    end = trio.current_time() + seconds
    async with trio.open_nursery() as nursery:
        while trio.current_time() < end:
            await trio.sleep(random.expovariate(changes_per_second))
            nursery.start_soon(tell)
    return core.used / seconds, max(waits, default=0.0)


async def million_clients(random: Random) -> Result:
    clients, dispatchers = 1_000_000, 100
    share = clients // dispatchers
    result = Result("1,000,000 clients, 100 dispatchers")
    result.lines.append(
        f"idle: {share:,} connections and {share * CLIENT_KIB / 1024:.0f} MiB on each dispatcher; descriptors break "
        f"first where `ulimit -n` is {DESCRIPTORS:,}, then `max_connections`, 10,000 by default"
    )
    for rate in (0.1, 0.3, 0.5):
        load, middle, late = await dispatcher_under_load(share * rate, 2.0, random)
        result.lines.append(
            f"{rate} calls/s of each client: {load:.0%} of one core, "
            f"adds {middle * 1e3:.2f} ms (median), {late * 1e3:.2f} ms (99 %)"
        )
    result.lines.append(
        f"more than {1 / CALL_S / share:.2f} calls/s of each client is more than one core can do: the queue is full"
        " at once, and calls are refused (NotSent)"
    )
    return result


async def lost_dispatcher(random: Random) -> Result:
    result = Result("one of 100 dispatchers dies, 10,000 clients come to the other 99")
    for spread in (0.0, 5.0):
        back = await come_to_one(round(10_000 / 99), spread, random)
        result.lines.append(
            f"coming back within {spread:.0f} s: all are back after {back.took_s:.2f} s, "
            f"the longest handshake {back.longest_s * 1e3:.0f} ms"
        )
    for clients in (10_000, 20_000, 40_000, 80_000):
        result.lines.append(f"{clients:,} at once to one: {_told(await come_to_one(clients, 0.0, random, TOGETHER))}")
    return result


def _told(back: Return) -> str:
    again = f"; {back.gave_up:,} times one waited {GIVES_UP_S} s in vain" if back.gave_up else ""
    if back.lost:
        return f"{back.lost:,} are not back after {back.took_s:.0f} s{again}"
    return f"all are back after {back.took_s:.1f} s, the longest handshake {back.longest_s:.1f} s{again}"


async def registry(random: Random) -> Result:
    servers, ttl = 1_000, 30.0
    renewals = servers / (ttl / 3)
    result = Result("1,000 file servers and 100 dispatchers in one registry")
    result.lines.append(
        f"leases of {ttl:.0f} s: {renewals:.0f} renewals a second, {renewals / ETCD_WRITES:.1%} of etcd"
    )
    for changes in (1.0, 15.0, 30.0):
        load, delay = await names_change(100, changes, 30.0, random)
        result.lines.append(
            f"{changes:.0f} changes a second told to 100 watchers: {load:.0%} of a core, "
            f"at the latest after {delay:.2f} s"
        )
    return result


def files() -> Result:
    result = Result("1,000 file servers over one object store")
    per_core = 1 / (FILE_CPU_S * STORE_TIMES_DISK)
    result.lines.append(
        f"one core moves {per_core:.2f} GiB/s ({1 / FILE_CPU_S:.2f} from a disk); "
        f"the store gives {STORE_GIB_S:.0f} GiB/s, so {STORE_GIB_S / per_core:.0f} busy cores are enough, "
        "and the store breaks first: more file servers buy connections, not speed"
    )
    return result


def simulate(seed: int) -> list[Result]:
    """All scenarios; the same seed gives the same answer."""

    async def run_all() -> list[Result]:
        return [
            await million_clients(Random(f"{seed} clients")),
            await lost_dispatcher(Random(f"{seed} lost")),
            await registry(Random(f"{seed} registry")),
            files(),
        ]

    return trio.run(run_all, clock=trio.testing.MockClock(autojump_threshold=0))


def said(seed: int = 1) -> str:
    """What the simulation says, for a document."""
    lines = (["", f"    {result.title}", *(f"      {line}" for line in result.lines)] for result in simulate(seed))
    return "\n".join(line for lines_of_one in lines for line in lines_of_one) + "\n\n"


def main() -> None:
    print(said(parser().parse_args().seed))


if __name__ == "__main__":
    main()
