"""Stock Pyro5 dispatcher, as its own example does it: passes the blob on by its topic. Usage: … BACKEND-URI"""

import sys
import threading

import Pyro5.api

Pyro5.api.config.SERIALIZER = "msgpack"


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Dispatcher:
    def __init__(self):
        self._routes = {"topic": sys.argv[1]}
        self._own = threading.local()  # a Pyro proxy belongs to a thread

    def process(self, blob):
        proxies = self._own.__dict__
        if blob.info not in proxies:
            proxies[blob.info] = Pyro5.api.Proxy(self._routes[blob.info])
        return proxies[blob.info].process(blob)


daemon = Pyro5.api.Daemon(host="127.0.0.1")
print(daemon.register(Dispatcher, "dispatcher"), flush=True)
daemon.requestLoop()
