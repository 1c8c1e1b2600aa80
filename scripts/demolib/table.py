"""The table at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One thing that was done."""

    what: str
    channel: str
    size: int
    """Bytes."""
    seconds: float
    committed: str
    verified: bool


def lines(rows: Sequence[Row]) -> Iterator[str]:
    grid = [("what", "channel", "bytes", "seconds", "MB/s", "committed", "verified"), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    yield ""
    for row in grid:
        yield "  ".join(
            text.rjust(width) if 2 <= index <= 4 else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
    yield ""


def cells(row: Row) -> tuple[str, ...]:
    speed = f"{row.size / row.seconds / 1e6:,.1f}"
    verified = "yes" if row.verified else "NO"
    return row.what, row.channel, f"{row.size:,}", f"{row.seconds:.2f}", speed, row.committed, verified
