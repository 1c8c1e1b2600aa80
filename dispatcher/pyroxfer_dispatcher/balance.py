"""The choice between backends that could take a call. Pure: time and chance are passed in."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

from .backends import Backend

LEAST_OF_TWO: Final = "least-of-two"
ROUND_ROBIN: Final = "round-robin"
HASH: Final = "hash"
POLICIES: Final = (LEAST_OF_TWO, ROUND_ROBIN, HASH)
DRAWS: Final = 24
"""How often chance is asked for two backends that can be used, before all are looked at."""
SLOWEST: Final = 0.1
"""Part of its weight that a backend has at once when it comes back; the rest follows evenly."""

Choice = Callable[[Sequence[Backend], float, str | None], Backend]
"""Chooses from one or more candidates, given the time and the key of the call."""


def effective_weight(backend: Backend, now: float, slow_start_s: float) -> float:
    """Its weight, less while it warms up."""
    age = now - backend.up_since
    if age >= slow_start_s:
        return backend.weight
    return backend.weight * max(SLOWEST, age / slow_start_s)


class LeastOfTwo:
    """Of two taken by chance (heavier ones more often), the one with fewer calls for its weight.

    Nobody can be the least loaded one for everybody at once, as with a choice among all.
    """

    def __init__(self, slow_start_s: float, chance: random.Random) -> None:
        self._slow_start_s = slow_start_s
        self._chance = chance
        self._heaviest = 0.0
        """The largest weight that was seen lately."""

    def __call__(self, candidates: Sequence[Backend], now: float, key: str | None) -> Backend:
        if len(candidates) == 1:
            return candidates[0]
        weights = [effective_weight(backend, now, self._slow_start_s) for backend in candidates]
        self._heaviest = max(weights)
        first, second = self._two(weights)
        return _less_busy(candidates[first], weights[first], candidates[second], weights[second])

    def draw(self, pool: Sequence[Backend], usable: Callable[[Backend], bool], now: float) -> Backend | None:
        """The same, of so many that looking at each would take long: two are drawn, again where one cannot be used,
        or is so light that it is not its turn. None when that did not find two."""
        chance, count = self._chance.random, len(pool)
        first, its_weight = None, 0.0
        for _ in range(DRAWS):
            backend = pool[int(chance() * count)]
            if backend is first or not usable(backend):
                continue
            weight = effective_weight(backend, now, self._slow_start_s)
            self._heaviest = max(self._heaviest, weight)
            if weight < self._heaviest and weight < self._heaviest * chance():
                continue
            if first is not None:
                return _less_busy(first, its_weight, backend, weight)
            first, its_weight = backend, weight
        return None

    def _two(self, weights: Sequence[float]) -> tuple[int, int]:
        """Two different places, in random order."""
        chance, count = self._chance, len(weights)
        if count == 2:
            return (0, 1) if chance.random() < 0.5 else (1, 0)
        if min(weights) == max(weights):
            first = int(chance.random() * count)
            second = int(chance.random() * (count - 1))
            return first, second + (second >= first)
        places = range(count)
        (first,) = chance.choices(places, weights)
        others = [place for place in places if place != first]
        (second,) = chance.choices(others, [weights[place] for place in others])
        return first, second


def _less_busy(a: Backend, a_weight: float, b: Backend, b_weight: float) -> Backend:
    """The one with fewer calls, or as many and fewer clients, for its weight."""
    if (a.in_flight + 1) * b_weight != (b.in_flight + 1) * a_weight:
        return a if (a.in_flight + 1) * b_weight < (b.in_flight + 1) * a_weight else b
    return a if a.clients * b_weight <= b.clients * a_weight else b


class RoundRobin:
    """Each in turn, as often as its weight says, and evenly mixed."""

    def __init__(self, slow_start_s: float) -> None:
        self._slow_start_s = slow_start_s
        self._place = 0
        """Of many: who is next."""
        self._heaviest = self._heaviest_so_far = 0.0
        """The largest weight of a round, and of the one that is running."""

    def __call__(self, candidates: Sequence[Backend], now: float, key: str | None) -> Backend:
        total = 0.0
        for backend in candidates:
            weight = effective_weight(backend, now, self._slow_start_s)
            backend.turn += weight
            total += weight
        chosen = max(candidates, key=_turn)
        chosen.turn -= total
        return chosen

    def draw(self, pool: Sequence[Backend], usable: Callable[[Backend], bool], now: float) -> Backend | None:
        """The same, of so many that looking at each would take long: the turn goes round, and who is lighter than the
        heaviest lets it pass as often as that takes. None when nobody took it in one round."""
        for _ in pool:
            if self._place >= len(pool):
                self._place, self._heaviest, self._heaviest_so_far = 0, self._heaviest_so_far, 0.0
            backend = pool[self._place]
            self._place += 1
            if not usable(backend):
                continue
            weight = effective_weight(backend, now, self._slow_start_s)
            self._heaviest_so_far = max(self._heaviest_so_far, weight)
            self._heaviest = max(self._heaviest, weight)
            backend.saved += weight / self._heaviest
            if backend.saved >= 1:
                backend.saved -= 1
                return backend
        return None


_turn = attrgetter("turn")


class Rendezvous:
    """By a key: the same backend each time, and when one of n goes only its own keys move."""

    def __call__(self, candidates: Sequence[Backend], now: float, key: str | None) -> Backend:
        return max(candidates, key=lambda backend: score(backend, key or ""))


def score(backend: Backend, key: str) -> float:
    """How well a backend suits a key: weights hold, and nobody's score depends on who else is there."""
    name = backend.name.encode("utf-8", "surrogatepass")
    if len(name) > hashlib.blake2b.MAX_KEY_SIZE:
        name = hashlib.blake2b(name).digest()
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=name, digest_size=8).digest()
    part = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -backend.weight / math.log(part)


def choice_for(policy: str, slow_start_s: float, chance: random.Random) -> Choice:
    """The rule of this name. ValueError: there is none."""
    if policy == LEAST_OF_TWO:
        return LeastOfTwo(slow_start_s, chance)
    if policy == ROUND_ROBIN:
        return RoundRobin(slow_start_s)
    if policy == HASH:
        return Rendezvous()
    raise ValueError(f"{policy!r} is not known; choose one of: {', '.join(POLICIES)}")
