#!/usr/bin/env python3
"""Throw damaged sessions at a live daemon for as long as you like; run it with PYTHONPATH=core.

    scripts/fuzz_daemon.py --count 100000 --seed 7

Each session is reproducible from the seed and its number. Fails (exit 1) when the daemon logs a surprise, keeps a
connection, or does not serve a well-behaved client any more.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from random import Random

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.append(str(Path(__file__).resolve().parent / "sharedlib"))

from doubles import damaged_session, raw_client
from numbers_wanted import at_least

from pyroxfer_core import Daemon, Proxy, Settings, expose


@expose
class Target:
    """What the sessions call."""

    async def echo(self, value: object) -> object:
        return value

    def add(self, first: int, second: int) -> int:
        return first + second


class Surprises(logging.Handler):
    """Counts log records that must not appear, whatever a peer sends."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


async def campaign(count: int, seed: int) -> list[str]:
    """Run the sessions; the surprises, each with the number of its session."""
    surprises = Surprises()
    logging.getLogger("pyroxfer").addHandler(surprises)
    found: list[str] = []
    async with Daemon(settings=Settings(connect_timeout_s=2, shutdown_grace_s=0)) as daemon:
        uri = daemon.register(Target(), "thing")
        async with Proxy(uri) as bystander:
            for number in range(count):
                async with raw_client(daemon.location) as client:
                    with trio.move_on_after(10) as limit:
                        await client.say_all(damaged_session(Random(f"{seed} {number}")))
                if limit.cancelled_caught:
                    found.append(f"session {number}: no end within 10 s")
                if surprises.seen:
                    found.extend(f"session {number}: {text}" for text in surprises.seen)
                    surprises.seen.clear()
                if number % 100 == 0:
                    await bystander.add(1, 1)
            await trio.sleep(0.1)
            if daemon.statistics().connections != 1:
                found.append(f"{daemon.statistics().connections - 1} connections were kept")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=at_least(int, 1), default=10_000, help="sessions to run")
    parser.add_argument("--seed", type=int, default=1, help="where the damage comes from")
    options = parser.parse_args()
    found = trio.run(campaign, options.count, options.seed)
    print("\n".join(found) or f"{options.count} damaged sessions, no surprise")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
