"""One section that discovers backends, played by a registry that says, loses and forgets what a test wants."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pyroxfer_core import Uri
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import Address, Entry
from pyroxfer_dispatcher import follow
from pyroxfer_dispatcher.config import DiscoverConfig
from pyroxfer_dispatcher.follow import FIRST_PAUSE_S, GRACE_S, MAX_PAUSE_S, SETTLE_S, Follower, Hearing
from pyroxfer_dispatcher.found import Wanted

pytestmark = pytest.mark.deadline(100_000)  # seconds of a clock that jumps
ONE, TWO, THREE = (f"PYRO:x@h:{number}" for number in (1, 2, 3))


def entry(*uris: str, tags: str = "") -> Entry:
    return Entry(tuple(Address(uri, frozenset(tags.split())) for uri in uris))


class Playing:
    """A follower whose registry is the test: `say` makes it heard, `fail` ends a connection."""

    def __init__(self, section: DiscoverConfig) -> None:
        self.asked = 0
        self.changes = 0
        self._play, self._plays = trio.open_memory_channel[Callable[[Hearing], Awaitable[float] | None]](100)
        wanted = Wanted(section, lambda uri: False)
        self.follower = Follower(section, wanted, self._source, "ns", "names:9090", self._changed, "orders")

    def _changed(self) -> None:
        self.changes += 1

    async def _source(self, hearing: Hearing) -> float:
        self.asked += 1
        while True:
            play = await self._plays.receive()
            if (done := play(hearing)) is not None:
                return await done

    async def all_are(self, **entries: Entry) -> None:
        self._play.send_nowait(lambda hearing: hearing.all_are(entries))
        await wait_all_tasks_blocked()

    async def some_are(self, **entries: Entry | None) -> None:
        self._play.send_nowait(lambda hearing: hearing.some_are(entries))
        await trio.sleep(SETTLE_S)
        await wait_all_tasks_blocked()

    async def fail(self, error: Exception = NamingError("gone")) -> None:  # noqa: B008  # never changed
        async def raise_it() -> float:
            raise error

        self._play.send_nowait(lambda hearing: raise_it())
        await wait_all_tasks_blocked()

    @property
    def found(self) -> list[str]:
        return sorted(str(one.uri) for one in self.follower.found)


@asynccontextmanager
async def playing(**section: object) -> AsyncIterator[Playing]:
    play = Playing(DiscoverConfig(**(section or {"prefix": ""})))  # type: ignore[arg-type]  # any value
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.follower.run)
        await wait_all_tasks_blocked()
        yield play
        nursery.cancel_scope.cancel()


async def until_asked(play: Playing, times: int) -> None:
    """Wait, on a clock that jumps, until the registry is asked so often."""
    while play.asked < times:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_what_the_registry_says_counts_at_once(autojump_clock: MockClock) -> None:
    """Everything at first, then each change: an address comes with one event and goes with one."""
    async with playing() as play:
        assert play.follower.state == "waiting"
        await play.all_are(a=entry(ONE), b=entry(TWO))
        assert (play.found, play.follower.state) == ([ONE, TWO], "following")
        await play.some_are(a=entry(ONE, THREE), b=None)
        assert play.found == [ONE, THREE]
        await play.some_are(a=entry(THREE))
        assert play.found == [THREE]
        await play.all_are()
        assert play.found == []


async def test_names_that_nobody_asked_for_change_nothing(autojump_clock: MockClock) -> None:
    """A registry may tell of a hundred thousand others; each of its changes would be a look at every backend."""
    async with playing(name="a") as play:
        await play.all_are(a=entry(ONE), b=entry(TWO))
        changes = play.changes
        await play.some_are(b=entry(THREE), c=None)
        await play.some_are(a=entry(ONE))
        assert play.changes == changes
        await play.some_are(b=None, a=entry(ONE, TWO))
        assert play.found == [ONE, TWO]
        assert play.changes == changes + 1


async def test_what_changes_in_quick_succession_is_counted_together(autojump_clock: MockClock) -> None:
    """A thousand backends that register one after the other are not a thousand looks at a thousand."""
    async with playing() as play:
        await play.all_are()
        before = play.changes
        for number in range(1000):
            play.follower.some_are({f"n{number}": entry(f"PYRO:x@h:{number + 1}")})
            await trio.lowlevel.checkpoint()
        await trio.sleep(SETTLE_S)
        await wait_all_tasks_blocked()
        assert len(play.found) == 1000
        assert play.changes <= before + 2


async def test_a_lost_registry_takes_nothing_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What it said last counts however long it is away; one line says so, and one that it is back."""
    async with playing() as play:
        await play.all_are(a=entry(ONE))
        for count in range(2, 12):
            await play.fail()
            await until_asked(play, count)
        assert (play.found, play.follower.state) == ([ONE], "lost")
        assert play.follower.describe() | {"since_s": 0} == {
            "registry": "names:9090",
            "state": "lost",
            "since_s": 0,
            "reason": "gone",
            "backends": 1,
            "missing": 0,
            "refused": 0,
            "passed_over": 0,
        }
        await play.all_are(a=entry(ONE))
        assert play.follower.describe()["reason"] == ""
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "registry_lost service=orders registry=names:9090 backends_kept=1 reason=gone",
        "registry_back service=orders registry=names:9090 backends=1",
    ]


async def test_a_registry_that_is_down_is_asked_less_and_less_often(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses double up to a bound, a random part is taken off, and one answer begins anew."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    async with playing() as play:
        pauses = []
        for count in range(2, 10):
            before = trio.current_time()
            await play.fail()
            await until_asked(play, count)
            pauses.append(round(trio.current_time() - before, 1))
        assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
        assert pauses[-1] == MAX_PAUSE_S
        await play.all_are()
        before = trio.current_time()
        await play.fail()
        await until_asked(play, 10)
        assert round(trio.current_time() - before, 1) == FIRST_PAUSE_S


async def test_the_pauses_are_not_the_same_for_all(autojump_clock: MockClock) -> None:
    async with playing() as play:
        spans = set()
        for count in range(2, 22):
            await play.all_are()
            before = trio.current_time()
            await play.fail()
            await until_asked(play, count)
            spans.add(round(trio.current_time() - before, 2))
        assert min(spans) >= FIRST_PAUSE_S / 2
        assert len(spans) > 5


async def test_an_empty_registry_after_an_outage_takes_away_only_what_does_not_come_back(
    autojump_clock: MockClock,
) -> None:
    """It was restarted without its memory: programs that live register again, address by address."""
    async with playing() as play:
        await play.all_are(a=entry(ONE, TWO), b=entry(THREE))
        await play.fail()
        await until_asked(play, 2)
        await play.all_are()
        assert play.found == [ONE, TWO, THREE]
        assert play.follower.describe()["missing"] == 3
        await trio.sleep(GRACE_S / 2)
        await play.some_are(a=entry(TWO))
        assert play.found == [ONE, TWO, THREE], "ONE may be about to register, too"
        await trio.sleep(GRACE_S)
        await wait_all_tasks_blocked()
        assert play.found == [TWO]


async def test_a_registry_that_stood_still_takes_away_only_what_does_not_come_back(autojump_clock: MockClock) -> None:
    """It goes on where it was, and tells first that all leases have ended: nobody could renew them."""
    async with playing() as play:
        await play.all_are(a=entry(ONE, TWO), b=entry(THREE))
        await play.fail()
        await until_asked(play, 2)
        await play.some_are(a=entry(TWO))
        await play.some_are(a=None, b=None)
        assert play.found == [ONE, THREE], "TWO was said since it is back"
        await play.some_are(b=entry(THREE))
        await trio.sleep(GRACE_S)
        await wait_all_tasks_blocked()
        assert play.found == [THREE]
        await play.some_are(b=None)
        assert play.found == []


async def test_what_came_back_and_leaves_leaves_at_once(autojump_clock: MockClock) -> None:
    """The grace is for what the registry has not spoken of since it is back."""
    async with playing() as play:
        await play.all_are(a=entry(ONE), b=entry(TWO))
        await play.fail()
        await until_asked(play, 2)
        await play.all_are(b=entry(TWO))
        await play.some_are(b=None)
        assert play.found == [ONE]
        await play.some_are(a=entry(ONE))
        await play.some_are(a=None)
        assert play.found == []


async def test_a_registry_lost_again_within_the_grace_takes_nothing_away(autojump_clock: MockClock) -> None:
    """The time runs only while it is heard, and begins anew."""
    async with playing() as play:
        await play.all_are(a=entry(ONE))
        await play.fail()
        await until_asked(play, 2)
        await play.all_are()
        await play.fail()
        await until_asked(play, 3)
        await trio.sleep(3 * GRACE_S)
        assert play.found == [ONE]
        await play.some_are(b=entry(TWO))
        await trio.sleep(GRACE_S / 2)
        assert play.found == [ONE, TWO]
        await trio.sleep(GRACE_S)
        await wait_all_tasks_blocked()
        assert play.found == [TWO]


async def test_a_while_after_an_outage_it_is_believed_again(autojump_clock: MockClock) -> None:
    """Also of addresses that it has not spoken of since."""
    async with playing() as play:
        await play.all_are(a=entry(ONE))
        await play.fail()
        await until_asked(play, 2)
        play.follower.is_well()
        await trio.sleep(1.1 * GRACE_S)
        await play.some_are(a=None)
        assert play.found == []


async def test_without_an_outage_a_whole_listing_needs_no_grace(autojump_clock: MockClock) -> None:
    """As one of a name server that is asked again and again."""
    async with playing() as play:
        await play.all_are(a=entry(ONE), b=entry(TWO))
        await play.all_are(b=entry(TWO))
        assert play.found == [TWO]


NAMES = st.sampled_from("ab")
URIS = st.frozensets(st.sampled_from([ONE, TWO, THREE]), max_size=3)
CHANGE = st.tuples(st.just("change"), NAMES, URIS)
OTHER = st.sampled_from([("lose",), ("resume",), ("begin anew",), ("wait", 0.4), ("wait", 1.1)])
STEPS = st.lists(CHANGE | OTHER, max_size=30)


@settings(max_examples=50)
@given(STEPS)
def test_whatever_happens_nothing_is_lost_that_lives_and_nothing_stays_that_is_gone(steps: list[Any]) -> None:
    """Compared with a registry that is changed, lost, found again where it was, or anew.

    While it is lost all stays as it is; for a while after that what was there may stay; then it is exact.
    """
    trio.run(_compare, steps, clock=MockClock(autojump_threshold=0))


async def _compare(steps: list[Any]) -> None:
    truth: dict[str, frozenset[str]] = {}
    missed: dict[str, Entry | None] = {}
    at_loss: set[str] = set()
    sure_at = -math.inf
    async with playing() as play:
        await play.all_are()
        follower = play.follower
        for what, *values in steps:
            if what == "change":
                name, uris = values
                truth[name] = uris
                missed[name] = entry(*sorted(uris)) if uris else None
            elif what == "lose":
                at_loss = at_loss if follower.state == "lost" else set(play.found)
                follower.is_lost("gone")
            elif what == "wait":
                await trio.sleep(values[0] * GRACE_S)
            if follower.state == "lost" and what in ("resume", "begin anew"):
                sure_at = trio.current_time() + GRACE_S
                follower.is_well()
                if what == "begin anew":
                    follower.all_are({name: entry(*sorted(uris)) for name, uris in truth.items() if uris})
                    missed = {}
            if follower.state == "following":
                follower.some_are(missed)
                missed = {}
            await trio.sleep(SETTLE_S)
            await wait_all_tasks_blocked()
            found, said = set(play.found), set().union(*truth.values())
            if follower.state == "lost":
                assert found == at_loss
            elif trio.current_time() < sure_at:
                assert said <= found <= said | at_loss
            elif trio.current_time() > sure_at:
                assert found == said


async def test_what_an_earlier_section_knew_counts_until_the_first_word(autojump_clock: MockClock) -> None:
    async with playing() as first, playing() as second:
        await first.all_are(a=entry(ONE))
        second.follower.inherit(first.follower.found)
        await second.fail()
        assert second.found == [ONE]
        await until_asked(second, 2)
        await second.all_are(b=entry(TWO))
        assert second.found == [TWO]


async def test_what_cannot_be_used_is_said_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each address, and another when the reason is another; the rest goes on."""
    async with playing() as play:
        for _ in range(3):
            await play.all_are(a=entry(ONE, "PYRO:x@0.0.0.0:1"), b=entry("rubbish"))
        assert play.found == [ONE]
        assert play.follower.describe()["refused"] == 2
        await play.some_are(b=entry("rubbish", TWO))
        assert play.follower.describe()["refused"] == 2
        await play.some_are(b=entry(TWO))
        assert play.found == [ONE, TWO]
        assert play.follower.describe()["refused"] == 1
    lines = [record.getMessage().partition(" reason=")[0] for record in caplog.records]
    assert lines == [
        "backend_refused service=orders registry=names:9090 name=a uri=PYRO:x@0.0.0.0:1",
        "backend_refused service=orders registry=names:9090 name=b uri=rubbish",
    ]


async def test_a_registry_cannot_fill_the_log_or_the_memory(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MAX_ENTRIES", 50)
    async with playing() as play:
        await play.all_are(**{f"n{number}": entry("rubbish") for number in range(200)})
        assert play.follower.describe()["refused"] == 50
    assert len(caplog.records) == follow.MAX_LINES + 1
    assert caplog.records[-1].getMessage().endswith("more=30")


async def test_no_more_backends_than_allowed(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Those that were there stay; when one of them goes, the next one takes its place."""
    async with playing(prefix="n", max_backends=2) as play:
        await play.all_are(n5=entry(ONE), n6=entry(TWO))
        await play.some_are(n1=entry(THREE))
        assert (play.found, play.follower.describe()["passed_over"]) == ([ONE, TWO], 1)
        await play.some_are(n2=entry("PYRO:x@h:4"))
        await play.some_are(n5=None, n2=None)
        assert (play.found, play.follower.describe()["passed_over"]) == ([TWO, THREE], 0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "backends_passed_over service=orders registry=names:9090 more=1 max_backends=2"


async def test_one_address_under_two_names_is_one_backend(autojump_clock: MockClock) -> None:
    async with playing() as play:
        await play.all_are(b=entry(ONE), a=entry(ONE))
        (found,) = play.follower.found
        assert (found.name, found.uri) == ("a", Uri(ONE))
        await play.some_are(a=None)
        assert play.found == [ONE]


@pytest.mark.parametrize("error", [NamingError("down"), TypeError("what?"), ExceptionGroup("x", [OSError("y")])])
async def test_no_error_of_a_registry_ends_the_dispatcher(autojump_clock: MockClock, error: Exception) -> None:
    """A peer may send any class of error as an answer."""
    async with playing() as play:
        await play.fail(error)
        await until_asked(play, 2)
        await play.all_are(a=entry(ONE))
        assert play.found == [ONE]
