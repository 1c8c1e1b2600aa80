"""The interop matrix: a table for each direction, scenarios down, peers and serializers across."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

Cells = dict[str, dict[str, str]]


class Report(Protocol):
    """What the table needs of a pytest report."""

    outcome: str
    user_properties: list[tuple[str, object]]


def cell(direction: str, row: str, column: str, cannot: str = "") -> tuple[str, tuple[str, str, str, str]]:
    """The arguments of ``record_property`` that put a test into the table.

    Args:
        cannot: who is unable to do this, when the test shows that it fails as it must.
    """
    return "interop", (direction, row, column, cannot)


def lines(reports: Iterable[Report]) -> Iterator[str]:
    """The tables as text."""
    for direction, rows in gathered(reports).items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        yield ""
        yield direction
        yield from table(rows, columns)


def gathered(reports: Iterable[Report]) -> dict[str, Cells]:
    tables: dict[str, Cells] = defaultdict(lambda: defaultdict(dict))
    for report in reports:
        for name, value in report.user_properties:
            if name == "interop" and isinstance(value, tuple):
                direction, row, column, cannot = value
                known = tables[direction][row].get(column)
                here = "FAIL" if report.outcome != "passed" else cannot or "ok"
                tables[direction][row][column] = "FAIL" if "FAIL" in (known, here) else here
    return tables


def table(rows: Cells, columns: Sequence[str]) -> Iterator[str]:
    """Aligned text; an empty cell was not part of this run."""
    grid = [["", *columns], *([row, *(cells.get(column, "") for column in columns)] for row, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    for line in grid:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
