"""Many watch one name server, each over a connection of its own. Usage: ns_watchers.py URI WATCHERS CHANGES

Prints how long it took from a registration until every watcher had seen it (median, in milliseconds).
"""

import json
import statistics
import sys
import time

import trio

from pyroxfer_core import Proxy, Settings

uri, watchers, changes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seen = 0
all_seen = trio.Event()
watching = 0
all_watch = trio.Event()


async def watch(limit: trio.CapacityLimiter) -> None:
    global seen, watching, all_seen
    async with Proxy(uri, settings=Settings(connect_timeout_s=60)) as ns:
        async with limit:
            await ns._pyroBind()
        async for item in ns.watch(prefix="watched."):
            if not item["entries"]:
                watching += 1
                if watching == watchers:
                    all_watch.set()
                continue
            seen += 1
            if seen == watchers:
                all_seen.set()


async def main() -> None:
    global seen, all_seen
    took = []
    limit = trio.CapacityLimiter(50)
    async with trio.open_nursery() as nursery, Proxy(uri) as ns:
        for _ in range(watchers):
            nursery.start_soon(watch, limit)
        await all_watch.wait()
        for number in range(changes):
            seen, all_seen = 0, trio.Event()
            begin = time.perf_counter()
            await ns.register("watched.name", f"PYRO:thing@localhost:{number + 1}")
            await all_seen.wait()
            took.append((time.perf_counter() - begin) * 1000)
        nursery.cancel_scope.cancel()
    print(json.dumps({"ms": statistics.median(took), "worst_ms": max(took)}))


trio.run(main)
