"""What docs/scale.md says is what the simulation says."""

from __future__ import annotations

import re
from pathlib import Path

import simulate

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"


def test_the_page_holds_what_the_simulation_says() -> None:
    """The same seed gives the same answer, and the page quotes it whole."""
    assert simulate.said() in PAGE.read_text()


def test_more_load_makes_everything_later() -> None:
    """A core that is asked for more than it has does not settle; one that is hardly asked adds little."""
    delays = [float(text) for text in re.findall(r"([\d.]+) ms \(99 %\)", simulate.said())]
    assert delays == sorted(delays)
    assert len(delays) == 3
