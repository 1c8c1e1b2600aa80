"""Other libraries calling add(1, 2). Usage: others_client.py rpyc|grpc|zerorpc URI SECONDS IN_FLIGHT

grpc: tasks on one channel; rpyc and zerorpc: one caller only (IN_FLIGHT is 1), or rpyc's own async calls.
"""

import asyncio
import json
import sys
import time

library, uri, seconds, in_flight = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
host, port = uri.rpartition("@")[2].split(":")


def measured(call, at_once=1):
    """Of something that makes so many calls: their number, the seconds, and the processor seconds."""
    turns = max(1, 20 // at_once)
    for _ in range(10 * turns):
        call()
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for _ in range(turns):
            call()
        count += turns * at_once
    return count, time.perf_counter() - begin, time.process_time() - cpu


def with_rpyc():
    import rpyc

    connection = rpyc.connect(host, int(port))
    if in_flight == 1:
        add = connection.root.add
        return measured(lambda: add(1, 2))
    add = rpyc.async_(connection.root.add)

    def round_of_calls():
        for answer in [add(1, 2) for _ in range(in_flight)]:
            answer.wait()

    return measured(round_of_calls, in_flight)


def with_grpc():
    import grpc
    import msgpack

    async def main():
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            add = channel.unary_unary("/Adder/Add")
            request = msgpack.packb([1, 2])
            for _ in range(200):
                assert msgpack.unpackb(await add(request)) == 3
            counts = []

            async def caller(end):
                count = 0
                while time.perf_counter() < end:
                    for _ in range(20):
                        msgpack.unpackb(await add(msgpack.packb([1, 2])))
                    count += 20
                counts.append(count)

            begin, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(caller(begin + seconds) for _ in range(in_flight)))
            return sum(counts), time.perf_counter() - begin, time.process_time() - cpu

    return asyncio.run(main())


def with_zerorpc():
    import zerorpc

    client = zerorpc.Client()
    client.connect(f"tcp://{host}:{port}")
    return measured(lambda: client.add(1, 2))


calls, took, cpu_s = {"rpyc": with_rpyc, "grpc": with_grpc, "zerorpc": with_zerorpc}[library]()
print(json.dumps({"calls": calls, "seconds": took, "cpu_s": cpu_s}))
