"""The state of every backend and the choice between them. Pure: the time is passed in, never read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyroxfer_core import Uri

from .latency import Recent

FIRST_BACKOFF_S: Final = 0.25
"""A refused backend is left alone this long at first, twice as long after each further refusal ..."""
MAX_BACKOFF_S: Final = 10.0
"""... but never longer than this, so that a repaired backend is back in use within seconds. When no other backend is
left, it is tried again after FIRST_BACKOFF_S already: a call must not be refused while a backend is there."""
MAX_WEIGHT: Final = 1000.0
MOST_DESCRIBED: Final = 10
"""Backends whose state an error text tells."""
FEW: Final = 16
"""So many backends are all looked at for each call; of more some are drawn, and a call costs no more among many."""
MOST_KEYS: Final = 10_000
LONGEST_KEY: Final = 200
"""Keys whose backends are remembered, and characters of each."""
IN_FILE: Final = "file"
"""Origin of a backend that the configuration names."""


@dataclass(slots=True, eq=False)
class Backend:
    """One backend of a service. Only its group changes it."""

    name: str
    uri: Uri
    max_in_flight: int | None = None
    """Calls it runs at once; None is without limit."""
    in_flight: int = 0
    weight: float = 1.0
    """How much it gets, compared with the others."""
    is_weighed: bool = False
    """An operator has said that weight."""
    tags: frozenset[str] = frozenset()
    """What its service may prefer it for: a zone, a kind of machine."""
    origin: str = IN_FILE
    """Who told of it: the ``file``, a name server (``ns``), ``etcd``, or itself (``client``)."""
    turn: float = 0.0
    """What it has coming where backends are taken in turn ..."""
    saved: float = 0.0
    """... and what part of a turn it has saved, where the turn goes round many."""
    up_since: float = float("-inf")
    """When it came back."""
    clients: int = 0
    """Clients whose connection belongs to it."""
    draining: bool = False
    """A draining backend finishes its calls and gets no new ones."""
    disabled: bool = False
    """It drains, and its clients are cut between calls."""
    calls: int = 0
    """Calls it was given so far ..."""
    busy_s: float = 0.0
    """... and for how long it had those that have ended, all together."""
    times: Recent = field(default_factory=Recent, repr=False)
    """How long the latest of them took."""
    failures: int = 0
    """Connects that failed in a row."""
    retry_at: float = 0.0
    """When a backend that is down may be tried again."""
    failed_at: float = float("-inf")
    """When it last refused a connection."""
    probing: bool = False
    """A call is trying out whether it is back; others do not wait for the same refusal."""
    leaving: bool = False
    """It is down because it said that it goes away. Calls that it has go on."""
    reason: str = ""
    """Why it is down, for people."""
    refused_versions: set[int] = field(default_factory=set)
    """Protocol versions it is known not to speak."""
    failed_calls: int = 0
    """Calls in a row that it was given and did not answer."""
    lost_at: float = float("-inf")
    """When a connection to it broke last with a call on it."""
    ejected_until: float | None = None
    """When it may get calls again, while it is ejected; None while it is not."""
    eject_reason: str = ""
    """Why it was ejected last, for people."""
    ejections: int = 0
    """How often it was ejected."""
    in_row: int = 0
    """How often it was ejected in a row, when it was last ejected; see `ejections_in_row`."""
    returned_at: float = float("-inf")
    """When its last ejection ended."""

    def weigh(self, weight: float) -> None:
        """An operator says how much it gets: until whoever told of it says another weight than before."""
        self.weight, self.is_weighed = weight, True

    def shape(
        self, weight: float, tags: frozenset[str], max_in_flight: int | None, *, weight_before: float | None = None
    ) -> None:
        """Be as file or registry say; what it runs, and whether it is up, stays.

        Args:
            weight_before: what they said last; an operator's word holds where they say the same again.
        """
        if weight != weight_before:
            self.weight, self.is_weighed = weight, False
        self.tags, self.max_in_flight = tags, max_in_flight

    def is_live(self, now: float) -> bool:
        """Whether a call may be given to it, busy or not."""
        if self.draining or self.ejected_until is not None:
            return False
        return not self.failures or (now >= self.retry_at and not self.probing)

    def is_last_resort(self, now: float) -> bool:
        """Whether a call that no live backend can take may try it, although it was to be left out for longer."""
        return not self.draining and not self.probing and now >= self.failed_at + FIRST_BACKOFF_S

    @property
    def is_full(self) -> bool:
        """Whether it runs as many calls as it may."""
        return self.max_in_flight is not None and self.in_flight >= self.max_in_flight

    def ejections_in_row(self, now: float, forgotten_after_s: float) -> int:
        """How often it was ejected in a row; one less for each ``forgotten_after_s`` for which it has been back."""
        if self.ejected_until is not None or not self.in_row:
            return self.in_row
        return max(0, self.in_row - int((now - self.returned_at) / forgotten_after_s))

    def describe(self, now: float, refusal: str | None = None) -> str:
        """Its state for an error text, e.g. ``b1 is down (connection refused), next try in 0.4 s``.

        Args:
            refusal: what it answered when it was asked for a connection just now.
        """
        if self.draining:
            return f"{self.name} is draining"
        next_try = min(self.retry_at, self.failed_at + FIRST_BACKOFF_S)
        state = "leaving" if self.leaving else f"down ({self.reason})"
        if self.failures and now < next_try:
            return f"{self.name} is {state}, next try in {next_try - now:.1f} s"
        if self.failures:
            return f"{self.name} is {state}"
        if self.ejected_until is not None:
            return f"{self.name} is ejected ({self.eject_reason})"
        if refusal is not None:
            return f"{self.name} refused ({refusal})"
        return f"{self.name} runs {self.in_flight} calls" + (", its limit" if self.is_full else "")


class Chooser(Protocol):
    """Chooses from one or more candidates."""

    def __call__(self, candidates: Sequence[Backend], now: float, key: str | None, /) -> Backend: ...


class Drawer(Protocol):
    """Chooses without looking at all of them; None when chance did not find two that can be used."""

    def __call__(
        self, pool: Sequence[Backend], usable: Callable[[Backend], bool], now: float, /
    ) -> Backend | None: ...


def _first(candidates: Sequence[Backend], now: float, key: str | None) -> Backend:
    return candidates[0]


class Roomy:
    """Those of some backends that are not full, to draw from."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._known = frozenset(backends)
        self.all = [backend for backend in backends if not backend.is_full]
        self._places = {backend: place for place, backend in enumerate(self.all)}

    def add(self, backend: Backend) -> None:
        """It has room. Others than those known from the start are left out."""
        if backend in self._known and backend not in self._places:
            self._places[backend] = len(self.all)
            self.all.append(backend)

    def discard(self, backend: Backend) -> None:
        """It is full; the last one takes its place."""
        place = self._places.pop(backend, None)
        if place is not None:
            last = self.all.pop()
            if last is not backend:
                self.all[place] = last
                self._places[last] = place


class BackendGroup:
    """The backends of one service.

    Every `pick` or `take` is answered by exactly one `release`.

    Args:
        choose: the rule; by default the first that can.
        prefer: tags; backends with the first tag are taken while any of them can, then those with the second, then
            the others.
        sticky: a key belongs to its backend also when that is busy: a call waits for it.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        choose: Chooser = _first,
        prefer: Sequence[str] = (),
        *,
        sticky: bool = False,
    ) -> None:
        self.why_empty = "it has none"
        """What is said of it while there are no backends."""
        self._choose = choose
        self._prefer = tuple(prefer)
        self._sticky = sticky
        self._favourites: dict[str | None, Backend] = {}
        """Whose a key is, when all are live."""
        self.backends = tuple(backends)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All of them, in the order in which they were told."""
        return self._backends

    @backends.setter
    def backends(self, backends: Iterable[Backend]) -> None:
        self._backends = tuple(backends)
        self._roomy = Roomy(self._backends)
        self._favourites.clear()

    @property
    def is_sticky(self) -> bool:
        """Whether a key belongs to its backend also when that is busy."""
        return self._sticky

    def weigh(self, backend: Backend, weight: float) -> None:
        """As `Backend.weigh`, for one of these."""
        backend.weigh(weight)
        self._favourites.clear()

    def add(self, backend: Backend) -> None:
        """One more."""
        self.backends = (*self.backends, backend)

    def become(self, other: BackendGroup, backends: Iterable[Backend]) -> None:
        """Choose as another group does, among these."""
        self._choose, self._prefer, self._sticky = other._choose, other._prefer, other._sticky
        self.backends = tuple(backends)

    def remove(self, backend: Backend) -> None:
        """One less; calls it still runs are released as any."""
        self.backends = tuple(one for one in self.backends if one is not backend)

    def pick(self, now: float, exclude: Container[Backend] = (), key: str | None = None) -> Backend | None:
        """A live backend with room, now counted as running one call more.

        When none can: one that is down but was not asked just now, for it may be back; when none is live: one that is
        ejected. None when there is none of these either, or when all are busy.
        """
        if self._sticky:
            favourite = self.favourite(now, exclude, key)
            chosen = None if favourite is None or favourite.is_full else favourite
        elif not (roomy := self._roomy.all):
            return None
        else:
            chosen = self._drawn(now, exclude) if len(roomy) > FEW else None
            chosen = chosen or self._pick_of_all(now, exclude, key)
        if chosen is not None:
            chosen.probing = chosen.failures > 0
            self.take(chosen)
        return chosen

    def _drawn(self, now: float, exclude: Container[Backend]) -> Backend | None:
        """One of many, as the rule has it, where that does not take looking at all."""
        draw: Drawer | None = getattr(self._choose, "draw", None)
        if draw is None or self._prefer:
            return None
        return draw(self._roomy.all, lambda backend: backend.is_live(now) and backend not in exclude, now)

    def _pick_of_all(self, now: float, exclude: Container[Backend], key: str | None) -> Backend | None:
        some = self._roomy.all if len(self._backends) > FEW else self._backends
        free: Sequence[Backend] = [b for b in some if not b.is_full and b.is_live(now) and b not in exclude]
        if not free:
            free = self._last_resorts([b for b in some if not b.is_full], now, exclude)
        return self._choose(self._preferred(free), now, key) if free else None

    def pick_home(self, now: float, exclude: Container[Backend] = (), key: str | None = None) -> Backend | None:
        """A backend for a client's connection, which is no call: busy ones are taken where all are.

        To be answered by one `tried`. None when none is live.
        """
        live = self._live(now, exclude)
        free = live if self._sticky else [backend for backend in live if not backend.is_full] or live
        chosen = self._choose(self._preferred(free), now, key) if free else None
        if chosen is not None:
            chosen.probing = chosen.failures > 0
        return chosen

    def tried(self, backend: Backend) -> None:
        """Connecting to it is over, whatever came of it."""
        backend.probing = False

    def _live(self, now: float, exclude: Container[Backend]) -> Sequence[Backend]:
        """Those that may be asked; when there are none, those that are the last resort."""
        live = [backend for backend in self.backends if backend.is_live(now) and backend not in exclude]
        return live or self._last_resorts(self.backends, now, exclude)

    def _last_resorts(
        self, candidates: Sequence[Backend], now: float, exclude: Container[Backend]
    ) -> Sequence[Backend]:
        """Those that are down but were not asked just now; and where no backend is live, those that are ejected."""
        found = [backend for backend in candidates if backend.is_last_resort(now) and backend not in exclude]
        spared = [backend for backend in found if backend.ejected_until is None]
        if spared or any(backend.is_live(now) and backend not in exclude for backend in self.backends):
            return spared
        return found

    def favourite(self, now: float, exclude: Container[Backend] = (), key: str | None = None) -> Backend | None:
        """The backend that a key belongs to, busy or not. None when none is live."""
        best = self._favourites.get(key)
        if best is None and self._backends:
            best = self._choose(self._backends, now, key)
            if key is None or len(key) <= LONGEST_KEY:
                if len(self._favourites) >= MOST_KEYS:
                    self._favourites.clear()
                self._favourites[key] = best
        if best is not None and best.is_live(now) and best not in exclude:
            return best
        live = self._live(now, exclude)
        return self._choose(live, now, key) if live else None

    def _preferred(self, candidates: Sequence[Backend]) -> Sequence[Backend]:
        for tag in self._prefer:
            tagged = [backend for backend in candidates if tag in backend.tags]
            if tagged:
                return tagged
        return candidates

    def has_live(self, now: float, exclude: Container[Backend] = ()) -> bool:
        """Whether any backend may be given a call, busy or not."""
        return bool(self._live(now, exclude))

    def has_busy(self, now: float, exclude: Container[Backend] = ()) -> bool:
        """Whether a backend would take a call, if it were not busy."""
        return any(
            backend.is_full and backend not in exclude and (backend.is_live(now) or backend.is_last_resort(now))
            for backend in self.backends
        )

    def take(self, backend: Backend) -> None:
        """Count a call for a backend that is bound to get it, whatever its state."""
        backend.in_flight += 1
        backend.calls += 1
        if backend.is_full:
            self._roomy.discard(backend)

    def release(self, backend: Backend) -> None:
        """A call has left the backend, or never reached it."""
        backend.in_flight -= 1
        backend.probing = False
        if not backend.is_full:
            self._roomy.add(backend)

    def opened(self, backend: Backend, now: float) -> bool:
        """A connection to it works. True when it had been down."""
        was_down = backend.failures > 0
        backend.failures = 0
        backend.leaving = False
        backend.probing = False
        if was_down:
            backend.up_since = now
        return was_down

    def failed(self, backend: Backend, now: float, reason: str, at_least_s: float = 0.0) -> bool:
        """It refused a connection: leave it alone for a while. True when it had been up.

        Args:
            at_least_s: that long; somebody else asks it meanwhile.
        """
        was_up = backend.failures == 0
        backend.refused_versions.clear()  # whatever comes up there next may speak them
        backend.leaving = False
        self._leave_alone(backend, now, reason, at_least_s)
        return was_up

    def left(self, backend: Backend, now: float) -> bool:
        """It said that it goes away: it gets nothing more until a connection to it works again.

        Returns:
            Whether it was up; each of its connections may say so.
        """
        was_up = backend.failures == 0
        if was_up:
            backend.leaving = True
            self._leave_alone(backend, now, "it is going away")
        return was_up

    def refused(self, backend: Backend, now: float) -> None:
        """It takes no connection just now: it is busy, unless it was leaving, and still is."""
        if backend.leaving:
            self._leave_alone(backend, now, backend.reason)

    def _leave_alone(self, backend: Backend, now: float, reason: str, at_least_s: float = 0.0) -> None:
        backend.failures += 1
        backend.reason = reason
        backend.failed_at = now
        pause_s = min(FIRST_BACKOFF_S * 2 ** min(backend.failures - 1, 16), MAX_BACKOFF_S)
        backend.retry_at = now + max(pause_s, at_least_s)

    def describe(self, now: float, refusals: Mapping[Backend, str]) -> str:
        """The state of all its backends for an error text."""
        states = [backend.describe(now, refusals.get(backend)) for backend in self.backends[:MOST_DESCRIBED]]
        if len(self.backends) > MOST_DESCRIBED:
            states.append(f"and {len(self.backends) - MOST_DESCRIBED} more")
        return "; ".join(states) or self.why_empty
