"""Stock Pyro5 looking names up. Usage: pyro5_ns_client.py URI SECONDS THREADS ENTRIES

Each thread has a connection of its own. Prints the lookups of all threads and the seconds they took.
"""

import json
import sys
import threading
import time

import Pyro5.api

uri, seconds, threads, entries = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
counts = [0] * threads
ready = threading.Barrier(threads + 1)
stop = threading.Event()


def look_up(index):
    with Pyro5.api.Proxy(uri) as ns:
        assert ns.lookup("bench.7").object == "thing"
        ready.wait()
        count = 0
        while not stop.is_set():
            ns.lookup(f"bench.{count * 7919 % entries}")
            count += 1
        counts[index] = count


workers = [threading.Thread(target=look_up, args=(index,)) for index in range(threads)]
for worker in workers:
    worker.start()
ready.wait()
begin, cpu = time.perf_counter(), time.process_time()
time.sleep(seconds)
stop.set()
for worker in workers:
    worker.join()
took, used = time.perf_counter() - begin, time.process_time() - cpu
print(json.dumps({"calls": sum(counts), "seconds": took, "cpu_s": used}))
