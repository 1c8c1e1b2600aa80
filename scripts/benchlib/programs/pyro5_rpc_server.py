"""Stock Pyro5, one object with one small method. Usage: pyro5_rpc_server.py thread|multiplex"""

import sys

import Pyro5.api

Pyro5.api.config.SERVERTYPE = sys.argv[1]
Pyro5.api.config.THREADPOOL_SIZE = 200  # the default of 80 would leave no room for much more than 64 clients


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Adder:
    def add(self, a, b):
        return a + b


daemon = Pyro5.api.Daemon(host="127.0.0.1")
print(daemon.register(Adder, "adder"), flush=True)
daemon.requestLoop()
