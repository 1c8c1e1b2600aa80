"""Our trio proxy calling with a blob of 1 KB. Usage: blob_client_trio.py URI SECONDS IN_FLIGHT

All calls share one proxy, so one connection.
"""

import json
import sys
import time

import trio

from pyroxfer_core import Proxy, SerializedBlob

uri, seconds, in_flight = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
TEXT = "x" * 1024


async def call_until(proxy: Proxy, end: float, counts: list[int]) -> None:
    count = 0
    while time.perf_counter() < end:
        for _ in range(20):
            await proxy.process(SerializedBlob("topic", TEXT))
        count += 20
    counts.append(count)


async def main() -> None:
    async with Proxy(uri) as proxy:
        for _ in range(200):
            assert await proxy.process(SerializedBlob("topic", TEXT)) == len(TEXT)
        counts: list[int] = []
        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(call_until, proxy, begin + seconds, counts)
        print(json.dumps({"calls": sum(counts), "seconds": time.perf_counter() - begin}))


trio.run(main)
