"""What docs/scale.md says is what the simulation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import simulate

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"


@pytest.fixture(scope="module")
def said() -> str:
    return simulate.said()


def test_the_page_holds_what_the_simulation_says(said: str) -> None:
    """The same seed gives the same answer, and the page quotes it whole."""
    assert said in PAGE.read_text()


def test_more_load_makes_everything_later(said: str) -> None:
    """A core that is asked for more than it has does not settle; one that is hardly asked adds little."""
    delays = [float(text) for text in re.findall(r"([\d.]+) ms \(99 %\)", said)]
    assert delays == sorted(delays)
    assert len(delays) == 3
