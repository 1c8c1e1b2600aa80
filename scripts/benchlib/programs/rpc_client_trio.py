"""Our trio proxy calling add(1, 2). Usage: rpc_client_trio.py URI SERIALIZER|default SECONDS IN_FLIGHT

All calls share one proxy, so one connection.
"""

import json
import sys
import time

import trio

from pyroxfer_core import Proxy, Settings

uri, serializer, seconds, in_flight = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
settings = Settings(serializer=None if serializer == "default" else serializer)


async def call_until(proxy: Proxy, end: float, counts: list[int]) -> None:
    count = 0
    while time.perf_counter() < end:
        for _ in range(20):
            await proxy.add(1, 2)
        count += 20
    counts.append(count)


async def main() -> None:
    async with Proxy(uri, settings=settings) as proxy:
        for _ in range(200):
            assert await proxy.add(1, 2) == 3
        counts: list[int] = []
        begin, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(call_until, proxy, begin + seconds, counts)
        used = time.process_time() - cpu
        print(json.dumps({"calls": sum(counts), "seconds": time.perf_counter() - begin, "cpu_s": used}))


trio.run(main)
