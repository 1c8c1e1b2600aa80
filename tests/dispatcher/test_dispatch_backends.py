"""The choice of a backend, with a clock that is a number."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.uri import Uri
from pyroxfer_dispatcher.backends import FIRST_BACKOFF_S, MAX_BACKOFF_S, Backend, BackendGroup
from pyroxfer_dispatcher.balance import RoundRobin


def make_group(count: int, max_in_flight: int | None = None) -> BackendGroup:
    backends = (Backend(f"b{n}", Uri(f"PYRO:x@localhost:{n}"), max_in_flight) for n in range(count))
    return BackendGroup(backends, RoundRobin(0.0))


def pick_and_release(group: BackendGroup, now: float = 0.0) -> Backend | None:
    backend = group.pick(now)
    if backend is not None:
        group.release(backend)
    return backend


@given(st.integers(1, 8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.integers(1, 5))
def test_live_backends_are_used_evenly_and_others_never(
    count: int, down: set[int], draining: set[int], rounds: int
) -> None:
    """Over whole rounds every live backend gets the same number of calls; a down or draining one gets none."""
    group = make_group(count)
    for number, backend in enumerate(group.backends):
        backend.draining = number in draining
        if number in down:
            group.failed(backend, 0.0, "refused")
    live = [b for n, b in enumerate(group.backends) if n not in down | draining]
    picked = Counter(pick_and_release(group) for _ in range(rounds * max(1, len(live))))
    expected: list[Backend | None] = [*live] or [None]
    assert picked == dict.fromkeys(expected, rounds)


@given(st.lists(st.tuples(st.sampled_from(["pick", "fail", "open", "release"]), st.integers(0, 3)), max_size=60))
def test_a_backend_that_is_down_is_not_picked_before_its_time(steps: list[tuple[str, int]]) -> None:
    """After any history: what is picked was live, or down for a while with no live one left, and had room."""
    group = make_group(4, max_in_flight=2)
    now = 0.0
    for action, number in steps:
        backend = group.backends[number]
        now += 0.2
        if action == "pick":
            may = [b for b in group.backends if b.is_live(now) and b.in_flight < 2]
            may = may or [b for b in group.backends if b.is_last_resort(now) and b.in_flight < 2]
            picked = group.pick(now)
            assert picked in may if may else picked is None
        elif action == "fail":
            group.failed(backend, now, "refused")
            assert not backend.is_live(now)
        elif action == "open":
            group.opened(backend, now)
            assert backend.is_live(now)
        elif backend.in_flight:
            group.release(backend)


def test_backing_off_doubles_up_to_its_limit() -> None:
    group = make_group(1)
    [backend] = group.backends
    waits = []
    for _ in range(10):
        group.failed(backend, 100.0, "refused")
        waits.append(backend.retry_at - 100.0)
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == MAX_BACKOFF_S


def test_a_backend_that_was_down_for_long_is_tried_when_no_other_is_left() -> None:
    """It may be back: no call is refused for the sake of a back-off."""
    group = make_group(2)
    first, second = group.backends
    for _ in range(6):
        group.failed(first, 0.0, "refused")
    assert [pick_and_release(group, 1.0) for _ in range(3)] == [second] * 3
    group.failed(second, 1.0, "refused")
    assert group.pick(1.0) is first
    assert group.pick(1.0) is None
    group.release(first)
    group.failed(first, 1.0, "refused")
    assert group.pick(1.0 + FIRST_BACKOFF_S / 2) is None


def test_one_call_at_a_time_tries_out_a_backend_that_was_down() -> None:
    """The others need not wait for the same refusal, or the same black hole."""
    group = make_group(1)
    [backend] = group.backends
    assert group.failed(backend, 0.0, "refused")
    assert group.pick(0.1) is None
    assert group.pick(1.0) is backend
    assert group.pick(1.0) is None
    group.release(backend)
    assert not group.failed(backend, 1.0, "refused")
    assert group.pick(1.1) is None


def test_a_backend_that_answers_is_back_at_once() -> None:
    group = make_group(1)
    [backend] = group.backends
    group.failed(backend, 0.0, "refused")
    picked = group.pick(1.0)
    assert picked is backend
    assert group.opened(backend, 1.0)
    assert group.pick(1.0) is backend
    assert not group.opened(backend, 1.0)


def test_full_backends_are_passed_over() -> None:
    group = make_group(2, max_in_flight=1)
    first, second = group.pick(0.0), group.pick(0.0)
    assert {first, second} == set(group.backends)
    assert group.pick(0.0) is None
    assert first is not None
    group.release(first)
    assert group.pick(0.0) is first


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "b0 runs 0 calls"),
        ({"in_flight": 1, "max_in_flight": 1}, "b0 runs 1 calls, its limit"),
        ({"draining": True}, "b0 is draining"),
        (
            {"failures": 1, "reason": "refused", "retry_at": 2.0, "failed_at": -0.05},
            "b0 is down (refused), next try in 0.2 s",
        ),
        ({"failures": 1, "reason": "refused"}, "b0 is down (refused)"),
    ],
)
def test_the_state_is_told_in_words(change: dict[str, object], text: str) -> None:
    group = make_group(1)
    for name, value in change.items():
        setattr(group.backends[0], name, value)
    assert group.describe(0.0, {}) == text


def test_a_refusal_is_told_unless_there_is_more_to_say() -> None:
    group = make_group(2)
    first, second = group.backends
    group.failed(second, 0.0, "reset")
    told = group.describe(1.0, {first: "no free workers", second: "busy"})
    assert told == "b0 refused (no free workers); b1 is down (reset)"
