"""A back end that notes each call on disk before it answers. Usage: counter.py HOST:PORT LOG

One line a call, written with one append: what a killed process has noted stays noted, so the log says how often each
call ran, whatever became of its answer.
"""

import contextlib
import os
import signal
import sys

import trio

from pyroxfer_core import Daemon, SerializedBlob, behavior, expose

place, log_path = sys.argv[1:]
host, port = place.rsplit(":", 1)
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


@expose
@behavior(instance_mode="single")
class Counter:
    """Three ways in: a coroutine, a plain function in a thread, and a blob from a dispatcher."""

    async def note(self, number: int) -> int:
        return noted(number)

    def note_in_thread(self, number: int) -> int:
        return noted(number)

    async def process(self, blob: SerializedBlob) -> int:
        number, _ = blob.deserialized()
        return noted(number)

    async def count(self, upto: int):  # type: ignore[no-untyped-def]  # an item stream has no annotation of its own
        for number in range(upto):
            yield number


def noted(number: int) -> int:
    os.write(log, b"%d\n" % number)
    return number


async def main() -> None:
    async with Daemon(host, int(port)) as daemon:
        daemon.register(Counter(), "counter")
        daemon.register(Counter(), "spread")
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print(f"running at {place}", flush=True)
            await anext(signals)


with contextlib.suppress(KeyboardInterrupt):
    trio.run(main)
