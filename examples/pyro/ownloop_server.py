"""A program with a loop of its own, which also serves two daemons."""

import select

import pyroxfer_core.blocking as pyro


@pyro.expose
class Clock:
    ticks = 0

    def ticked(self):
        return self.ticks > 0


with pyro.Daemon() as first, pyro.Daemon() as second:
    print(first.register(Clock, "one"), second.register(Clock, "two"), flush=True)
    while True:
        Clock.ticks += 1
        for daemon in (first, second):
            ready, _, _ = select.select(daemon.sockets, [], [], 0.01)
            if ready:
                daemon.events(ready)
