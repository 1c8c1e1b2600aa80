"""What ``Pyro5.errors`` and ``Pyro4.errors`` have: the error classes, and tracebacks that go on at the other end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from ..errors import CommunicationError as CommunicationError
from ..errors import ConnectionClosedError as ConnectionClosedError
from ..errors import DaemonError as DaemonError
from ..errors import MessageTooLargeError as MessageTooLargeError
from ..errors import NamingError as NamingError
from ..errors import ProtocolError as ProtocolError
from ..errors import PyroError as PyroError
from ..errors import SecurityError as SecurityError
from ..errors import SerializeError as SerializeError
from ..errors import TimeoutError as TimeoutError


def get_pyro_traceback(
    ex_type: type[BaseException] | None = None,
    ex_value: BaseException | None = None,
    ex_tb: TracebackType | None = None,
) -> list[str]:
    """Lines of the traceback of an error, and of the remote one that came with it; print them joined.

    Without arguments that of the error which is being handled; there are no lines when there is none.
    """
    error = _error_of(ex_type, ex_value)
    remote = getattr(error, "_pyroTraceback", None)
    return [*format_traceback(ex_type, ex_value, ex_tb), *(_remote_lines(remote) if remote else ())]


def format_traceback(
    ex_type: type[BaseException] | None = None,
    ex_value: BaseException | None = None,
    ex_tb: TracebackType | None = None,
    detailed: bool = False,
) -> list[str]:
    """Lines of the traceback of an error, here alone; with ``detailed`` the variables of each function, too."""
    error = _error_of(ex_type, ex_value)
    if error is None:
        return []
    where = ex_tb if ex_tb is not None else error.__traceback__
    return list(traceback.TracebackException(type(error), error, where, capture_locals=detailed).format())


def excepthook(ex_type: type[BaseException], ex_value: BaseException, ex_tb: TracebackType | None) -> None:
    """For ``sys.excepthook``: what ends the program is shown with its remote traceback."""
    sys.stderr.write("".join(get_pyro_traceback(ex_type, ex_value, ex_tb)))


def _error_of(ex_type: object, ex_value: BaseException | None) -> BaseException | None:
    if ex_value is None and ex_type is not None:
        raise TypeError("give the error as well as its class, or nothing at all")
    return ex_value if ex_value is not None else sys.exc_info()[1]


def _remote_lines(remote: object) -> Iterator[str]:
    """Set off from the local lines. What a peer sent need not be lines."""
    pieces = remote if isinstance(remote, list | tuple) else [remote]
    text = "".join(str(piece) for piece in pieces)
    yield " +--- where it happened, at the other end:\n"
    for line in text.splitlines():
        yield f" | {line}\n"
    yield " +---\n"
