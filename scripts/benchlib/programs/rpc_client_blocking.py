"""Our blocking proxy calling add(1, 2). Usage: rpc_client_blocking.py URI SERIALIZER|default SECONDS"""

import json
import sys
import time

from pyroxfer_core.blocking import Proxy, Settings

uri, serializer, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings = Settings(serializer=None if serializer == "default" else serializer)

with Proxy(uri, settings=settings) as proxy:
    for _ in range(200):
        assert proxy.add(1, 2) == 3
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for _ in range(20):
            proxy.add(1, 2)
        count += 20
    used = time.process_time() - cpu
    print(json.dumps({"calls": count, "seconds": time.perf_counter() - begin, "cpu_s": used}))
