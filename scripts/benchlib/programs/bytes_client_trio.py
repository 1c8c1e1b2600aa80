"""Our trio proxy with its defaults and 5 MiB a call. Usage: bytes_client_trio.py URI take|give SECONDS"""

import json
import os
import sys
import time

import trio

from pyroxfer_core import Proxy

uri, direction, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
DATA = os.urandom(5 * 1024 * 1024)


async def main() -> None:
    async with Proxy(uri) as proxy:
        assert await proxy.take(DATA) == len(DATA)
        assert await proxy.give() == DATA
        count, begin, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            if direction == "take":
                await proxy.take(DATA)
            else:
                await proxy.give()
            count += 1
        used, took = time.process_time() - cpu, time.perf_counter() - begin
        print(json.dumps({"calls": count, "bytes": count * len(DATA), "seconds": took, "cpu_s": used}))


trio.run(main)
