"""Running a command: one trio loop, signals, and every error as one line and its exit code."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NoReturn

import click
import trio

from pyroxfer_core import errors as core_errors

from ..errors import SomeFilesFailedError, TransferError
from ..names import printable
from ..progress import Progress
from ..tasks import open_flat_nursery
from .events import print_event

if TYPE_CHECKING:
    from pyroxfer_core import Worker

SHOWN_FAILURES: Final = 20
"""Files listed by name when some of many failed; all are in the events of --json."""
SIGNALLED: Final = 128
"""A process ended by a signal exits with this plus its number, as shells have it."""

_CORE_CODES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (core_errors.NamingError, 3, ""),
    (core_errors.SecurityError, 4, ""),
    (core_errors.RefusedError, 4, "; try again later"),
    (core_errors.TimeoutError, 11, "; check the address, or that nothing blocks it"),
    (core_errors.SerializeError, 12, "; is that a file server?"),
    (core_errors.ProtocolError, 12, "; is that a file server?"),
    (core_errors.CommunicationError, 5, "; check the address, and that `pyroxfer serve` is running there"),
)
"""In the order of the search: class, exit code, what to do."""


def explain(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and the one line for people."""
    if isinstance(error, TransferError):
        return error.exit_code, str(error)
    for cls, code, advice in _CORE_CODES:
        if isinstance(error, cls):
            return code, f"{error}{advice}"
    if isinstance(error, OSError) and error.strerror:
        return 1, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return 1, str(error) or type(error).__name__


def run(main: Callable[[], Awaitable[None]], *, json: bool = False, term_is_success: bool = False) -> NoReturn:
    """Run a command's coroutine function to its end and exit the process with its code.

    SIGINT and SIGTERM cancel it, so that it tidies up, and then count as its end: 130 and 143, or for
    ``term_is_success`` a SIGTERM is 0. A second signal ends the process at once.
    """
    _finish(functools.partial(_supervised, main, term_is_success), json=json)


def run_parent(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run a command's coroutine function that passes signals on, and exit with the code that it returns."""
    _finish(main)


def current_worker() -> Worker | None:
    """Which worker this process is, None when it is none; or the end of the command."""
    from pyroxfer_core import Worker  # clients are none

    try:
        return Worker.current()
    except core_errors.PyroError as error:
        raise SystemExit(report(error, json=False)) from None


def _finish(main: Callable[[], Awaitable[int]], *, json: bool = False) -> NoReturn:
    _keep_standard_descriptors()
    try:
        code = trio.run(main)
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except BrokenPipeError:  # nobody reads on; click ends the command without a word
        raise
    except (core_errors.PyroError, OSError) as error:
        code = report(error, json=json)
    raise SystemExit(code)


def _keep_standard_descriptors() -> None:
    """Fill the places of closed ones, or the next socket or file of ours is taken for standard input or output. What
    fills them cannot be used the way it is meant to be, so that whoever tries is told."""
    for number, wrong_way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, wrong_way)  # takes the lowest free number, which is this one


def report(error: Exception, *, json: bool) -> int:
    """Show an error; its exit code."""
    code, text = explain(error)
    if json:
        print_event(Progress("error", text=text, code=getattr(error, "code", "")), exit_code=code)
    click.echo(f"pyroxfer: {printable(text)}", err=True)
    if isinstance(error, SomeFilesFailedError):
        for failure in list(error.failures.values())[:SHOWN_FAILURES]:
            click.echo(f"  {printable(explain(failure)[1])}", err=True)
        if len(error.failures) > SHOWN_FAILURES:
            click.echo(f"  and {len(error.failures) - SHOWN_FAILURES} more", err=True)
    return code


async def _supervised(main: Callable[[], Awaitable[None]], term_is_success: bool) -> int:
    caught: list[int] = []
    async with open_flat_nursery() as nursery:
        nursery.start_soon(_watch_signals, nursery.cancel_scope, caught)
        await main()
        nursery.cancel_scope.cancel()
    if not caught:
        return 0
    if term_is_success and caught[0] == signal.SIGTERM:
        return 0
    return SIGNALLED + caught[0]


async def _watch_signals(scope: trio.CancelScope, caught: list[int]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            caught.append(number)
            scope.cancel()
            return
