"""A plain Pyro program on one end of a connected socket.

Usage: connected.py LIBRARY service|client DESCRIPTOR [PROTOCOL]

`pyroxfer` runs the very same program on our blocking facade: one import changed.
A service serves until the other end closes; a client calls it and prints one JSON line with what it saw. Nobody can
tell what the other end speaks before it was spoken to, so a client of ours is told when that is not 502.
"""

import importlib
import json
import socket
import sys

library, role, descriptor, *protocol = sys.argv[1:]
modules = {"pyro4": "Pyro4", "pyro5": "Pyro5.api", "pyroxfer": "pyroxfer_core.blocking"}
pyro = importlib.import_module(modules[library])
BatchProxy = pyro.batch if library == "pyro4" else pyro.BatchProxy


@pyro.expose
class Shared:
    def __init__(self):
        self.level_ = 1
        self.noted = None

    def add(self, a, b=0):
        return a + b

    def divide(self, a, b):
        return a / b

    @property
    def level(self):
        return self.level_

    @level.setter
    def level(self, value):
        self.level_ = value

    @pyro.oneway
    def note(self, text):
        self.noted = text

    def wait_for_note(self):
        while self.noted is None:
            pass
        return self.noted

    def count(self, end):
        yield from range(end)

    def exchange(self):
        user = bytes(pyro.current_context.annotations["USER"]).decode()
        pyro.current_context.response_annotations = {"RESP": user.upper().encode()}


def see(proxy):
    """One thing of each kind."""
    seen = {"calls": [proxy.add(1, 2), proxy.add(1, b=5)], "stream": list(proxy.count(5))}
    proxy.level = 7
    seen["attribute"] = proxy.level
    try:
        proxy.divide(1, 0)
    except ZeroDivisionError as error:
        seen["exception"] = str(error)
    seen["oneway"] = [proxy.note("heard"), proxy.wait_for_note()]
    batch = BatchProxy(proxy)
    batch.add(1, 2)
    batch.add(3, 4)
    seen["batch"] = list(batch())
    pyro.current_context.annotations = {"USER": b"hello"}
    proxy.exchange()
    seen["annotations"] = bytes(pyro.current_context.response_annotations["RESP"]).decode()
    return seen


sock = socket.socket(fileno=int(descriptor))
if role == "service":
    with pyro.Daemon(connected_socket=sock) as daemon:
        daemon.register(Shared(), "shared")
        daemon.requestLoop()
else:
    options = {}
    if protocol:
        from pyroxfer_core import Settings

        options = {"settings": Settings(protocol=int(protocol[0]))}
    with pyro.Proxy("shared", connected_socket=sock, **options) as proxy:
        print(json.dumps(see(proxy)), flush=True)
