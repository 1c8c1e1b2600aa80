"""Our clients looking names up. Usage: ns_client.py URI SECONDS blocking|LOOKUPS_IN_FLIGHT ENTRIES"""

import json
import sys
import time

import trio

from pyroxfer_core import Proxy
from pyroxfer_core.blocking import Proxy as BlockingProxy

uri, seconds, how, entries = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
count = 0


def blocking() -> None:
    global count
    with BlockingProxy(uri) as ns:
        assert ns.lookup("bench.7").object == "thing"
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            ns.lookup(f"bench.{count * 7919 % entries}")
            count += 1


async def concurrent(in_flight: int) -> None:
    async with Proxy(uri) as ns, trio.open_nursery() as nursery:
        assert (await ns.lookup("bench.7")).object == "thing"
        until = time.perf_counter() + seconds

        async def look_up() -> None:
            global count
            while time.perf_counter() < until:
                await ns.lookup(f"bench.{count * 7919 % entries}")
                count += 1

        for _ in range(in_flight):
            nursery.start_soon(look_up)


begin, cpu = time.perf_counter(), time.process_time()
if how == "blocking":
    blocking()
else:
    trio.run(concurrent, int(how))
print(json.dumps({"calls": count, "seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}))
