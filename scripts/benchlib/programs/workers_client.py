"""Calls over many connections, from two processes. Usage: workers_client.py URI WORK_S SECONDS"""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import trio

sys.path.append(str(Path(__file__).parents[2] / "sharedlib"))
from children import END_WITH_PARENT

from pyroxfer_core import Proxy

PROCESSES, CONNECTIONS = 2, 16


async def call_for(uri: str, work_s: float, seconds: float) -> tuple[int, float]:
    count = 0

    async def call(proxy: Proxy, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await proxy.work(work_s)
            count += 1

    proxies = [Proxy(uri) for _ in range(CONNECTIONS)]
    for proxy in proxies:
        await proxy.work(0.0)
    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for proxy in proxies:
            nursery.start_soon(call, proxy, begin + seconds)
    took = time.perf_counter() - begin
    for proxy in proxies:
        proxy._pyroRelease()
    return count, took


def run(uri: str, work_s: float, seconds: float) -> tuple[int, float]:
    return trio.run(call_for, uri, work_s, seconds)


if __name__ == "__main__":
    arguments = (sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
    with ProcessPoolExecutor(PROCESSES, initializer=END_WITH_PARENT) as pool:
        done = [future.result() for future in [pool.submit(run, *arguments) for _ in range(PROCESSES)]]
    print(json.dumps({"calls": sum(calls for calls, _ in done), "seconds": max(took for _, took in done)}))
