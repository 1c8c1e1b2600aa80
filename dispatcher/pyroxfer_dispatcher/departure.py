"""How clients are brought to leave: those that understand it are told, the others are cut between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio

from .backends import Backend

LOOK_S: Final = 0.05
"""How often it is checked whether they have gone."""


class Guest(Protocol):
    """One connected client."""

    def belongs_to(self, backend: Backend) -> bool:
        """Whether its connection cannot go on without that backend."""

    def leave(self) -> None:
        """Tell it to make no more calls on this connection, if it can understand that."""

    def stop(self) -> None:
        """End between calls."""


class Arrival:
    """A client that is still being greeted.

    Args:
        scope: of its greeting.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def belongs_to(self, backend: Backend) -> bool:
        """Not yet."""
        return False

    def leave(self) -> None:
        """It will be told as soon as it is there."""

    def stop(self) -> None:
        """It has no call under way."""
        self._scope.cancel()


async def see_off(guests: Callable[[], Iterable[Guest]], timeout_s: float) -> int:
    """Ask clients to leave, and cut those that are left after a while; a call under way is never cut.

    Args:
        guests: those who are still there.

    Returns:
        How many had to be cut. Some of them may still wait for the end of a call.
    """
    told: set[Guest] = set()
    with trio.move_on_after(timeout_s):
        while here := set(guests()):
            for guest in here - told:
                guest.leave()
            told = here
            await trio.sleep(LOOK_S)  # they leave in many ways
    rest = tuple(guests())
    for guest in rest:
        guest.stop()
    return len(rest)
