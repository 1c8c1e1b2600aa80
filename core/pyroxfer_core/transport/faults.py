"""Which failures of other people's code end with it, and which must travel on."""

from __future__ import annotations

from typing import Final

import trio

TRAVEL: Final = (trio.Cancelled, KeyboardInterrupt)
"""What the loop raises where a task waits; Ctrl-C comes to the main task of a program."""


def part(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What of an error must not be kept from the loop (a cancellation, Ctrl-C), and the rest; None for nothing.

    The rest ends where it came up, SystemExit and whatever else derives from BaseException included: one call, hook
    or connection never stops a daemon.
    """
    if isinstance(error, BaseExceptionGroup):
        return error.split(TRAVEL)
    return (error, None) if isinstance(error, TRAVEL) else (None, error)
