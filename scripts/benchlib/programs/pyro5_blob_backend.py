"""Stock Pyro5 back end of a dispatcher: gives the blob's value back."""

import Pyro5.api

Pyro5.api.config.SERIALIZER = "msgpack"


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Backend:
    def process(self, blob):
        (value,) = blob.deserialized()
        return value


daemon = Pyro5.api.Daemon(host="127.0.0.1")
print(daemon.register(Backend, "backend"), flush=True)
daemon.requestLoop()
