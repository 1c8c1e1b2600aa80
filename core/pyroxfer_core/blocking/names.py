"""Name lookup for programs without a loop."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from ..settings import Settings
from ..uri import Uri
from .proxy import Proxy

T = TypeVar("T")

URI = Uri
"""Pyro's name of the class."""


def run_async(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an async function to its end, also where a loop is running already in this thread."""
    if not trio.lowlevel.in_trio_run():
        return trio.run(function, *args)
    results: list[Any] = []

    def other_thread() -> None:
        try:
            results.append(trio.run(function, *args))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=other_thread, name="pyroxfer lookup")
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    result: T = results[0]
    return result


def resolve(uri: Uri | str, settings: Settings | None = None) -> Uri:
    """The PYRO URI that a PYRONAME or PYROMETA stands for; a PYRO URI as it is.

    Raises:
        NamingError: no name server was found, or it does not know the name.
    """
    uri = uri if isinstance(uri, Uri) else Uri(uri)
    if uri.protocol == "PYRO":
        return uri
    from ..nameserver.lookup import resolve as resolve_async

    return run_async(resolve_async, uri, settings or Settings())


def locate_ns(host: str = "", port: int | None = None, broadcast: bool = True) -> Proxy:
    """A proxy of the name server.

    Raises:
        NamingError: none was found.
    """
    from ..nameserver.lookup import locate_ns as locate_async

    async def locate() -> Uri:
        async with await locate_async(host or None, port, broadcast) as found:
            return found._pyroUri

    return Proxy(run_async(locate))
