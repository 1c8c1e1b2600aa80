"""The same for programs without an event loop: each function runs to its end and returns what its twin does.

    from pyroxfer import blocking

    with blocking.serve("/srv/files") as server:
        receipt = blocking.send("report.pdf", f"{server.location}/")

Arguments, results and errors are those of the twin in `pyroxfer`. Ctrl-C ends a transfer as a cancellation does: what
has arrived is kept for the next attempt. Not for use inside an event loop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import trio

from . import client, dry_run
from .serving import FileServer

P = ParamSpec("P")
R = TypeVar("R")


def _twin(function: Callable[P, Awaitable[R]]) -> Callable[P, R]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        async def main() -> R:
            return await function(*args, **kwargs)

        return trio.run(main)

    return run


send = _twin(client.send)
get = _twin(client.get)
ls = _twin(client.ls)
stat = _twin(client.stat)
remove = _twin(client.remove)
plan_send = _twin(dry_run.plan_send)
plan_get = _twin(dry_run.plan_get)


@contextlib.contextmanager
def serve(root: str | os.PathLike[str], **options: Any) -> Iterator[FileServer]:
    """Serve a folder from a thread of its own while the block runs; ``location`` and ``uri`` of what it gives say
    where. Arguments and errors are those of `FileServer`."""
    told: queue.SimpleQueue[FileServer | BaseException] = queue.SimpleQueue()
    stops: list[Callable[[], None]] = []

    async def main() -> None:
        stop, token = trio.Event(), trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        async with FileServer(root, **options) as server:
            told.put(server)
            await stop.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=run, name="pyroxfer-serve", daemon=True)
    thread.start()
    first = told.get()
    if isinstance(first, BaseException):
        thread.join()
        raise first
    try:
        yield first
    finally:
        with contextlib.suppress(trio.RunFinishedError):
            stops[0]()
        thread.join()
    if not told.empty() and isinstance(error := told.get(), BaseException):
        raise error
