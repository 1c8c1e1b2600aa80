"""Repetitions taken in turns, and what is said about them: medians, ranges, ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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


Samples = dict[str, list[Sample]]


def in_turns(contestants: Sequence[Contestant], repetitions: int) -> Samples:
    """Run A B C A B C ...: a slow phase of the machine meets everyone."""
    samples: Samples = {contestant.name: [] for contestant in contestants}
    for repetition in range(repetitions):
        for contestant in contestants:
            sample = contestant.run()
            samples[contestant.name].append(sample)
            print(
                f"  {repetition + 1}/{repetitions}  {contestant.name:56} {sample.value:12,.1f}",
                file=sys.stderr,
                flush=True,
            )
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
    peers = [name for name in comparison.peers if name in samples]
    if comparison.product not in samples or not peers:
        return None
    choose = min if comparison.lower_is_better else max
    best = choose(peers, key=lambda name: median(samples[name]))
    pairs = zip(samples[comparison.product], samples[best], strict=True)
    if comparison.lower_is_better:
        return statistics.median(peer.value / ours.value for ours, peer in pairs), best
    return statistics.median(ours.value / peer.value for ours, peer in pairs), best
