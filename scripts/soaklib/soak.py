"""Mixed load with faults: nothing may be lost, run twice or grow.

The services that are never killed must hold as much memory and as many descriptors and threads at the end as after
the first quarter, and at rest as many descriptors and threads as before the load; every call's outcome must be what
the counters noted; every file with a receipt must be in place.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import trio
from fleet import Fleet, Usage, until_signalled, usage_of
from load import Ledger, Load, sha256
from soak_arguments import parser

SAMPLES = 120
"""Samples of what each process holds, over the whole run."""
WARM_UP = 0.25
"""Share of the run in which caches and pools may still fill."""
GROWTH = 1.10
GROWTH_KIB = 6 * 1024
"""Memory of a process at the end may be this much larger than after the warm-up: allocators do not give back all."""
DESCRIPTORS = 40
THREADS = 45
"""How far the last samples may lie above the first: connections and worker threads come and go with the load."""
RESTING_DESCRIPTORS = 6
RESTING_THREADS = 4
"""How many more a process may have at rest than before: links of a dispatcher to back ends, files of a store. Under
load they come and go, so that a slow leak is seen at rest only."""
REST_S = 20.0
"""How long all may take to come to rest; threads that have nothing to do live for ten seconds."""
OWN = "this process"

Samples = dict[str, list[Usage]]


async def watch(fleet: Fleet, seconds: float, samples: Samples) -> None:
    """Take a sample of each service that is never killed, and of ourselves, now and then."""
    while True:
        for service in fleet.services:
            if not service.victim:
                samples.setdefault(service.name, []).append(service.usage())
        samples.setdefault(OWN, []).append(usage_of(os.getpid()))
        await trio.sleep(max(0.25, seconds / SAMPLES))


def grown(samples: Samples) -> list[str]:
    """What holds more at the end than after the warm-up."""
    found = []
    for name, taken in samples.items():
        settled = taken[int(len(taken) * WARM_UP) :]
        early, late = settled[: len(settled) // 3], settled[-(len(settled) // 3) :]
        if not early or name == OWN:
            continue
        for what, allowed in (("rss_kib", None), ("descriptors", DESCRIPTORS), ("threads", THREADS)):
            before, after = (statistics.median(getattr(one, what) for one in part) for part in (early, late))
            processes = late[-1].processes
            limit = before * GROWTH + GROWTH_KIB * processes if allowed is None else before + allowed * processes
            if after > limit:
                found.append(f"{name}: {what} grew from {before:.0f} to {after:.0f}")
    return found


def at_rest(fleet: Fleet) -> dict[str, Usage]:
    """What each service that is never killed holds now, and this process."""
    return {
        OWN: usage_of(os.getpid()),
        **{service.name: service.usage() for service in fleet.services if not service.victim},
    }


def left_open(before: dict[str, Usage], after: dict[str, Usage]) -> list[str]:
    """What holds more descriptors or threads at rest than before the load."""
    return [
        f"{name}: {what} at rest grew from {getattr(before[name], what)} to {getattr(usage, what)}"
        for name, usage in after.items()
        for what, allowed in (("descriptors", RESTING_DESCRIPTORS), ("threads", RESTING_THREADS))
        if getattr(usage, what) > getattr(before[name], what) + allowed * usage.processes
    ]


async def come_to_rest(fleet: Fleet, before: dict[str, Usage]) -> list[str]:
    """Wait until nothing is left open; what still is after a while."""
    with trio.move_on_after(REST_S):
        while left_open(before, at_rest(fleet)):  # noqa: ASYNC110  # other processes tell nobody
            await trio.sleep(0.25)
    return left_open(before, at_rest(fleet))


def broken_promises(ledger: Ledger, executions: dict[int, int]) -> list[str]:
    """Calls that ran more or less often than their outcome says, and files that are not what was committed."""
    found = list(ledger.wrong)
    for number, outcome in ledger.outcomes.items():
        ran = executions.get(number, 0)
        right = {"NotSent": ran == 0, "Executed": ran == 1, "Unknown": ran <= 1}[outcome]
        if not right:
            found.append(f"call {number} is told to be {outcome} and ran {ran} times")
    for path, digest in ledger.committed.items():
        if not path.exists():
            found.append(f"{path} has a receipt and is not there")
        elif sha256(path) != digest:
            found.append(f"{path} has a receipt and other contents")
    return found


def report(load: Load, samples: Samples, fleet: Fleet) -> None:
    ledger = load.ledger
    print("done:     " + ", ".join(f"{what} {count:,}" for what, count in sorted(ledger.done.items())))
    outcomes = Counter(ledger.outcomes.values())
    print("outcomes: " + ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items())))
    print("errors:   " + ", ".join(f"{name} {count:,}" for name, count in ledger.errors.most_common()))
    killed = {**{service.name: service.kills for service in fleet.victims}, "worker": fleet.steady.worker_kills}
    print("kills:    " + ", ".join(f"{name} {kills}" for name, kills in killed.items()))
    for name, taken in samples.items():
        first, last = taken[int(len(taken) * WARM_UP)], taken[-1]
        print(
            f"{name}: {first.rss_kib / 1024:.1f} to {last.rss_kib / 1024:.1f} MiB, descriptors {first.descriptors} to"
            f" {last.descriptors}, threads {first.threads} to {last.threads}"
        )


async def soak(seconds: float, seed: int, workers: int, work: Path) -> list[str]:
    fleet = Fleet(work, workers)
    load = Load(fleet, seed)
    samples: Samples = {}
    try:
        await trio.to_thread.run_sync(fleet.start)
        before = at_rest(fleet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, fleet, seconds, samples)
            await load.run(seconds)
            nursery.cancel_scope.cancel()
        left = await come_to_rest(fleet, before)
    finally:
        codes = fleet.stop()
    report(load, samples, fleet)
    found = broken_promises(load.ledger, fleet.executions()) + grown(samples) + left
    found += [f"{name} ended with {code}" for name, code in codes.items() if code not in (0, -15)]
    if "Traceback" in (errors := fleet.errors.read_text()):
        found.append("a service printed a traceback:\n" + errors[errors.index("Traceback") :][:3000])
    return found


def main() -> int:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pyroxfer-soak-") as work:
        found = trio.run(until_signalled, soak, options.minutes * 60, options.seed, options.workers, Path(work))
    print("\n".join(found[:50]) or "nothing lost, nothing run twice, nothing grown")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
