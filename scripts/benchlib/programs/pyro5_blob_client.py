"""Stock Pyro5 calling a back end with blobs, directly and through a dispatcher by turns.

Usage: pyro5_blob_client.py DIRECT-URI DISPATCHER-URI BYTES CALLS. Prints the median microseconds of both.
"""

import json
import statistics
import sys
import time

import Pyro5.api

Pyro5.api.config.SERIALIZER = "msgpack"
direct_uri, dispatcher_uri, size, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
value = b"x" * size
TURN = 50


def call(proxy):
    begin = time.perf_counter()
    answer = proxy.process(Pyro5.api.SerializedBlob("topic", [value]))
    took = time.perf_counter() - begin
    assert answer == value
    return took * 1e6


with Pyro5.api.Proxy(direct_uri) as direct, Pyro5.api.Proxy(dispatcher_uri) as through:
    times = {"direct": [], "through": []}
    for turn in range(calls // TURN + 1):
        for name, proxy in (("direct", direct), ("through", through)):
            taken = [call(proxy) for _ in range(TURN)]
            if turn:  # the first turn warms up
                times[name] += taken
    print(json.dumps({name: statistics.median(taken) for name, taken in times.items()}))
