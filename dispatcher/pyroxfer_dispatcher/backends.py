"""The state of every backend and the choice between them. Pure: the time is passed in, never read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyroxfer_core import Uri

FIRST_BACKOFF_S: Final = 0.25
"""A refused backend is left alone this long at first, twice as long after each further refusal ..."""
MAX_BACKOFF_S: Final = 10.0
"""... but never longer than this, so that a repaired backend is back in use within seconds. When no other backend is
left, it is tried again after FIRST_BACKOFF_S already: a call must not be refused while a backend is there."""


@dataclass(slots=True, eq=False)
class Backend:
    """One backend of a service. Only its group changes it."""

    name: str
    uri: Uri
    max_in_flight: int | None = None
    """Calls it runs at once; None is without limit."""
    in_flight: int = 0
    clients: int = 0
    """Clients whose connection belongs to it."""
    draining: bool = False
    """A draining backend finishes its calls and gets no new ones."""
    failures: int = 0
    """Connects that failed in a row."""
    retry_at: float = 0.0
    """When a backend that is down may be tried again."""
    failed_at: float = float("-inf")
    """When it last refused a connection."""
    probing: bool = False
    """A call is trying out whether it is back; others do not wait for the same refusal."""
    reason: str = ""
    """Why it is down, for people."""
    refused_versions: set[int] = field(default_factory=set)
    """Protocol versions it is known not to speak."""

    def is_live(self, now: float) -> bool:
        """Whether a call may be given to it, busy or not."""
        if self.draining:
            return False
        return self.failures == 0 or (now >= self.retry_at and not self.probing)

    def is_last_resort(self, now: float) -> bool:
        """Whether a call that no live backend can take may try it, although it was to be left alone for longer."""
        return not self.draining and not self.probing and now >= self.failed_at + FIRST_BACKOFF_S

    @property
    def is_full(self) -> bool:
        """Whether it runs as many calls as it may."""
        return self.max_in_flight is not None and self.in_flight >= self.max_in_flight

    def describe(self, now: float, refusal: str | None = None) -> str:
        """Its state for an error text, e.g. ``b1 is down (connection refused), next try in 0.4 s``.

        Args:
            refusal: what it answered when it was asked for a connection just now.
        """
        if self.draining:
            return f"{self.name} is draining"
        next_try = min(self.retry_at, self.failed_at + FIRST_BACKOFF_S)
        if self.failures and now < next_try:
            return f"{self.name} is down ({self.reason}), next try in {next_try - now:.1f} s"
        if self.failures:
            return f"{self.name} is down ({self.reason})"
        if refusal is not None:
            return f"{self.name} refused ({refusal})"
        return f"{self.name} runs {self.in_flight} calls" + (", its limit" if self.is_full else "")


class BackendGroup:
    """The backends of one service, taken in turn.

    Every `pick` or `take` is answered by exactly one `release`.
    """

    def __init__(self, backends: Iterable[Backend]) -> None:
        self.backends = tuple(backends)
        self._next = 0

    def pick(self, now: float, exclude: Container[Backend] = ()) -> Backend | None:
        """The next live backend with room, now counted as running one call more.

        When there is none: one that is down but was not asked just now, for it may be back. None when there is none
        of these either.
        """
        return self._pick(now, exclude, Backend.is_live) or self._pick(now, exclude, Backend.is_last_resort)

    def _pick(self, now: float, exclude: Container[Backend], may: Callable[[Backend, float], bool]) -> Backend | None:
        count = len(self.backends)
        for step in range(count):
            index = (self._next + step) % count
            backend = self.backends[index]
            if may(backend, now) and not backend.is_full and backend not in exclude:
                self._next = index + 1
                backend.probing = backend.failures > 0
                self.take(backend)
                return backend
        return None

    def take(self, backend: Backend) -> None:
        """Count a call for a backend that is bound to get it, whatever its state."""
        backend.in_flight += 1

    def release(self, backend: Backend) -> None:
        """A call has left the backend, or never reached it."""
        backend.in_flight -= 1
        backend.probing = False

    def opened(self, backend: Backend) -> bool:
        """A connection to it works. True when it had been down."""
        was_down = backend.failures > 0
        backend.failures = 0
        backend.probing = False
        return was_down

    def failed(self, backend: Backend, now: float, reason: str) -> bool:
        """It refused a connection: leave it alone for a while. True when it had been up."""
        was_up = backend.failures == 0
        backend.refused_versions.clear()  # whatever comes up there next may speak them
        backend.failures += 1
        backend.reason = reason
        backend.failed_at = now
        backend.retry_at = now + min(FIRST_BACKOFF_S * 2 ** min(backend.failures - 1, 16), MAX_BACKOFF_S)
        return was_up

    def describe(self, now: float, refusals: Mapping[Backend, str]) -> str:
        """The state of all its backends for an error text."""
        return "; ".join(backend.describe(now, refusals.get(backend)) for backend in self.backends)
