"""Instance modes: one object for a connection, for the daemon, or for each call."""

import pyroxfer_core.blocking as pyro


class Counter:
    def __init__(self):
        self.value = 0

    @pyro.expose
    def increment(self):
        self.value += 1
        return self.value


@pyro.behavior(instance_mode="single")
class Single(Counter):
    pass


@pyro.behavior(instance_mode="session")
class Session(Counter):
    pass


@pyro.behavior(instance_mode="percall", instance_creator=lambda clazz: clazz())
class PerCall(Counter):
    pass


with pyro.Daemon() as daemon:
    print(*(daemon.register(clazz) for clazz in (Single, Session, PerCall)), flush=True)
    daemon.requestLoop()
