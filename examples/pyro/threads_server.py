"""Many threads of a client, which hand one proxy around."""

import pyroxfer_core.blocking as pyro


@pyro.expose
@pyro.behavior(instance_mode="single")
class Adder:
    def add(self, a, b):
        return a + b


with pyro.Daemon() as daemon:
    print(daemon.register(Adder, "adder"), flush=True)
    daemon.requestLoop()
