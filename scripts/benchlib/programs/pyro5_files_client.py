"""Stock Pyro5 receiving a file. Usage: pyro5_files_client.py URI WAY NAME BYTES TARGET

WAY is regular, iterator, annotation or raw. Uses marshal, the fastest of Pyro5's serializers for bytes.
"""

import json
import socket
import sys
import time

import Pyro5.api

uri, way, name, size, target = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
Pyro5.api.config.SERIALIZER = "marshal"
REGULAR_CHUNK = 10 * 1024 * 1024
RAW_CHUNK = 60_000


def regular(files, write):
    for offset in range(0, size, REGULAR_CHUNK):
        write(files.regular(name, offset, min(REGULAR_CHUNK, size - offset)))


def iterator(files, write):
    for chunk in files.iterator(name, size):
        write(chunk)


def annotation(files, write):
    for length in files.annotation(name, size):
        chunk = Pyro5.api.current_context.response_annotations["FDAT"]
        assert len(chunk) == length
        write(chunk)


def raw(files, write):
    ticket, port = files.raw(name)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(ticket.encode())
        while chunk := connection.recv(RAW_CHUNK):
            write(chunk)


with Pyro5.api.Proxy(uri) as files:
    files._pyroBind()
    begin, cpu = time.perf_counter(), time.process_time()
    with open(target, "wb") as file:
        {"regular": regular, "iterator": iterator, "annotation": annotation, "raw": raw}[way](files, file.write)
        received = file.tell()
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
assert received == size, f"{received} bytes came instead of {size}"
print(json.dumps({"bytes": received, "seconds": seconds, "cpu_s": cpu_s}))
