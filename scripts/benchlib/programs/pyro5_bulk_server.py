"""Stock Pyro5 taking and giving large bytes, and items of streams. Usage: pyro5_bulk_server.py thread|multiplex"""

import sys

import Pyro5.api

Pyro5.api.config.SERVERTYPE = sys.argv[1]


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Bulk:
    def __init__(self):
        self.data = b""

    def take(self, data):
        self.data = data
        return len(data)

    def give(self):
        return self.data

    def items(self, count):
        yield from range(count)


daemon = Pyro5.api.Daemon(host="127.0.0.1")
print(daemon.register(Bulk, "bulk"), flush=True)
daemon.requestLoop()
