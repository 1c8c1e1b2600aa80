"""How long calls take: counts in fixed buckets, so that neither memory nor time depends on their number. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

BOUNDS: Final = tuple(1e-4 * 2 ** (step / 2) for step in range(41))
"""Upper bounds of the buckets in seconds, from a tenth of a millisecond to 105 s: a quantile is within a fifth of the
truth. Every second one is told to Prometheus. What took longer is in one more bucket."""
TOLD_EVERY: Final = 2
WINDOW_S: Final = 60.0
"""`Recent` tells of the last one to two of these."""


class Histogram:
    """Counts since the beginning."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """One more took so long."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total_s += seconds

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Upper bounds, and how many took no longer; the last bound is infinite."""
        counts = list(accumulate(self.counts))
        yield from zip(BOUNDS[::TOLD_EVERY], counts[::TOLD_EVERY], strict=False)
        yield math.inf, counts[-1]


class ServiceTimes:
    """Of the calls of one service: how long they waited for a backend, and how long they took with that."""

    __slots__ = ("call", "queue")

    def __init__(self) -> None:
        self.queue = Histogram()
        self.call = Histogram()

    def add(self, queue_s: float, call_s: float) -> None:
        """One more waited and took so long."""
        if queue_s:
            self.queue.add(queue_s)
        else:
            self.queue.counts[0] += 1  # as of nearly all: no place is looked for
        self.call.add(call_s)


class Recent:
    """Counts of a while ago and since."""

    __slots__ = ("_before", "_now", "_turns_at")

    def __init__(self) -> None:
        self._before = [0] * (len(BOUNDS) + 1)
        self._now = [0] * (len(BOUNDS) + 1)
        self._turns_at = -math.inf

    def add(self, seconds: float, now: float) -> None:
        """One more took so long."""
        if now >= self._turns_at:
            self._turn(now)
        self._now[bisect_left(BOUNDS, seconds)] += 1

    def _turn(self, now: float) -> None:
        is_long_ago = now >= self._turns_at + WINDOW_S
        self._before = [0] * len(self._now) if is_long_ago else self._now
        self._now = [0] * len(self._now)
        self._turns_at = now + WINDOW_S

    def quantile(self, part: float, now: float) -> float | None:
        """What this part of the calls did not exceed, in seconds; None when there were none.

        The middle of its bucket, so about a fifth less or more than the truth. Beyond the last bound it is that.
        """
        if now >= self._turns_at:
            self._turn(now)
        counts = [before + since for before, since in zip(self._before, self._now, strict=True)]
        total = sum(counts)
        if not total:
            return None
        place = bisect_left(list(accumulate(counts)), max(1, math.ceil(part * total)))
        if place == len(BOUNDS):
            return BOUNDS[-1]
        return BOUNDS[place] * 2**-0.25
