"""Blob calls through a dispatcher, 64 in flight.

Usage: scale_blobs.py URI topics|members|keys COUNT SECONDS
To each of so many topics in turn; to one topic with so many back ends; or to one, every call with a key of its own.
Connections to the back ends are made before the time runs.
"""

import itertools
import json
import sys
import time

import trio

from pyroxfer_core import Proxy, SerializedBlob

uri, way, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
IN_FLIGHT = 64
INFO = {
    "topics": lambda number: f"topic-{number % count}",
    "members": lambda _: "topic-0",
    "keys": lambda number: ("topic-0", f"key-{number}"),
}[way]
WARM_UP = {"topics": 2, "members": 4, "keys": 4}[way] * count
"""Calls; where chance chooses the back end, a few of them are not connected yet when the time runs."""


async def main() -> None:
    async with Proxy(uri) as dispatcher:
        turns = itertools.count()

        async def call_until(end: float, least: int) -> None:
            while (number := next(turns)) < least or time.perf_counter() < end:
                assert await dispatcher.process(SerializedBlob(INFO(number), [number])) == number

        async def all_call(end: float, least: int) -> int:
            before = next(turns)
            async with trio.open_nursery() as nursery:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(call_until, end, before + least)
            return next(turns) - before - IN_FLIGHT - 1

        await all_call(0, WARM_UP)
        print("ready", flush=True)
        sys.stdin.readline()
        begin, cpu = time.perf_counter(), time.process_time()
        calls = await all_call(begin + seconds, 0)
        print(
            json.dumps({"calls": calls, "seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu})
        )


trio.run(main)
