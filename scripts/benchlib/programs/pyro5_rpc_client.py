"""Stock Pyro5 calling add(1, 2). Usage: pyro5_rpc_client.py URI SERIALIZER SECONDS THREADS

Each thread has a proxy, so a connection, of its own. Prints the calls of all threads and the seconds they took.
"""

import json
import sys
import threading
import time

import Pyro5.api

uri, serializer, seconds, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
Pyro5.api.config.SERIALIZER = serializer
counts = [0] * threads
ready = threading.Barrier(threads + 1)
stop = threading.Event()


def call(index):
    with Pyro5.api.Proxy(uri) as proxy:
        for _ in range(50):
            assert proxy.add(1, 2) == 3
        ready.wait()
        count = 0
        while not stop.is_set():
            for _ in range(20):  # as in all clients here: looking at the time costs no call much
                proxy.add(1, 2)
            count += 20
        counts[index] = count


def call_alone():
    """No second thread for a single client: it would cost it the interpreter's lock."""
    with Pyro5.api.Proxy(uri) as proxy:
        for _ in range(200):
            assert proxy.add(1, 2) == 3
        count, begin, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            for _ in range(20):
                proxy.add(1, 2)
            count += 20
        return count, time.perf_counter() - begin, time.process_time() - cpu


def call_together():
    workers = [threading.Thread(target=call, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts), time.perf_counter() - begin, time.process_time() - cpu


calls, took, cpu_s = call_alone() if threads == 1 else call_together()
print(json.dumps({"calls": calls, "seconds": took, "cpu_s": cpu_s}))
