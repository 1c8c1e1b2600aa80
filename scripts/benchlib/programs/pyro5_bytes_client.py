"""Stock Pyro5 and 5 MiB a call, msgpack. Usage: pyro5_bytes_client.py URI take|give SECONDS"""

import json
import os
import sys
import time

import Pyro5.api

uri, direction, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
Pyro5.api.config.SERIALIZER = "msgpack"
DATA = os.urandom(5 * 1024 * 1024)

with Pyro5.api.Proxy(uri) as proxy:
    assert proxy.take(DATA) == len(DATA)
    assert proxy.give() == DATA
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        if direction == "take":
            proxy.take(DATA)
        else:
            proxy.give()
        count += 1
    used, took = time.process_time() - cpu, time.perf_counter() - begin
    print(json.dumps({"calls": count, "bytes": count * len(DATA), "seconds": took, "cpu_s": used}))
