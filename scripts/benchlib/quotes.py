"""Figures quoted in documents come from docs/measurements.json, so no claim is older than its data.

A quoted figure is followed by a comment that says where it was measured:

    2.4 times<!-- rpc / Server and client on one core / 64 calls in flight on one connection, msgpack -->

The place is suite / table / row, of a ratio or of a row's median, or suite / table / row / column.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

QUOTE: Final = re.compile(r"(?P<number>\d[\d,]*(?:\.\d+)?)(?P<unit>[^<>\n\d]*)<!-- (?P<place>[^>]+? / [^>]+?) -->")
SIMULATED: Final = re.compile(r"(?<=<!-- simulated -->\n).*?(?=<!-- end -->)", re.DOTALL)
SPEEDS: Final = re.compile(
    r"\d ?(?:[kMG]i?B/s|calls/s|lookups/s|requests/s|files/s|µs)|\d(?:\.\d+)? ?(?:×|times (?:as|the|stock|Pyro))"
)
"""What looks like a claim about speed."""


def measured(known: dict[str, Any], place: str) -> float:
    """The figure of a place.

    Raises:
        LookupError: nothing was measured there.
    """
    suite, table, row, *column = place.split(" / ")
    try:
        found = known[suite]["tables"][table]
        for ratio in () if column else found["ratios"]:
            if ratio["text"] == row:
                return float(ratio["ratio"])
        return float(found["rows"][row][column[0] if column else "median"])
    except (KeyError, TypeError) as error:
        raise LookupError(f"nothing was measured at {place}; run ./scripts/bench {suite}") from error


def refreshed(text: str, known: dict[str, Any]) -> str:
    """The text with each quoted figure as it was measured, to as many decimals as it has.

    Raises:
        LookupError: a figure that is quoted was never measured.
    """

    def quote(found: re.Match[str]) -> str:
        decimals = len(found["number"].partition(".")[2])
        value = measured(known, found["place"])
        return f"{value:,.{decimals}f}{found['unit']}<!-- {found['place']} -->"

    return QUOTE.sub(quote, text)


def unproven(text: str) -> list[str]:
    """Lines that claim a speed without saying where it was measured; what was simulated says so."""
    lines = SIMULATED.sub("", text).splitlines()
    return [line for line in lines if SPEEDS.search(QUOTE.sub("", line))]


def refresh(page: Path, known: dict[str, Any], simulation: Callable[[], str]) -> None:
    """Write a document anew where its figures changed.

    Raises:
        LookupError: a figure that is quoted was never measured; the document stays as it is.
    """
    text = page.read_text()
    new = refreshed(text, known)
    if SIMULATED.search(new):
        said = simulation()
        new = SIMULATED.sub(lambda _: said, new)
    if new != text:
        page.write_text(new)
