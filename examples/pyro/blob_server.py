"""A dispatcher that passes arguments on without reading them."""

import threading

import pyroxfer_core.blocking as pyro


@pyro.expose
class Archive:
    def store(self, blob):
        return f"{blob.info}: {blob.deserialized()}"


@pyro.expose
class Dispatcher:
    def store(self, blob):
        with pyro.Proxy(archive) as proxy:
            return f"by way of the dispatcher, {proxy.store(blob)}"


backend = pyro.Daemon()
archive = backend.register(Archive, "archive")
threading.Thread(target=backend.requestLoop, daemon=True).start()
with pyro.Daemon() as daemon:
    print(archive, daemon.register(Dispatcher, "dispatcher"), flush=True)
    daemon.requestLoop()
