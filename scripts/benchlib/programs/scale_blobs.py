"""Blob calls through a dispatcher to each of many topics in turn, 64 in flight.

Usage: scale_blobs.py URI TOPICS SECONDS
The connection to every back end is made before the time runs.
"""

import itertools
import json
import sys
import time

import trio

from pyroxfer_core import Proxy, SerializedBlob

uri, topics, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
IN_FLIGHT = 64


async def main() -> None:
    async with Proxy(uri) as dispatcher:
        turns = itertools.count()

        async def call_until(end: float, least: int) -> None:
            while (number := next(turns)) < least or time.perf_counter() < end:
                assert await dispatcher.process(SerializedBlob(f"topic-{number % topics}", [number])) == number

        async def all_call(end: float, least: int) -> int:
            before = next(turns)
            async with trio.open_nursery() as nursery:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(call_until, end, before + least)
            return next(turns) - before - IN_FLIGHT - 1

        await all_call(0, 2 * topics)
        print("ready", flush=True)
        sys.stdin.readline()
        begin = time.perf_counter()
        calls = await all_call(begin + seconds, 0)
        print(json.dumps({"calls": calls, "seconds": time.perf_counter() - begin}))


trio.run(main)
