"""Our daemon as one process or several workers, with a method that computes. Usage: workers_server.py COUNT"""

import sys
import time

import trio

from pyroxfer_core import Daemon, Worker, behavior, expose, supervise


@expose
@behavior(stateless=True)
class Busy:
    async def work(self, seconds: float) -> int:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return 1


async def work(worker: Worker) -> int:
    async with Daemon(worker=worker) as daemon:
        daemon.register(Busy(), "busy")
        await worker.until_told()
    return 0


async def main(count: int) -> int:
    worker = Worker.current()
    if worker is not None:
        return await work(worker)
    daemon = Daemon("127.0.0.1")
    if count == 1:
        async with daemon:
            print(daemon.register(Busy(), "busy"), flush=True)
            await trio.sleep_forever()
    daemon.bind()

    async def announce(*_: object) -> None:
        print(f"PYRO:busy@{daemon.location}", flush=True)

    return await supervise(daemon.listeners, count, reload=False, beside=announce)


sys.exit(trio.run(main, int(sys.argv[1])))
