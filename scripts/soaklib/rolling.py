"""Rolling restarts under load: five back ends and the dispatcher before them, one after the other, again and again.

Clients of ours, in trio and blocking, and stock Pyro5 clients call all the while, in every way through the
dispatcher. Every call has a number, which its back end notes on disk. For clients of ours every call must be
executed, once. Stock clients may find their connection closed between two calls, and nothing else: that call never
ran.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Final

import trio
from fleet import HERE, Service, counters_three_ways, until_signalled
from ports import free_ports
from rolling_arguments import parser

from pyroxfer_core import Proxy, SerializedBlob, blocking
from pyroxfer_core.errors import CommunicationError, PyroError
from pyroxfer_dispatcher.control import ask_control

BACKENDS: Final = 5
WAYS: Final = ("blob", "pinned", "spread")
BETWEEN_S: Final = 0.2
"""Two restarts, at least."""
DRAIN_TIMEOUT_S: Final = 0.3
CALL_DEADLINE_S: Final = 30.0
STOCK_FIRST: Final = 1_000_000_000
"""Where the numbers of stock clients begin; each has as many."""
KINDS: Final = ("trio", "blocking", "stock")


class Campaign:
    """One run.

    Args:
        count: restarts.
        callers: clients of each kind, for each way.
        peers: a Python with Pyro5; None: no stock clients.
    """

    def __init__(self, work: Path, count: int, seed: int, callers: int, peers: str | None) -> None:
        *ports, own = free_ports(BACKENDS + 1)
        self._count = count
        self._callers = callers
        self._random = Random(seed)
        self._peers = peers
        self._numbers = itertools.count()
        self._place = f"127.0.0.1:{own}"
        self._control = str(work / "control")
        self._logs = [work / f"{number}.log" for number in range(BACKENDS)]
        self._errors = work / "errors.log"
        self._over = threading.Event()
        self._stock: list[subprocess.Popen[str]] = []
        self.told: dict[int, tuple[str, str]] = {}
        """For each call the kind of its client, and what that was told."""
        self.restarts: Counter[str] = Counter()
        self.cut = 0
        """Clients that the dispatchers say they have cut."""
        config = work / "dispatcher.toml"
        config.write_text(self._config(ports))
        self._backends = [
            Service(
                f"b{number}",
                [sys.executable, str(HERE / "counter.py"), f"127.0.0.1:{port}", str(log)],
                victim=True,
                errors=self._errors,
            )
            for number, (port, log) in enumerate(zip(ports, self._logs, strict=True))
        ]
        command = [sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()", "run", "-c", str(config)]
        self._dispatcher = Service("dispatcher", command, victim=True, errors=self._errors)

    def _config(self, ports: list[int]) -> str:
        head = f'listen = "{self._place}"\ncontrol = "{self._control}"\ndrain_timeout = {DRAIN_TIMEOUT_S}\n'
        return head + counters_three_ways(ports)

    # --- the run

    async def run(self) -> None:
        """Restart so many times while everybody calls."""
        async with trio.open_nursery() as nursery:
            for service in (*self._backends, self._dispatcher):
                nursery.start_soon(trio.to_thread.run_sync, service.start)
        try:
            async with trio.open_nursery() as callers:
                for number, way in enumerate(WAYS * self._callers):
                    callers.start_soon(self._call_in_trio, way)
                    callers.start_soon(trio.to_thread.run_sync, self._call_blocking, way)
                    if self._peers is not None:
                        first = STOCK_FIRST * (number + 1)
                        callers.start_soon(trio.to_thread.run_sync, self._call_from_stock, way, first)
                try:
                    await self._restart_all()
                finally:
                    self._over.set()
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()

    async def _restart_all(self) -> None:
        everybody: list[int | None] = [*range(BACKENDS), None]
        done = 0
        while done < self._count:
            for victim in self._random.sample(everybody, len(everybody))[: self._count - done]:
                await trio.sleep(BETWEEN_S)
                await (self._restart_dispatcher() if victim is None else self._restart_backend(victim))
                done += 1
        await trio.sleep(BETWEEN_S + DRAIN_TIMEOUT_S)

    async def _restart_dispatcher(self) -> None:
        """By the command, or by the signal; over when the old process has seen its clients off."""
        pid = (await self._ask("status"))["pid"]
        self.restarts["dispatcher"] += 1
        if self._random.random() < 0.5:
            await self._ask("restart", wait=True)
        else:
            os.kill(pid, signal.SIGUSR2)
        status = await self._ask("status")
        while status["pid"] == pid or status["predecessor"] is not None:
            await trio.sleep(0.02)
            status = await self._ask("status")

    async def _restart_backend(self, number: int) -> None:
        """As the documentation says: drained first, and taken back afterwards. Or just told to end."""
        drains = self._peers is not None or self._random.random() < 0.5
        self.restarts["back end, drained" if drains else "back end"] += 1
        targets = [f"{way}/b{number}" for way in WAYS] if drains else []
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self._drain, target)
        await trio.to_thread.run_sync(self._backends[number].stop)
        await trio.to_thread.run_sync(self._backends[number].start)
        for target in targets:
            await self._ask("undrain", target=target)

    async def _drain(self, target: str) -> None:
        await self._ask("drain", target=target, wait=True)

    async def _ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The last answer to a command. One that comes to a process that is just handing over is repeated."""

        def ask() -> list[dict[str, Any]]:
            return list(ask_control(self._control, {"do": do, **more}))

        for _ in range(10):
            try:
                return (await trio.to_thread.run_sync(ask))[-1]
            except CommunicationError:
                if do == "restart":
                    raise
                await trio.sleep(0.1)
        raise SystemExit(f"no dispatcher answers to {do}")

    async def _stop(self) -> None:
        for process in self._stock:
            process.kill()
        status = await self._ask("status")
        self.cut = status["cut"]
        if status["pid"] != self._dispatcher.pid:
            os.kill(status["pid"], signal.SIGTERM)
        async with trio.open_nursery() as nursery:
            for service in (self._dispatcher, *self._backends):
                nursery.start_soon(trio.to_thread.run_sync, service.stop)

    # --- callers

    async def _call_in_trio(self, way: str) -> None:
        async with Proxy(uri_for(way, self._place)) as proxy:
            while not self._over.is_set():
                number = next(self._numbers)
                try:
                    if way == "blob":
                        blob = SerializedBlob("blob", [number, None])
                        answer = await proxy.process.options(deadline=CALL_DEADLINE_S)(blob)
                    else:
                        answer = await proxy.note.options(deadline=CALL_DEADLINE_S)(number)
                except PyroError as error:
                    self.told[number] = ("trio", f"{way}: {outcome_of(error)}")
                else:
                    self.told[number] = ("trio", "Executed" if answer == number else f"wrong answer {answer!r}")

    def _call_blocking(self, way: str) -> None:
        with blocking.Proxy(uri_for(way, self._place)) as proxy:
            while not self._over.is_set():
                number = next(self._numbers)
                try:
                    if way == "blob":
                        answer = proxy.process(blocking.SerializedBlob("blob", [number, None]))
                    else:
                        answer = proxy.note(number)
                except PyroError as error:
                    self.told[number] = ("blocking", f"{way}: {outcome_of(error)}")
                else:
                    self.told[number] = ("blocking", "Executed" if answer == number else f"wrong answer {answer!r}")
                time.sleep(0.001)  # or it keeps the processor from all others

    def _call_from_stock(self, way: str, first: int) -> None:
        assert self._peers is not None
        command = [self._peers, str(HERE / "stock_caller.py"), way, uri_for(way, self._place), str(first)]
        with (
            self._errors.open("ab") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            self._stock.append(process)
            assert process.stdin is not None and process.stdout is not None
            for line in process.stdout:
                number, told = json.loads(line)
                self.told[number] = ("stock", told)
                if self._over.is_set() and not process.stdin.closed:
                    process.stdin.close()

    # --- what came of it

    def executions(self) -> Counter[int]:
        """How often each call ran."""
        return Counter(int(line) for log in self._logs if log.exists() for line in log.read_text().split())


def uri_for(way: str, place: str) -> str:
    """Where a client of this way connects to."""
    return f"PYRO:{ {'blob': 'pyroxfer.dispatcher', 'pinned': 'counter', 'spread': 'spread'}[way] }@{place}"


def outcome_of(error: PyroError) -> str:
    """What an error says about its call."""
    outcome = error.outcome.value if isinstance(error, CommunicationError) and error.outcome else "no outcome"
    return f"{outcome}: {type(error).__name__}: {error}"


def broken(told: dict[int, tuple[str, str]], ran: Counter[int]) -> list[str]:
    """What must not be: a sentence each."""
    found = []
    for number, (kind, outcome) in told.items():
        allowed = {"Executed": 1, "cut": 0} if kind == "stock" else {"Executed": 1}
        if ran[number] != allowed.get(outcome, -1):
            found.append(f"call {number} of a {kind} client: {outcome}; it ran {ran[number]} times")
    return found + [f"call {number} ran, and its client was told nothing" for number in ran if number not in told]


def main() -> None:
    told = parser()
    chosen = told.parse_args()
    peers = None if chosen.own else os.environ.get("PYROXFER_PEERS")
    if peers is None and not chosen.own:
        told.error("PYROXFER_PEERS must name a Python with Pyro5; or say --own")
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), chosen.count, chosen.seed, chosen.callers, peers)
        trio.run(until_signalled, campaign.run)
        wrong = broken(campaign.told, campaign.executions())
        errors = (Path(folder) / "errors.log").read_text()
    calls = {kind: Counter(told for who, told in campaign.told.values() if who == kind) for kind in KINDS}
    print(f"restarts: {dict(campaign.restarts)}")
    for kind, counts in calls.items():
        print(f"{kind}: {sum(counts.values())} calls, {dict(counts.most_common(8))}")
    print(f"clients that the dispatchers cut between two calls: {campaign.cut}")
    if calls["stock"]["cut"] > campaign.cut:
        wrong.append(f"{calls['stock']['cut']} stock clients were cut, and {campaign.cut} counted")
    for line in (*wrong[:20], *errors.splitlines()[-20 if wrong else 0 :][:20]):
        print(line)
    print("nobody noticed" if not wrong else f"{len(wrong)} promises broken")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
