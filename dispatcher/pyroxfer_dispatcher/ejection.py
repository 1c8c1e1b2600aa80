"""Leaves backends out for a while whose calls fail one after the other. Pure: the time is passed in, never read."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from math import inf
from typing import Final

from .backends import Backend, BackendGroup

MOST_OUT: Final = 0.5
"""Part of a service's backends that may be missing, ejected ones and those that are down taken together: with fewer
left, the calls of all are too much for the rest, and a backend that fails now and then is better than none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When a backend is ejected, and for how long."""

    after: int = 5
    """Calls in a row that fail; 0 ejects none."""
    first_s: float = 30.0
    """The first time; twice as long the second time in a row, three times the third ..."""
    most_s: float = 300.0
    """... but never longer than this."""


class Verdict(enum.Enum):
    """What a failed call leads to."""

    STAYS = ""
    EJECTED = "backend_ejected"
    NEEDED = "backend_not_ejected"
    """It would be ejected, if enough others were there."""


class Ejection:
    """Who of a group of backends is left out.

    An exception that a method raises is an answer. A failure is a connection that is lost with a call on it,
    something else than an answer, or no answer in time. Connections lost together, as when a process ends, are one.
    """

    def __init__(self, group: BackendGroup, rules: Rules = Rules()) -> None:
        self.rules = rules
        self._group = group
        self._out: list[Backend] = []

    def answered(self, backend: Backend) -> None:
        """A call of the backend was answered."""
        backend.failed_calls = 0

    def lost(self, backend: Backend, began_at: float, now: float, reason: str) -> Verdict:
        """A connection to it broke while calls ran there.

        Args:
            began_at: the last of them; connections from before the last loss tell nothing new.
        """
        if began_at <= backend.lost_at:
            return Verdict.STAYS
        backend.lost_at = now
        return self.failed(backend, now, reason)

    def failed(self, backend: Backend, now: float, reason: str) -> Verdict:
        """A call failed there that says something about the backend."""
        after = self.rules.after
        if not after or backend.draining or backend.ejected_until is not None:
            return Verdict.STAYS
        backend.failed_calls += 1
        if backend.failed_calls < after:
            return Verdict.STAYS
        if not self._can_spare(backend):
            return Verdict.NEEDED if backend.failed_calls == after else Verdict.STAYS
        self._eject(backend, now, f"{after} calls in a row failed, the last one: {reason}")
        return Verdict.EJECTED

    def _eject(self, backend: Backend, now: float, reason: str) -> None:
        rules = self.rules
        in_row = min(backend.ejections_in_row(now, rules.first_s) + 1, math.ceil(rules.most_s / rules.first_s))
        backend.in_row = in_row
        backend.ejections += 1
        backend.eject_reason = reason
        backend.ejected_until = now + min(rules.first_s * in_row, rules.most_s)
        self._out.append(backend)

    def _can_spare(self, backend: Backend | None) -> bool:
        """Whether enough are left, without this one, too."""
        there = [one for one in self._group.backends if not one.draining]
        missing = sum(1 for one in there if one is backend or one.ejected_until is not None or one.failures)
        return missing <= MOST_OUT * len(there)

    def look(self, now: float) -> list[Backend]:
        """Called now and then: let those return whose time is over, and who is needed. Those that did."""
        if not self._out:
            return []
        known = self._group.backends
        self._out = sorted((one for one in self._out if one in known), key=lambda one: one.ejected_until or -inf)
        returned = [one for one in self._out if one.ejected_until is not None and one.ejected_until <= now]
        for backend in returned:
            self.end(backend, now)
        while (needed := next((one for one in self._out if not one.failures), None)) and not self._can_spare(None):
            self.end(needed, now)
            returned.append(needed)
        return returned

    def end(self, backend: Backend, now: float) -> None:
        """It gets calls again, few at first where the service has a slow start; not ejected is fine, too."""
        if backend in self._out:
            self._out.remove(backend)
            backend.ejected_until = None
            backend.failed_calls = 0
            backend.returned_at = backend.up_since = now
