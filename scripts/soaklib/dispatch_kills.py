"""Calls through a dispatcher whose back ends, and which itself, are killed again and again: what ran, and how often?

Every call has a number, which its back end notes on disk before it answers. At the end each outcome is held against
the notes: NotSent never ran, Executed ran once, Unknown at most once, and no call without an outcome.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio
from dispatch_kills_arguments import parser
from fleet import HERE, Service, counters_three_ways, until_signalled
from ports import free_ports

from pyroxfer_core import Proxy, SerializedBlob
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError

BACKENDS = 3
CALLERS = 4
"""For each way through the dispatcher."""
WAYS = ("blob", "pinned", "spread")
KILL_EVERY_S = 1.0
"""Each of them, not counting the time it takes to start again."""
CALL_DEADLINE_S = 20.0
ALLOWED = {"NotSent": {0}, "Executed": {1}, "Unknown": {0, 1}}


class Campaign:
    """One run: back ends at fixed places, a dispatcher before them, callers, and a killer."""

    def __init__(self, work: Path, count: int, seed: int) -> None:
        *ports, own = free_ports(BACKENDS + 1)
        self._work = work
        self._count = count
        self._seed = seed
        self._numbers = itertools.count()
        self._logs = [work / f"{number}.log" for number in range(BACKENDS)]
        self._place = f"127.0.0.1:{own}"
        self.outcomes: dict[int, str] = {}
        config = work / "dispatcher.toml"
        config.write_text(self._config(ports))
        errors = work / "errors.log"
        self._backends = [
            Service(
                f"b{number}",
                [sys.executable, str(HERE / "counter.py"), f"127.0.0.1:{port}", str(log)],
                victim=True,
                errors=errors,
            )
            for number, (port, log) in enumerate(zip(ports, self._logs, strict=True))
        ]
        command = [sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()"]
        self._dispatcher = Service("dispatcher", [*command, "run", "-c", str(config)], victim=True, errors=errors)
        self.victims = [*self._backends, self._dispatcher]

    def _config(self, ports: list[int]) -> str:
        return f'listen = "{self._place}"\n{counters_three_ways(ports)}'

    async def run(self) -> None:
        """Until so many calls have ended."""
        for victim in self.victims:
            await trio.to_thread.run_sync(victim.start)
        try:
            async with trio.open_nursery() as killers:
                for victim in self.victims:
                    killers.start_soon(self._kill, victim, Random(f"{self._seed} {victim.name}"))
                async with trio.open_nursery() as callers:
                    for way in WAYS * CALLERS:
                        callers.start_soon(self._call_until_done, way)
                killers.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                for victim in self.victims:
                    await trio.to_thread.run_sync(victim.stop)

    async def _kill(self, victim: Service, random: Random) -> None:
        """kill -9, and anew at the same place."""
        while True:
            await trio.sleep(random.uniform(0.5, 1.5) * KILL_EVERY_S)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(victim.kill)
                await trio.to_thread.run_sync(victim.start)

    async def _call_until_done(self, way: str) -> None:
        while len(self.outcomes) < self._count:
            try:
                async with self._proxy(way) as proxy:
                    while len(self.outcomes) < self._count:
                        await self._call(proxy, way)
            except (PyroError, OSError):
                await trio.sleep(0.02)  # nobody listens: nothing was called

    @asynccontextmanager
    async def _proxy(self, way: str) -> AsyncIterator[Proxy]:
        object_id = {"blob": "pyroxfer.dispatcher", "pinned": "counter", "spread": "spread"}[way]
        async with Proxy(f"PYRO:{object_id}@{self._place}") as proxy:
            await proxy._pyroBind()
            yield proxy

    async def _call(self, proxy: Proxy, way: str) -> None:
        """One call, and its outcome. A proxy that lost its connection is replaced."""
        number = next(self._numbers)
        try:
            if way == "blob":
                blob = SerializedBlob("blob", [number, None])
                answer = await proxy.process.options(deadline=CALL_DEADLINE_S)(blob)
            else:
                answer = await proxy.note.options(deadline=CALL_DEADLINE_S)(number)
        except CommunicationError as error:
            self.outcomes[number] = (error.outcome or Outcome.UNKNOWN).value
            raise
        except PyroError as error:
            found = re.match(r"(NotSent|Unknown): ", str(error))
            self.outcomes[number] = found[1] if found else f"unexpected: {error}"
        else:
            self.outcomes[number] = "Executed" if answer == number else f"wrong answer {answer!r}"

    def broken_promises(self) -> list[str]:
        """What must not be: a sentence each."""
        ran = Counter(int(line) for log in self._logs if log.exists() for line in log.read_text().split())
        return broken(self.outcomes, ran)


def broken(outcomes: dict[int, str], ran: Counter[int]) -> list[str]:
    """Calls that ran otherwise than their callers were told."""
    found = [
        f"call {number} is {outcome} and ran {ran[number]} times"
        for number, outcome in outcomes.items()
        if ran[number] not in ALLOWED.get(outcome, ())
    ]
    return found + [f"call {number} ran and has no outcome" for number in ran if number not in outcomes]


def main() -> None:
    chosen = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), chosen.count, chosen.seed)
        trio.run(until_signalled, campaign.run)
        wrong = campaign.broken_promises()
        kills = {victim.name: victim.kills for victim in campaign.victims}
        print(
            f"calls: {len(campaign.outcomes)}; outcomes: {dict(Counter(campaign.outcomes.values()))}; kills: {kills}"
        )
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    print("every call is accounted for; none ran twice" if not wrong else f"{len(wrong)} promises broken")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
