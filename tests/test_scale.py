"""What docs/scale.md says is what the simulation says."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
import simulate
import trio.testing

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


def test_a_crowd_that_is_too_large_keeps_itself_out() -> None:
    """Those that gave up are greeted in vain: half as many again settle, several times as many do not."""

    async def come(clients: int) -> simulate.Return:
        return await simulate.come_to_one(clients, 0.0, Random(1), 100)

    within = int(simulate.GIVES_UP_S / simulate.CONNECT_S)
    clock = trio.testing.MockClock(autojump_threshold=0)
    few, more, most = (trio.run(come, within * times // 2 // 100 * 100, clock=clock) for times in (1, 3, 12))
    assert (few.gave_up, few.lost) == (0, 0)
    assert more.gave_up > 0
    assert more.lost == 0
    assert most.lost > within
