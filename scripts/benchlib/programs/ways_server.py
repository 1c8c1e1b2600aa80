"""One object with the methods of `ways_client.py`, served by one of three libraries.

Usage: ways_server.py Pyro5|Pyro4 thread|multiplex, or ways_server.py ours async|plain
"""

import sys

library, kind = sys.argv[1:3]


class Counter:
    def __init__(self):
        self.noted = 0

    def note(self, number):
        self.noted += 1

    def count(self):
        return self.noted

    def add(self, a, b):
        return a + b

    def echo(self, data):
        return data


class AsyncCounter(Counter):
    async def note(self, number):
        self.noted += 1

    async def count(self):
        return self.noted

    async def add(self, a, b):
        return a + b

    async def echo(self, data):
        return data


def prepared(clazz, expose, oneway):
    for name in ("note", "count", "add", "echo"):
        expose(getattr(clazz, name))
    oneway(clazz.note)
    return clazz()


def serve_stock():
    if library == "Pyro4":
        import Pyro4 as api

        api.config.SERIALIZERS_ACCEPTED = {"serpent", "marshal", "json", "msgpack"}
    else:
        import Pyro5.api as api
    api.config.SERVERTYPE = kind
    api.config.THREADPOOL_SIZE = 200  # the default of 80 would leave no room for much more than 64 clients
    daemon = api.Daemon(host="127.0.0.1")
    print(daemon.register(prepared(Counter, api.expose, api.oneway), "counter"), flush=True)
    daemon.requestLoop()


def serve_ours():
    import trio

    from pyroxfer_core import Daemon, Settings, expose, oneway

    async def main():
        async with Daemon(host="127.0.0.1", settings=Settings(max_connections=4096)) as daemon:
            clazz = AsyncCounter if kind == "async" else Counter
            print(daemon.register(prepared(clazz, expose, oneway), "counter"), flush=True)
            await trio.sleep_forever()

    trio.run(main)


serve_ours() if library == "ours" else serve_stock()
