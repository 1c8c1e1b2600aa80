"""What the soak does to its services: calls, blobs, streams, files, names, rubbish and kills, all from one seed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio
from fleet import Fleet

import pyroxfer
from pyroxfer_core import Proxy, SerializedBlob, Settings
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError

MIB = 1024 * 1024
CALL_DEADLINE_S = 10.0
PAUSE_AFTER_ERROR_S = 0.2
LARGEST_FILE = 8 * MIB
KILL_EVERY_S = 4.0
WORKERS_SHARE = 0.4
"""Of the kills, where file servers have several workers: one of those instead of a whole service."""


@dataclass
class Ledger:
    """What the soak was told, to be held against what happened."""

    outcomes: dict[int, str] = field(default_factory=dict)
    """Outcome of each numbered call, by its number."""
    committed: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of each file that a receipt says is in place."""
    errors: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must not be: answers that are not those of the call, files that differ."""


class Load:
    """All the loads on one fleet."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.seed = seed
        self.ledger = Ledger()
        self._numbers = itertools.count()

    async def run(self, seconds: float) -> None:
        """Everything at once for this long; calls that are running may end."""
        end = trio.current_time() + seconds
        loads: list[Callable[[Random], Awaitable[None]]] = [
            *(self._calling(place, name) for place in self.fleet.counters for name in ("note", "note_in_thread")),
            *(self._calling_together(place) for place in self.fleet.counters),
            *(self._streaming(place) for place in self.fleet.counters),
            *(self._moving(number) for number in range(2)),
            *(self._moving(number) for number in range(2)),
            self._dispatched,
            self._dispatched,
            self._naming,
            self._rubbish,
        ]
        async with trio.open_nursery() as nursery:
            for number, load in enumerate(loads):
                nursery.start_soon(self._until, end, load, Random(f"{self.seed} {number}"))
            nursery.start_soon(self._kill_until, end, Random(f"{self.seed} kills"))

    async def _until(self, end: float, load: Callable[[Random], Awaitable[None]], random: Random) -> None:
        while trio.current_time() < end:
            try:
                await load(random)
            except (PyroError, OSError) as error:
                self.ledger.errors[type(error).__name__] += 1
                await trio.sleep(PAUSE_AFTER_ERROR_S)

    async def _kill_until(self, end: float, random: Random) -> None:
        while trio.current_time() + KILL_EVERY_S < end:
            await trio.sleep(random.uniform(0.5, 2 * KILL_EVERY_S))
            if self.fleet.workers > 1 and random.random() < WORKERS_SHARE:
                self.fleet.steady.kill_worker(random)
                continue
            service = random.choice(self.fleet.victims)
            service.kill()
            await trio.sleep(random.uniform(0.0, 1.0))
            await trio.to_thread.run_sync(service.start)

    # --- calls --------------------------------------------------------------------------------------------------

    async def _numbered(self, what: str, call: Callable[[int], Awaitable[object]]) -> None:
        """One call with a number of its own; its outcome goes into the ledger."""
        number = next(self._numbers)
        try:
            answer = await call(number)
        except CommunicationError as error:
            self.ledger.outcomes[number] = (error.outcome or Outcome.UNKNOWN).value
            raise
        except PyroError as error:
            self.ledger.outcomes[number] = told_by_text(str(error))
            raise
        self.ledger.outcomes[number] = Outcome.EXECUTED.value
        self.ledger.done[what] += 1
        if answer != number:
            self.ledger.wrong.append(f"{what}: call {number} was answered with {answer!r}")

    def _calling(self, place: str, method: str) -> Callable[[Random], Awaitable[None]]:
        async def load(random: Random) -> None:
            async with Proxy(f"PYRO:counter@{place}") as proxy:
                for _ in range(random.randint(1, 300)):
                    remote = getattr(proxy, method).options(deadline=CALL_DEADLINE_S)
                    await self._numbered(method, remote)

        return load

    def _calling_together(self, place: str) -> Callable[[Random], Awaitable[None]]:
        """Many calls at once over one connection."""

        async def load(random: Random) -> None:
            async with Proxy(f"PYRO:counter@{place}") as proxy, trio.open_nursery() as nursery:
                for _ in range(random.randint(2, 32)):
                    nursery.start_soon(self._one_of_many, proxy)

        return load

    async def _one_of_many(self, proxy: Proxy) -> None:
        try:
            await self._numbered("together", proxy.note.options(deadline=CALL_DEADLINE_S))
        except PyroError as error:
            self.ledger.errors[type(error).__name__] += 1

    def _streaming(self, place: str) -> Callable[[Random], Awaitable[None]]:
        """Item streams, half of them left early."""

        async def load(random: Random) -> None:
            upto, stop = random.randint(1, 400), random.randint(1, 800)
            async with Proxy(f"PYRO:counter@{place}") as proxy:
                items = []
                with trio.fail_after(CALL_DEADLINE_S):
                    async for item in proxy.count(upto):
                        items.append(item)
                        if len(items) == stop:
                            break
            self.ledger.done["stream"] += 1
            if items != list(range(min(upto, stop))):
                self.ledger.wrong.append(f"stream of {upto}: {items}")

        async def bounded(random: Random) -> None:
            try:
                await load(random)
            except trio.TooSlowError:
                self.ledger.errors["a stream took too long"] += 1

        return bounded

    async def _dispatched(self, random: Random) -> None:
        padding = random.randbytes(random.choice((10, 1000, 100_000)))
        settings = Settings(serializer="msgpack")
        async with Proxy(f"PYRO:pyroxfer.dispatcher@{self.fleet.dispatcher}", settings=settings) as proxy:
            for _ in range(random.randint(1, 50)):
                await self._numbered(
                    "blob",
                    lambda number: proxy.process.options(deadline=CALL_DEADLINE_S)(
                        SerializedBlob("soak", [number, padding])
                    ),
                )

    # --- files, names, rubbish ------------------------------------------------------------------------------------

    def _moving(self, number: int) -> Callable[[Random], Awaitable[None]]:
        """Send a new file, then fetch it, over a channel by lot."""
        place, folder = self.fleet.files[number], self.fleet.folders[number]

        async def load(random: Random) -> None:
            size = int(LARGEST_FILE ** random.random())
            name = f"{next(self._numbers)}"
            source, fetched = self.fleet.work / f"source-{name}", self.fleet.work / f"fetched-{name}"
            source.write_bytes(random.randbytes(size))
            digest = sha256(source)
            channel = random.choice(("auto", "iter", "annot", "raw"))
            try:
                await pyroxfer.send(
                    source, f"{place}/{name}", channel=channel, if_exists="replace", durability="data"
                )
                self.ledger.committed[folder / name] = digest
                self.ledger.done["file sent"] += 1
                await pyroxfer.get(f"{place}/{name}", fetched, channel=channel, durability="none")
                self.ledger.done["file fetched"] += 1
                if sha256(fetched) != digest:
                    self.ledger.wrong.append(f"{fetched} differs from what was sent")
            finally:
                source.unlink()
                fetched.unlink(missing_ok=True)

        return load

    async def _naming(self, random: Random) -> None:
        name = f"name.{random.randint(0, 20)}"
        async with Proxy(f"PYRO:Pyro.NameServer@{self.fleet.names}") as names:
            await names.register(name, f"PYRO:it@192.0.2.1:{random.randint(1, 65535)}")
            await names.lookup(name)
            await names.list(prefix="name.")
        self.ledger.done["name"] += 1
        await trio.sleep(0.02)

    async def _rubbish(self, random: Random) -> None:
        """A peer that connects, says something senseless and leaves, sometimes without a word.

        The server may hang up in the middle of it, and the one that is killed just now does.
        """
        place = random.choice((*self.fleet.files, *self.fleet.counters, self.fleet.dispatcher, self.fleet.names))
        host, port = place.split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            start = random.choice((b"", b"PYRO", b"PYRO\x01\xf6", b"PYRO\x00\x30", b"PXRW"))
            with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(start + random.randbytes(random.randint(0, 200)))
                await trio.sleep(random.uniform(0, 0.05))
        self.ledger.done["rubbish"] += 1


def told_by_text(text: str) -> str:
    """The outcome in the text of an answer that a dispatcher gave by itself."""
    return next((outcome.value for outcome in Outcome if text.startswith(outcome.value)), Outcome.EXECUTED.value)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
