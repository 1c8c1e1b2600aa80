"""Which call may run now, which waits, and which is refused: one queue for each service. Pure: the time is passed in.

A call leaves the queue only when a backend has room for it, so nothing is ever sent ahead to a backend that is busy,
and a call that is stuck holds nobody up while any other slot is free.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from .backends import Backend, BackendGroup
from .latency import ServiceTimes

SMOOTHING: Final = 0.1
"""Weight of the newest call in the running mean of how long calls take."""
SHORTEST_HINT_S: Final = 0.05
LONGEST_HINT_S: Final = 30.0

Later = Callable[[Callable[[float], None]], None]
"""Runs something soon, but not within what is being done now; tells it the time."""


class NotAdmitted(Exception):
    """The call is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one service."""

    max_in_flight: int | None = None
    """Calls that run at once in all its backends."""
    client_max_in_flight: int | None = None
    """Calls of one client that run at once."""
    max_queue: int = 0
    """Calls that wait; beyond it calls are refused."""
    queue_timeout_s: float = inf
    """How long a call waits before it is refused."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One call that wants to run."""

    client: Hashable
    """Whose it is: clients take turns."""
    wake: Callable[[Backend | str], None]
    """Called once for a ticket that had to wait: with its backend, or with the reason why it is refused."""
    key: str | None = None
    only: Backend | None = None
    """The one backend that can take it, up or down."""
    passed_over: Mapping[Backend, str] = field(default_factory=dict)
    """Backends that could not be had, and why."""
    deadline: float = inf
    """When the caller gives up."""
    asked_at: float = 0.0
    started_at: float = 0.0
    waits_for: Backend | None = None
    """The one backend that it waits for, as far as is known."""


class Admission:
    """The queue of one service.

    Args:
        later: see `Later`; free slots are given out by it.
        times: takes the times of its calls; by default its own.
    """

    def __init__(
        self, name: str, group: BackendGroup, limits: Limits, later: Later, times: ServiceTimes | None = None
    ) -> None:
        self.times = ServiceTimes() if times is None else times
        self.group = group
        self.limits = limits
        self.waiting = 0
        """Calls in the queue."""
        self.running = 0
        """Calls that were admitted and have not ended."""
        self.busy_s = 0.0
        """How long all calls that have ended took in their backends ..."""
        self.done = 0
        """... and how many they are."""
        self.name = name
        self._later = later
        self._queues: dict[Hashable, deque[Ticket]] = {}
        """By client, whoever's turn it is first."""
        self._choosy: set[Ticket] = set()
        """Those who wait and could not run wherever there is room."""
        self._running_of: Counter[Hashable] = Counter()
        self._mean_s = 0.0
        self._granting = False
        self._will_grant = False
        self._is_room_all = False
        """What will be granted is a place that became free, and nothing else has changed."""

    # -- one call

    def ask(self, ticket: Ticket, now: float) -> Backend | None:
        """A backend with room for the call, counted as running it; None when the call has to wait.

        Raises:
            NotAdmitted: no backend is live, the queue is full, or the caller's deadline would be over.
        """
        ticket.asked_at = now
        backend = self._admit(ticket, now)
        if backend is None:
            self._enqueue(ticket, now)
        return backend

    def release(self, ticket: Ticket, backend: Backend, now: float, *, was_there: bool = True) -> None:
        """The call has left the backend.

        Args:
            was_there: False for one that never reached it, and says nothing about how long calls take.
        """
        self.group.release(backend)
        self.running -= 1
        if self.limits.client_max_in_flight is not None:
            self._running_of[ticket.client] -= 1
            if not self._running_of[ticket.client]:
                del self._running_of[ticket.client]
        if was_there:
            self._note_times(ticket, backend, now)
        if self.waiting and not self._will_grant:
            self._will_grant = self._is_room_all = True
            self._later(self._grant_soon)

    def _note_times(self, ticket: Ticket, backend: Backend, now: float) -> None:
        took = now - ticket.started_at
        self.busy_s += took
        self.done += 1
        self._mean_s += SMOOTHING * (took - self._mean_s) if self._mean_s else took
        self.times.add(ticket.started_at - ticket.asked_at, now - ticket.asked_at)
        backend.busy_s += took
        backend.times.add(took, now)

    def leave(self, ticket: Ticket) -> None:
        """The call is not wanted any more; it had to wait until now. Nobody is told of it after this."""
        ticket.wake = _ignore
        queue = self._queues.get(ticket.client)
        if queue is not None and ticket in queue:
            self._drop(queue, ticket)

    # -- the queue

    def changed(self) -> None:
        """There may be room, or no hope any more: look after those who wait."""
        self._is_room_all = False
        if self.waiting and not self._will_grant:
            self._will_grant = True
            self._later(self._grant_soon)

    def look(self, now: float) -> None:
        """Called now and then: drop those whose time is over, and let those run that can."""
        if self.waiting:
            self.grant(now)

    def grant(self, now: float) -> None:
        """Give free slots to those who wait, one client after the other; tell those who wait in vain."""
        for ticket in self._choosy:
            ticket.waits_for = ticket.only
        self._give(now)
        self._dismiss(now)

    def retry_after_s(self) -> float:
        """When a refused caller may try again: about when the queue of now is done."""
        slots = max(self.running, 1)
        return min(max(self._mean_s * (self.waiting + 1) / slots, SHORTEST_HINT_S), LONGEST_HINT_S)

    def _grant_soon(self, now: float) -> None:
        self._will_grant = False
        if self._is_room_all:
            self._is_room_all = False
            self._give(now)
        else:
            self.grant(now)

    def _give(self, now: float) -> None:
        """Let those run who can."""
        if self._granting:
            return
        self._granting = True
        try:
            while (found := self._next(now)) is not None:
                self._tell(*found)
        finally:
            self._granting = False

    def _next(self, now: float) -> tuple[Ticket, Backend] | None:
        """The first who can run, with its backend. Once one found no room that all could use, the others like it are
        not tried: a queue may be long, and this is done for each call that ends."""
        is_room = True
        for queue in self._queues.values():
            for ticket in queue:
                if self._is_full or not (is_room or self._choosy):
                    return None
                if self._is_limited(ticket):
                    break
                is_choosy = ticket in self._choosy
                if now >= ticket.deadline or not (_may_run(ticket) if is_choosy else is_room):
                    continue
                backend = self._admit(ticket, now)
                if backend is not None:
                    return ticket, backend
                if not is_choosy:
                    is_room = False
                elif ticket.waits_for is None and self.group.is_sticky:
                    ticket.waits_for = self.group.favourite(now, ticket.passed_over, ticket.key)
        return None

    def _dismiss(self, now: float) -> None:
        """Tell those whose time is over, and those who wait in vain."""
        is_busy = self.group.has_busy(now)
        waiting = [ticket for queue in self._queues.values() for ticket in queue]
        ends = [(ticket, self._end_of_waiting(ticket, now, is_busy)) for ticket in waiting]
        for ticket, text in ends:
            # whoever was told before may have taken another one away
            if text is not None and ticket in self._queues.get(ticket.client, ()):
                self._tell(ticket, text)

    def _end_of_waiting(self, ticket: Ticket, now: float, is_busy: bool) -> str | None:
        """Why it need not wait any longer; None: wait on."""
        if now >= ticket.deadline:
            return "its deadline passed while it waited for a backend; it was dropped unsent"
        if now >= ticket.asked_at + self.limits.queue_timeout_s:
            return self._overloaded(f"it waited {self.limits.queue_timeout_s:g} s for a backend")
        if (is_busy and ticket not in self._choosy) or self._can_wait(ticket, now):
            return None
        return self._nobody(ticket, now)

    def _tell(self, ticket: Ticket, verdict: Backend | str) -> None:
        """It waits no more; its client's next turn comes after everybody else's."""
        queue = self._queues[ticket.client]
        self._drop(queue, ticket)
        if queue:
            self._queues[ticket.client] = self._queues.pop(ticket.client)
        ticket.wake(verdict)

    def _admit(self, ticket: Ticket, now: float) -> Backend | None:
        limits, only = self.limits, ticket.only
        is_limited = limits.max_in_flight is not None or limits.client_max_in_flight is not None
        if is_limited and self._is_limited(ticket):
            return None
        if only is None:
            backend = self.group.pick(now, ticket.passed_over, ticket.key)
            if backend is None:
                return None
        else:
            if only.is_full or only in ticket.passed_over:
                return None
            backend = only
            self.group.take(backend)
        if limits.client_max_in_flight is not None:
            self._running_of[ticket.client] += 1
        self.running += 1
        ticket.started_at = now
        return backend

    @property
    def _is_full(self) -> bool:
        limit = self.limits.max_in_flight
        return limit is not None and self.running >= limit

    def _can_wait(self, ticket: Ticket, now: float) -> bool:
        """Whether waiting can help."""
        if ticket.only is not None:
            return ticket.only not in ticket.passed_over
        if self.group.has_busy(now, ticket.passed_over):
            return True
        return self._is_limited(ticket) and self.group.has_live(now, ticket.passed_over)

    def _is_limited(self, ticket: Ticket) -> bool:
        limit = self.limits.client_max_in_flight
        return self._is_full or (limit is not None and self._running_of[ticket.client] >= limit)

    def _enqueue(self, ticket: Ticket, now: float) -> None:
        if not self._can_wait(ticket, now):
            raise NotAdmitted(self._nobody(ticket, now))
        if self.limits.max_queue == 0:
            raise NotAdmitted(self._overloaded(self.group.describe(now, ticket.passed_over)))
        if ticket.deadline < now + self._expected_wait_s():
            raise NotAdmitted(self._overloaded("its deadline would pass before a backend is free"))
        if self.waiting >= self.limits.max_queue:
            self._make_room(ticket)
        self._queues.setdefault(ticket.client, deque()).append(ticket)
        if ticket.only is not None or ticket.passed_over or self.group.is_sticky:
            ticket.waits_for = ticket.only
            self._choosy.add(ticket)
        self.waiting += 1

    def _expected_wait_s(self) -> float:
        return self._mean_s * self.waiting / max(self.running, 1)

    def _make_room(self, ticket: Ticket) -> None:
        """Take the place of somebody who has more calls waiting than this client; NotAdmitted when nobody has."""
        greedy = max(self._queues.values(), key=len)
        own = self._queues.get(ticket.client, ())
        text = self._overloaded(f"{self.waiting} calls wait, its limit")
        if len(greedy) <= len(own) + 1:
            raise NotAdmitted(text)
        victim = greedy[-1]
        self._drop(greedy, victim)
        self._later(lambda now: victim.wake(text))

    def _drop(self, queue: deque[Ticket], ticket: Ticket) -> None:
        queue.remove(ticket)
        self._choosy.discard(ticket)
        self.waiting -= 1
        if not queue:
            del self._queues[ticket.client]

    def _overloaded(self, why: str) -> str:
        return f"service {self.name!r} is overloaded: {why}; try again in {self.retry_after_s():.2f} s"

    def _nobody(self, ticket: Ticket, now: float) -> str:
        return f"no live backend of service {self.name!r}: {self.group.describe(now, ticket.passed_over)}"


def _ignore(verdict: Backend | str) -> None:
    pass


def _may_run(ticket: Ticket) -> bool:
    """Whether the backend that it waits for, if that is known, has room."""
    return ticket.waits_for is None or not ticket.waits_for.is_full
