"""Files of every size over every channel, and what the program picks by itself."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import report
from measure import Effort, Sample, Samples, calibrate
from processes import OURS, Server, command, program, run_client

SIZES = {
    "1 B": 1,
    "1 KiB": 1 << 10,
    "64 KiB": 1 << 16,
    "1 MiB": 1 << 20,
    "16 MiB": 1 << 24,
    "256 MiB": 1 << 28,
    "1 GiB": 1 << 30,
}
FORCED = ("iter", "annot", "raw")
REPETITIONS = 15
"""As few as a bound on the median of ratios can be had from."""
WANTED = 0.85
UNIT = "MB/s"


def measure(effort: Effort, folder: Path) -> dict[str, Any]:
    """One table: rows by channel and size, and how far `auto` is from the best of the others."""
    sizes = dict(list(SIZES.items())[: 4 if effort.quick else None])
    with tempfile.TemporaryDirectory(dir=folder) as served, tempfile.TemporaryDirectory(dir=folder) as got:
        for size in sizes.values():
            fill(Path(served) / str(size), size)
        calibration = [calibrate()]
        with Server(command("pyroxfer", "serve", served)) as server:
            client = program(OURS, "files_sizes.py", server.uri, got, 3 if effort.quick else REPETITIONS)
            seconds = run_client([*client, *map(str, sizes.values())])
    rows = {
        f"{channel}, {label}": [Sample(size / took / 1e6, {"ms": took * 1e3}) for took in taken]
        for label, size in sizes.items()
        for channel, taken in seconds[str(size)].items()
    }
    table = report.section(UNIT, Samples(rows, calibration), [])
    table["ratios"] = [compared(label, seconds[str(size)]) for label, size in sizes.items()]
    return table


def compared(label: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """`auto` against the best forced channel of this size: the lower end of what the median ratio may be."""
    best = min(FORCED, key=lambda channel: statistics.median(seconds[channel]))
    ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds["auto"], strict=True)]
    return {
        "text": f"auto, {label}, lower 95 % bound",
        "ratio": lower_bound(ratios),
        "against": f"{best}, {label}",
        "wanted": WANTED,
    }


def lower_bound(ratios: Sequence[float], draws: int = 2000) -> float:
    """Of the median, by drawing again and again from what was measured: 95 of 100 medians are above it."""
    random = Random(1)
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 20]


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for piece in pieces(size):
            file.write(os.urandom(piece))


def pieces(size: int) -> Iterator[int]:
    while size:
        yield min(size, 1 << 20)
        size -= min(size, 1 << 20)
