"""One of several ways to call the object of `ways_server.py`, with the blocking proxy of one of three libraries.

Usage: ways_client.py Pyro5|Pyro4|ours URI SERIALIZER SECONDS WAY [THREADS]

Prints how many of them were done in how many seconds; `call` also the median and the 99th percentile in microseconds.
"""

import json
import statistics
import sys
import threading
import time

library, uri, serializer, seconds, way = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5]
number = int(sys.argv[6]) if len(sys.argv) > 6 else 1
if library == "ours":
    import pyroxfer_core.blocking as api
elif library == "Pyro4":
    import Pyro4 as api
else:
    import Pyro5.api as api
api.config.SERIALIZER = serializer
BATCH = 100
DATA = bytes(5 * 2**20)


def repeat(once, worth=1):
    """Run again and again; how many were done, and in how many seconds."""
    for _ in range(3):
        once()
    done, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        once()
        done += worth
    return {"calls": done, "seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}


def call(proxy):
    """Callers with a proxy each. Nobody but them runs while there is one only."""
    ready, results = threading.Barrier(number), []

    def work():
        with api.Proxy(uri) as own:
            for _ in range(50):
                own.add(1, 2)
            ready.wait()
            times, end = [], time.perf_counter() + seconds
            now = time.perf_counter()
            while now < end:
                own.add(1, 2)
                before, now = now, time.perf_counter()
                times.append(now - before)
            results.append(times)

    cpu = time.process_time()
    workers = [threading.Thread(target=work) for _ in range(number - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    took = sorted(moment for times in results for moment in times)
    return {
        "calls": len(took),
        "seconds": seconds,
        "cpu_s": time.process_time() - cpu,
        "p50_us": statistics.median(took) * 1e6,
        "p99_us": took[len(took) * 99 // 100] * 1e6,
    }


def oneway(proxy):
    """One-way calls, until all of them have run."""

    def hundred():
        wanted = proxy.count() + BATCH
        for index in range(BATCH):
            proxy.note(index)
        while proxy.count() < wanted:
            time.sleep(0)

    return repeat(hundred, BATCH)


def batch(proxy):
    def hundred():
        calls = api.BatchProxy(proxy) if hasattr(api, "BatchProxy") else api.batch(proxy)
        for index in range(BATCH):
            calls.add(index, 2)
        assert sum(1 for _ in calls()) == BATCH

    return repeat(hundred, BATCH)


def large(proxy):
    def once():
        assert len(proxy.echo(DATA)) == len(DATA)

    return repeat(once)


def connect(_):
    def once():
        with api.Proxy(uri) as fresh:
            fresh._pyroBind()

    return repeat(once)


with api.Proxy(uri) as proxy:
    ways = {"call": call, "oneway": oneway, "batch": batch, "large": large, "connect": connect}
    print(json.dumps(ways[way](proxy)))
