import sys
import threading

import pyroxfer_core.blocking as pyro


class Listener:
    @pyro.expose
    @pyro.callback
    def progress(self, step, steps):
        print(f"step {step} of {steps}")


with pyro.Daemon() as daemon, pyro.Proxy(sys.argv[1]) as worker:
    listener = Listener()
    daemon.register(listener)
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    print(worker.work(3, listener))
    daemon.shutdown()
    thread.join()
