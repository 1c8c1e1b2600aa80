"""HTTP callers, each on its own connection, kept as long as the server keeps it.

Usage: http_client.py URL SECONDS CALLERS
"""

import json
import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

url, seconds, callers = urlsplit(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
REQUEST = (
    f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: keep-alive\r\n"
    "Accept: application/json\r\n\r\n"
).encode()
EXPECTED = b'"12"'
waiting = selectors.DefaultSelector()
calls = connections = 0


class Caller:
    """One request after the other."""

    def __init__(self):
        self.socket = None
        self.ask()

    def ask(self):
        global connections
        if self.socket is None:
            connections += 1
            self.socket = socket.create_connection((url.hostname, url.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting.register(self.socket, selectors.EVENT_READ, self)
        self.received = b""
        self.socket.sendall(REQUEST)

    def answer(self):
        global calls
        data = self.socket.recv(65536)
        self.received += data
        head, mark, body = self.received.partition(b"\r\n\r\n")
        if data and (not mark or len(body) < len(EXPECTED)):
            return
        if head.split(b" ", 2)[1] != b"200" or body != EXPECTED:
            sys.exit(f"unexpected answer: {self.received!r}")
        calls += 1
        if head.startswith(b"HTTP/1.0") or b"onnection: close" in head:
            waiting.unregister(self.socket)
            self.socket.close()
            self.socket = None
        self.ask()


everybody = [Caller() for _ in range(callers)]
started, cpu = time.perf_counter(), time.process_time()
calls = 0
while time.perf_counter() - started < seconds:
    for key, _ in waiting.select(1):
        key.data.answer()
used = time.perf_counter() - started
print(json.dumps({"calls": calls, "seconds": used, "cpu_s": time.process_time() - cpu, "connections": connections}))
