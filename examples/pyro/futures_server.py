"""Work that takes its time, for clients that do something else meanwhile (Pyro4 has the futures)."""

import time

import pyroxfer_core.blocking as pyro


@pyro.expose
@pyro.behavior(instance_mode="single")
class Slow:
    def double(self, value):
        time.sleep(0.05)
        return value * 2

    def divide(self, a, b):
        return a / b


daemon = pyro.Daemon()
print(daemon.register(Slow, "slow"), flush=True)
daemon.requestLoop()
