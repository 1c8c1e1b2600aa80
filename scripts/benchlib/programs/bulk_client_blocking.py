"""Our blocking proxy with its defaults: 5 MiB a call, or items.

Usage: bulk_client_blocking.py URI take|give|items|plain_items SECONDS
"""

import json
import os
import sys
import time

from pyroxfer_core.blocking import Proxy

uri, way, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
DATA = os.urandom(5 * 1024 * 1024)

with Proxy(uri) as proxy:
    assert proxy.take(DATA) == len(DATA)
    assert proxy.give() == DATA
    assert sum(proxy.items(100)) == sum(range(100))
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        if way == "take":
            proxy.take(DATA)
            count += 1
        elif way == "give":
            proxy.give()
            count += 1
        else:
            count += sum(1 for _ in getattr(proxy, way)(1000))
    used, took = time.process_time() - cpu, time.perf_counter() - begin
    size = count * len(DATA) if way in ("take", "give") else 0
    print(json.dumps({"calls": count, "bytes": size, "seconds": took, "cpu_s": used}))
