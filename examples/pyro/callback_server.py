"""Callbacks: the client serves an object too, and the server calls it."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Worker:
    def work(self, steps, listener):
        for step in range(steps):
            listener.progress(step + 1, steps)
        return f"{steps} steps done"


with pyro.Daemon() as daemon:
    print(daemon.register(Worker, "worker"), flush=True)
    daemon.requestLoop()
