"""What the commands share: trio under click, errors as one line with the documented exit code, safe printing."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import click
import trio

from ..errors import (
    CommunicationError,
    NamingError,
    ProtocolError,
    PyroError,
    RefusedError,
    SecurityError,
    SerializeError,
    TimeoutError,
)
from ..logs import printable as printable

T = TypeVar("T")


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    OTHER = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    NETWORK = 5
    EXISTS = 9
    TIMEOUT = 11
    PROTOCOL = 12
    INTERRUPTED = 130


_BY_CLASS: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (TimeoutError, ExitCode.TIMEOUT),
    (RefusedError, ExitCode.REFUSED),
    (SecurityError, ExitCode.REFUSED),
    (ProtocolError, ExitCode.PROTOCOL),
    (SerializeError, ExitCode.PROTOCOL),
    (CommunicationError, ExitCode.NETWORK),
)
"""The first class that fits counts."""
_BY_TEXT: Final = (
    ("unknown name", ExitCode.NOT_FOUND),
    ("no registrations available", ExitCode.NOT_FOUND),
    ("name already registered", ExitCode.EXISTS),
    ("refusing to register", ExitCode.REFUSED),
    ("Failed to locate the nameserver", ExitCode.NETWORK),
    ("cannot listen for broadcasts", ExitCode.NETWORK),
)
"""What a NamingError says, by how its text begins; the texts are part of the name server's contract."""


class Failure(click.ClickException):
    """One line on standard error, then the exit code."""

    def __init__(self, text: str, code: ExitCode) -> None:
        super().__init__(printable(text))
        self.exit_code = code  # type: ignore[misc]  # click declares a class variable, yet sets it per instance


def exit_code_of(error: BaseException) -> ExitCode:
    """The documented exit code for an error of the core."""
    if isinstance(error, NamingError):
        text = str(error)
        return next((code for start, code in _BY_TEXT if text.startswith(start)), ExitCode.OTHER)
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), ExitCode.OTHER)


def run(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """``trio.run`` for a command: the core's errors, bad values (usage) and OS errors end it with one line.

    Raises:
        Failure: in place of the error; click prints it.
        SystemExit: 130 after Ctrl-C.
    """
    try:
        return trio.run(function, *args)
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:  # nobody reads on; click ends the command without a word
        raise
    except (PyroError, ValueError, TypeError, OSError) as error:
        fail(error)
    except BaseExceptionGroup as group:
        _fail_for_group(group)


def fail(error: BaseException) -> NoReturn:
    """End the command because of this error."""
    if isinstance(error, OSError) and error.strerror:
        raise Failure(f"{error.filename or 'the system'}: {error.strerror}", ExitCode.OTHER) from error
    code = ExitCode.USAGE if isinstance(error, ValueError) else exit_code_of(error)
    raise Failure(str(error), code) from error


def _fail_for_group(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """A nursery wraps even a single error; only groups of several unexpected ones are shown as they are."""
    single: BaseException = group
    while isinstance(single, BaseExceptionGroup) and len(single.exceptions) == 1:
        single = single.exceptions[0]
    if isinstance(single, KeyboardInterrupt):
        raise SystemExit(ExitCode.INTERRUPTED) from None
    if isinstance(single, BrokenPipeError):
        raise single
    if isinstance(single, PyroError | ValueError | TypeError | OSError):
        fail(single)
    raise group
