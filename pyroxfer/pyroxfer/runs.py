"""Runs: stretches of a file with their digests, by which an interrupted transfer is taken up again. Pure.

A run that begins at 0 is a beginning of the file. Its digest is the running digest of the whole file as it was at
that point, so that beginnings cost nothing while the file moves, and proving one proves all shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

MIB: Final = 1024 * 1024
LEAST_STEP: Final = 4 * MIB
"""Smallest distance between two beginnings that are noted."""
MOST_STEPS: Final = 1024
"""A file has about so many noted beginnings at most, so that two ends compare them in one message."""
UNKNOWN: Final = ""
"""In the place of a digest that nobody has noted."""
MAX_RUNS: Final = 4 * MOST_STEPS
"""Runs that travel in one message at most."""


class Range(NamedTuple):
    """Where bytes are in a file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """So many bytes from ``start`` on have this digest."""

    start: int
    length: int
    digest: str

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.start + self.length


def step_for(size: int | None) -> int:
    """Bytes between two noted beginnings of a file of this size, a whole number of MiB."""
    wanted = (size or 0) // MOST_STEPS
    return max(LEAST_STEP, -(-wanted // MIB) * MIB)


def covered(runs: Iterable[Run]) -> list[Range]:
    """What the runs cover together: ranges in order, none touching another."""
    found: list[Range] = []
    for run in sorted(runs, key=lambda run: (run.start, -run.length)):
        if found and run.start <= sum(found[-1]):
            last = found.pop()
            found.append(Range(last.offset, max(sum(last), run.end) - last.offset))
        elif run.length:
            found.append(Range(run.start, run.length))
    return found


def gaps(size: int, kept: Sequence[Range]) -> list[Range]:
    """What is missing of ``size`` bytes beside the kept ranges, which are in order and do not touch."""
    found, position = [], 0
    for offset, length in kept:
        if offset > position:
            found.append(Range(position, offset - position))
        position = offset + length
    if position < size:
        found.append(Range(position, size - position))
    return found


def pieces(ranges: Iterable[Range], longest: int) -> Iterable[Range]:
    """The same ranges in pieces of at most ``longest`` bytes, in order."""
    for offset, length in ranges:
        for start in range(offset, offset + length, longest):
            yield Range(start, min(longest, offset + length - start))
