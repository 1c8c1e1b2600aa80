"""Break connections at every byte of calls, in either direction, and compare what callers are told with what ran.

A call that was NotSent ran never, one that was Executed, or simply worked, once, one that is Unknown at most once.
A stock client is told nothing, but none of its calls runs twice either. A call with a key runs at most once, although
it is sent again; one of an idempotent method at most three times.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio
from cuts_arguments import parser
from doubles import FaultProxy, fault_proxy
from sides import Calling, Counting, pairs

SETTLE_S: Final = 0.3
"""How long a daemon may take to run what it got before its connection broke."""
AT_ONCE_S: Final = 60.0
"""How long one call may take."""
DIRECTIONS: Final = ("to_server", "to_client")
MOST_OFFSETS: Final = 1_000
"""Of one call and direction: of longer ones, some are chosen."""
ALLOWED: Final = {"value": {1}, "executed": {1}, "notsent": {0}, "unknown": {0, 1}, "error": {0, 1}}
_AT_MOST_THRICE: Final = {"value": {1, 2, 3}, "executed": {1, 2, 3}, "notsent": {0}, "unknown": {0, 1, 2, 3}}
_ONE_WAY: Final = {"value": {0, 1}, "notsent": {0}, "unknown": {0, 1}, "error": {0, 1}}
"""Nobody waits for a one-way call: what is told is only whether it left."""


def allowed(method: str, outcome: str) -> set[int]:
    """How often a call may have run."""
    special = {"look": _AT_MOST_THRICE, "note": _ONE_WAY}
    return special.get(method, ALLOWED).get(outcome, set())


@dataclass
class Report:
    """What became of the cuts of one pair."""

    name: str
    places: int = 0
    """Different places at which its calls can be cut."""
    cuts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.name}: {self.cuts} cuts of {self.places} places ({told}), {len(self.violations)} violations"


async def _size_of(client: Calling, relay: FaultProxy, method: str) -> tuple[int, int]:
    """Bytes of a whole conversation, in both directions."""
    relay.cut_next()
    await client.call(relay.location, method, f"whole {method}")
    await trio.sleep(0.02)
    return relay.counted[0], relay.counted[1]


async def places_of(client: Calling, relay: FaultProxy, random: Random) -> list[tuple[str, str, int]]:
    """Method, direction and offset of every cut that can be made, in an order that the seed gives."""
    found: list[tuple[str, str, int]] = []
    for method in client.methods:
        for direction, size in zip(DIRECTIONS, await _size_of(client, relay, method), strict=True):
            offsets = range(size + 1)
            chosen = offsets if size < MOST_OFFSETS else sorted(random.sample(offsets, MOST_OFFSETS))
            found += [(method, direction, offset) for offset in chosen]
    random.shuffle(found)
    return found


async def cut_pair(name: str, server: Counting, client: Calling, count: int | None, seed: int) -> Report:
    """Make ``count`` cuts, or all."""
    report = Report(name)
    told: dict[str, tuple[str, str]] = {}
    async with fault_proxy(server.location) as relay:
        places = await places_of(client, relay, Random(f"{seed} {name}"))
        report.places = len(places)
        for number in range(len(places) if count is None else count):
            method, direction, offset = places[number % len(places)]
            call = f"{number} {method} {direction} {offset}"
            relay.cut_next(**{direction: offset})
            with trio.move_on_after(AT_ONCE_S) as limit:
                told[call] = method, await client.call(relay.location, method, call)
            if limit.cancelled_caught:
                report.violations.append(f"{name}: {call}: no end within {AT_ONCE_S:g} s")
            report.cuts += 1
    await trio.sleep(SETTLE_S)
    executed = await server.counts()
    for call, (method, outcome) in told.items():
        report.outcomes[outcome] += 1
        if executed.get(call, 0) not in allowed(method, outcome):
            report.violations.append(f"{name}: {call}: told {outcome}, ran {executed.get(call, 0)} times")
    return report


async def campaign(count: int | None, seed: int, wanted: str = "") -> list[Report]:
    """Cut the calls of all pairs whose names contain ``wanted``, ``count`` times together."""
    chosen = {name: sides for name, sides in pairs().items() if wanted in name}
    if not chosen:
        sys.exit(f"no pair has {wanted!r} in its name; there are: {'; '.join(pairs())}")
    reports = []
    for number, (name, (daemon, client)) in enumerate(chosen.items()):
        share = None if count is None else (count * (number + 1)) // len(chosen) - (count * number) // len(chosen)
        async with daemon as server, client as caller:
            reports.append(await cut_pair(name, server, caller, share, seed))
        print(reports[-1], flush=True)
    return reports


def main() -> int:
    options = parser().parse_args()
    reports = trio.run(campaign, options.count, options.seed, options.pair)
    violations = [violation for report in reports for violation in report.violations]
    print("\n".join([*violations, f"{sum(report.cuts for report in reports)} cuts, {len(violations)} violations"]))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
