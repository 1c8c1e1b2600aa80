"""A name server inside the program, combined with its own daemon."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Shop:
    def open(self):
        return "come in"


pyro.config.SERVERTYPE = "multiplex"  # stock Pyro5 can combine no others
ns_uri, ns_daemon, broadcast = pyro.start_ns(port=0)
daemon = pyro.Daemon()
uri = daemon.register(Shop, "shop")
ns_daemon.combine(daemon)
print(ns_uri.host, ns_uri.port, uri, flush=True)
ns_daemon.requestLoop()
