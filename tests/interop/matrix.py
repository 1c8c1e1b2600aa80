"""The interop matrix: what a test of it shows, and the pages made of what the tests found.

A test says with the mark ``cell`` where in which table it stands, so the cells are known before anything runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

BEGIN, END = "<!-- cells: written by scripts/interop -->", "<!-- end of the cells -->"
FAILED, PASSED, CANNOT = "FAIL", "ok", "n/a"


class Cell(NamedTuple):
    """One place in a table."""

    table: str
    row: str
    column: str
    cannot: str = ""
    """Why a stock library is unable to do this; the test shows that it fails as it must."""


class Unable(NamedTuple):
    """What a stock library cannot do."""

    match: str
    """Pattern of the error's text."""
    why: str


class Report(Protocol):
    """What the tables need of a pytest report."""

    outcome: str
    user_properties: list[tuple[str, Any]]


Parameters = Mapping[str, Any]


def cell(
    table: str,
    row: str = "{scenario}",
    column: str = "{library}",
    cannot: Callable[[Parameters], Unable | None] | None = None,
) -> pytest.MarkDecorator:
    """Puts a test into a table.

    Args:
        table, row, column: texts with the test's parameters in braces.
        cannot: tells by the parameters who is unable to do this.
    """
    return pytest.mark.cell(table, row, column, cannot)


def cell_of(item: pytest.Item) -> Cell | None:
    """The place of a test; None for one that is in no table."""
    mark = item.get_closest_marker("cell")
    if mark is None:
        return None
    table, row, column, cannot = mark.args
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    unable = cannot(parameters) if cannot is not None else None
    table, row, column = (text.format_map(parameters).replace("_", " ") for text in (table, row, column))
    return Cell(table, row, column, unable.why if unable is not None else "")


def found(reports: Iterable[Report]) -> dict[Cell, str]:
    """What became of each cell; one that several tests share is good when all are."""
    cells: dict[Cell, str] = {}
    for report in reports:
        for name, texts in report.user_properties:
            if name == "interop":
                place = Cell(*texts)
                here = (CANNOT if place.cannot else PASSED) if report.outcome == "passed" else FAILED
                cells[place] = FAILED if FAILED in (here, cells.get(place)) else here
    return cells


def page(cells: Mapping[Cell, str]) -> Iterator[str]:
    """Lines of Markdown: the totals, a table for each direction, the reasons."""
    totals = Counter(cells.values())
    yield (f"**{len(cells)} cells: {totals[PASSED]} passed, {totals[CANNOT]} not applicable "
           f"(the reason stands below its table), {totals[FAILED]} failed.**")  # fmt: skip
    tables: dict[str, dict[Cell, str]] = defaultdict(dict)
    for place, result in cells.items():
        tables[place.table][place] = result
    for name in sorted(tables):
        yield from ("", f"### {name}", "", *_table(tables[name]))


def _table(cells: Mapping[Cell, str]) -> Iterator[str]:
    columns = sorted({place.column for place in cells})
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, int] = {}
    for place, result in sorted(cells.items()):
        number = reasons.setdefault(place.cannot, len(reasons) + 1) if place.cannot else 0
        rows[place.row][place.column] = f"{result} ({number})" if number else result
    yield from _grid(
        [["", *columns], *([row, *(those.get(name, "") for name in columns)] for row, those in rows.items())]
    )
    if reasons:
        yield ""
    yield from (f"({number}) {why}  " for why, number in reasons.items())


def _grid(grid: Sequence[Sequence[str]]) -> Iterator[str]:
    """Markdown that can be read as text, too."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    for number, line in enumerate(grid):
        yield "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        if number == 0:
            yield "|-" + "-|-".join("-" * width for width in widths) + "-|"


def read(path: Path) -> dict[Cell, str]:
    """The cells of a page."""
    cells: dict[Cell, str] = {}
    for part in _between(path.read_text())[1].split("### ")[1:]:
        table, *lines = part.splitlines()
        heads, _, *rows = (line[1:-1].split("|") for line in lines if line.startswith("|"))
        reasons = dict(line.rstrip().split(" ", 1) for line in lines if line.startswith("("))
        for row, *texts in rows:
            for column, text in zip(heads[1:], texts, strict=True):
                result, _, number = text.strip().partition(" ")
                if result:
                    cells[Cell(table, row.strip(), column.strip(), reasons.get(number, ""))] = result
    return cells


def write(path: Path, cells: Mapping[Cell, str]) -> None:
    """Put the cells into the page between its two marks; what stands around them is written by hand."""
    before, _, after = _between(path.read_text())
    path.write_text("\n".join((before + BEGIN, "", *page(cells), "", END)) + after)


def _between(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    cells, _, after = rest.partition(END)
    return before, cells, after
