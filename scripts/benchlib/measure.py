"""Repetitions taken in turns, and what is said about them: medians, ranges, ratios."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Run = Callable[[], "Sample"]


@dataclass(frozen=True)
class Sample:
    """One run of one contestant."""

    value: float
    """The figure compared: calls/s, MB/s or microseconds."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """More about the same run, by the name of its column."""


@dataclass(frozen=True)
class Contestant:
    """Something to measure: a product or a peer."""

    name: str
    run: Run


@dataclass(frozen=True)
class Comparison:
    """A figure that is held against another of the same run."""

    text: str
    product: str
    peers: Sequence[str]
    """The best of these counts."""
    wanted: float | None = None
    """The ratio the project asks of itself, or None."""
    lower_is_better: bool = False


@dataclass(frozen=True)
class Growth:
    """How the cost of one unit of work grows with the amount of something else, over rows of the same run."""

    text: str
    rows: Mapping[int, str]
    """Name of the row measured at each amount."""
    column: str | None = None
    """Where the row has the cost; None: the compared figure is a rate, and its inverse the cost."""


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    repetitions: int
    seconds: float
    """Of load in one repetition, where a row is load and not a piece of work."""
    quick: bool = False
    """A look only: smaller files and fewer things, too."""

    def some(self, amounts: Sequence[T]) -> Sequence[T]:
        """Of amounts that grow: all; for a look every other one, and not the last."""
        return amounts[:-1:2] if self.quick else amounts


@dataclass
class Samples:
    """What was measured, by the name of its row, and how fast the machine was meanwhile."""

    rows: dict[str, list[Sample]]
    calibration: list[float] = field(default_factory=list)
    """For each repetition, what :func:`calibrate` said before it."""


def calibrate() -> float:
    """Additions a microsecond, best of three short loops: how fast one core is now, whatever runs beside."""
    count = 100_000
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        sum(number & 7 for number in range(count))
        best = min(best, time.perf_counter() - begin)
    return count / best / 1e6


def in_turns(contestants: Sequence[Contestant], repetitions: int) -> Samples:
    """Run A B C A B C ...: a slow phase of the machine meets everyone."""
    samples = Samples({contestant.name: [] for contestant in contestants})
    total = repetitions * len(contestants)
    with tqdm(total=total, leave=False, disable=None, unit="run", dynamic_ncols=True) as bar:
        for repetition in range(repetitions):
            samples.calibration.append(calibrate())
            for contestant in contestants:
                bar.set_postfix_str(contestant.name)
                sample = contestant.run()
                samples.rows[contestant.name].append(sample)
                bar.write(f"  {repetition + 1}/{repetitions}  {contestant.name:56} {sample.value:12,.1f}", sys.stderr)
                bar.update()
    return samples


def median(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.value for sample in samples)


def median_extra(samples: Sequence[Sample], name: str) -> float | None:
    values = [sample.extra[name] for sample in samples if name in sample.extra]
    return statistics.median(values) if values else None


def ratio(comparison: Comparison, samples: Samples) -> tuple[float, str] | None:
    """How many times better the product is, and the best peer; None when this run did not have both.

    The median of the ratios repetition by repetition: both sides of each ratio were taken within moments.
    """
    rows = samples.rows
    peers = [name for name in comparison.peers if name in rows]
    if comparison.product not in rows or not peers:
        return None
    choose = min if comparison.lower_is_better else max
    best = choose(peers, key=lambda name: median(rows[name]))
    pairs = zip(rows[comparison.product], rows[best], strict=True)
    if comparison.lower_is_better:
        return statistics.median(peer.value / ours.value for ours, peer in pairs), best
    return statistics.median(ours.value / peer.value for ours, peer in pairs), best


def ratios_to_others(comparison: Comparison, samples: Samples, best: str) -> dict[str, float]:
    """`ratio` to each of the peers but the best."""
    others = [name for name in comparison.peers if name != best and name in samples.rows]
    each = ((name, ratio(replace(comparison, peers=[name]), samples)) for name in others)
    return {name: found[0] for name, found in each if found is not None}


def exponent(growth: Growth, samples: Samples, last: int | None = None) -> float | None:
    """The power of the amount that the cost of one unit follows: 0 is flat, 1 means that twice as many cost twice.

    Slope of the least-squares line through the logarithms of the medians; None with less than two rows.

    Args:
        last: of the largest amounts only so many: there no fixed part of the cost hides what grows.
    """
    points = []
    for amount, name in growth.rows.items():
        if name not in samples.rows:
            continue
        taken = samples.rows[name]
        cost = median_extra(taken, growth.column) if growth.column else 1 / median(taken)
        if cost and cost > 0:  # what is less than the spread of what was subtracted says nothing
            points.append((math.log(amount), math.log(cost)))
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points[-last if last else 0 :], strict=True)).slope
