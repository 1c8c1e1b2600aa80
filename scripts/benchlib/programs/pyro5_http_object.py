"""Stock Pyro5, one object for a gateway. Usage: pyro5_http_object.py NAME_SERVER_PORT"""

import sys

import Pyro5.api


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Adder:
    def add(self, a, b):
        return a + b


daemon = Pyro5.api.Daemon(host="127.0.0.1")
uri = daemon.register(Adder, "adder")
with Pyro5.api.locate_ns("127.0.0.1", int(sys.argv[1])) as ns:
    ns.register("http.adder", uri)
print(uri, flush=True)
daemon.requestLoop()
