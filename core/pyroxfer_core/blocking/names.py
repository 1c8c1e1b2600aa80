"""Name lookup for programs without a loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, TypeVar

import trio

from ..errors import NamingError, Outcome, TimeoutError
from ..settings import Settings
from ..uri import Uri
from .config import config
from .proxy import Proxy, with_key

T = TypeVar("T")
Host = str | IPv4Address | IPv6Address

URI = Uri
"""Pyro's name of the class."""

_RETRIES: Final = 5
_SHORTEST_PAUSE_S: Final = 0.2


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


def resolve(uri: Uri | str, delay_time: float = 0.0, *, settings: Settings | None = None) -> Uri:
    """The PYRO URI that a PYRONAME or PYROMETA stands for; a PYRO URI as it is.

    Args:
        delay_time: seconds to go on asking while the name is not known; 0 takes ``config.NS_LOOKUP_DELAY``.

    Raises:
        NamingError: no name server was found, or it does not know the name.
    """
    return resolve_by(uri, settings or config.settings(), None, delay_time)


def resolve_by(uri: Uri | str, settings: Settings, deadline: float | None, delay_time: float = 0.0) -> Uri:
    """`resolve` by a deadline on the monotonic clock.

    Raises:
        NamingError: as `resolve`.
        TimeoutError: it took too long (outcome NotSent).
    """
    uri = uri if isinstance(uri, Uri) else Uri(uri)
    if uri.protocol == "PYRO":
        return uri
    delay = delay_time or config.NS_LOOKUP_DELAY
    until = time.monotonic() + delay
    while True:
        try:
            return run_async(_resolve_once, uri, settings, deadline)
        except NamingError:
            if time.monotonic() >= until:
                raise
        pause = max(_SHORTEST_PAUSE_S, delay / _RETRIES)
        time.sleep(pause if deadline is None else min(pause, max(deadline - time.monotonic(), 0)))


async def _resolve_once(uri: Uri, settings: Settings, deadline: float | None) -> Uri:
    from ..nameserver.lookup import resolve as resolve_async

    left = math.inf if deadline is None else max(deadline - time.monotonic(), 0)
    with trio.move_on_after(left):
        return await resolve_async(uri, settings)
    raise TimeoutError(f"cannot find {uri}: no answer within {left:.3g} s", outcome=Outcome.NOT_SENT)


def locate_ns(host: Host = "", port: int | None = None, broadcast: bool = True) -> Proxy:
    """A connected proxy of the name server.

    Raises:
        NamingError: none was found.
    """
    return _locate(host, port, broadcast, config.settings())


def locateNS(
    host: Host | None = None, port: int | None = None, broadcast: bool = True, hmac_key: bytes | str | None = None
) -> Proxy:
    """Pyro4's `locate_ns`. With ``hmac_key`` the name server is asked in protocol 48 and must have the same key."""
    return _locate(host, port, broadcast, with_key(config.settings(), hmac_key))


def _locate(host: Host | None, port: int | None, broadcast: bool, settings: Settings) -> Proxy:
    from ..nameserver.lookup import locate_ns as locate_async

    async def locate() -> Uri:
        async with await locate_async(str(host or "") or None, port, broadcast, settings=settings) as found:
            return found._pyroUri

    proxy = Proxy(run_async(locate), settings=settings)
    proxy._pyroBind()
    return proxy


def type_meta(class_or_object: Any, prefix: str = "class:") -> set[str]:
    """The full names of a class, or of an object's class, and of its bases: metadata for the name server."""
    clazz = class_or_object if isinstance(class_or_object, type) else type(class_or_object)
    return {f"{prefix}{kind.__module__}.{kind.__name__}" for kind in clazz.__mro__ if kind.__module__ != "builtins"}
