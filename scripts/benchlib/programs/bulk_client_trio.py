"""Our trio proxy with its defaults: 5 MiB a call, or items.

Usage: bulk_client_trio.py URI take|give|items|plain_items SECONDS
"""

import json
import os
import sys
import time

import trio

from pyroxfer_core import Proxy

uri, way, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
DATA = os.urandom(5 * 1024 * 1024)


async def main() -> None:
    async with Proxy(uri) as proxy:
        assert await proxy.take(DATA) == len(DATA)
        assert await proxy.give() == DATA
        count, begin, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            if way == "take":
                await proxy.take(DATA)
                count += 1
            elif way == "give":
                await proxy.give()
                count += 1
            else:
                async for _ in getattr(proxy, way)(1000):
                    count += 1
        used, took = time.process_time() - cpu, time.perf_counter() - begin
        size = count * len(DATA) if way in ("take", "give") else 0
        print(json.dumps({"calls": count, "bytes": size, "seconds": took, "cpu_s": used}))


trio.run(main)
