"""`serve` in several processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ..nameserver.keeping import keep_registered
from ..objects.table import refuse_to_share
from ..processes.launch import supervise, worker_count
from ..processes.supervisor import Supervisor
from ..processes.worker import Worker
from ..uri import Uri
from .config import config
from .daemon import Daemon


def serve_in_workers(
    objects: Mapping[Any, str | None], host: str | None, port: int, use_ns: bool, verbose: bool, workers: int | str
) -> None:
    """As `serve` of the facade: a parent starts this program again for each worker, which comes here, too.

    Raises:
        SystemExit: in a worker, when it has been told to end; in the parent, when a worker ended with another code
            than 0.
    """
    named: dict[Any, str] = {}
    for thing, name in objects.items():
        if not name:
            raise ValueError(f"every worker has to serve {thing!r} under the same id: give it a name")
        refuse_to_share(thing)
        named[thing] = name
    worker = Worker.current()
    if worker is not None:
        _work(worker, named)
        raise SystemExit(0)
    with Daemon(host, port) as daemon:
        uris = {name: daemon.register(thing, name) for thing, name in named.items()}
        lead = partial(_lead, uris, use_ns, verbose)
        run = partial(supervise, daemon.listeners, worker_count(str(workers)), reload=False, beside=lead)
        if code := trio.run(run):
            raise SystemExit(code)


def _work(worker: Worker, named: Mapping[Any, str]) -> None:
    """Serve until SIGTERM or SIGINT. A signal handler must not wait for a lock: a thread does."""
    with Daemon(worker=worker) as daemon:
        for thing, name in named.items():
            daemon.register(thing, name)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=daemon.shutdown).start())
        worker.ready()
        daemon.requestLoop()


async def _lead(uris: Mapping[str, Uri], use_ns: bool, verbose: bool, _: Path, supervisor: Supervisor) -> None:
    def say(text: str) -> None:
        if verbose:
            print(text, flush=True)  # noqa: T201  # as Pyro does

    for name, uri in uris.items():
        say(f"Object {name}:\n    uri = {uri}")
    if not use_ns:
        say("Pyro daemon running.")
        return
    async with keep_registered(uris, settings=config.settings()):
        say("Pyro daemon running.")
        await supervisor.ending.wait()
