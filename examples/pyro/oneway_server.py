"""One-way calls: the caller goes on at once."""

import threading

import pyroxfer_core.blocking as pyro


@pyro.expose
@pyro.behavior(instance_mode="single")
class Log:
    def __init__(self):
        self.lines = []
        self.full = threading.Event()

    @pyro.oneway
    def write(self, line):
        self.lines.append(line)
        if len(self.lines) == 3:
            self.full.set()

    def read(self):
        self.full.wait(10)
        lines, self.lines = sorted(self.lines), []
        self.full.clear()
        return lines


with pyro.Daemon() as daemon:
    print(daemon.register(Log, "log"), flush=True)
    daemon.requestLoop()
