"""The choice between backends, with a clock that is a number and chance that repeats itself."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import Uri
from pyroxfer_dispatcher.backends import Backend, BackendGroup
from pyroxfer_dispatcher.balance import (
    POLICIES,
    SLOWEST,
    LeastOfTwo,
    Rendezvous,
    RoundRobin,
    choice_for,
    effective_weight,
)


def backends(*weights: float, limit: int | None = None) -> list[Backend]:
    return [Backend(f"b{n}", Uri(f"PYRO:x@h:{n}"), limit, weight=weight) for n, weight in enumerate(weights)]


def shares(group: BackendGroup, calls: int) -> list[int]:
    """How many of so many short calls each backend got."""
    seen: Counter[str] = Counter()
    for _ in range(calls):
        backend = group.pick(0.0)
        assert backend is not None
        group.release(backend)
        seen[backend.name] += 1
    return [seen[backend.name] for backend in group.backends]


def simulated(policy: str, slow: float, calls: int = 4000) -> tuple[float, float]:
    """Four backends, one of them slow, run calls side by side as they arrive.

    Returns:
        The 99th percentile of the times of the calls on the other three, and the part of all calls on the slow one.
    """
    chance = random.Random(7)
    members = backends(1, 1, 1, 1)
    group = BackendGroup(members, choice_for(policy, 0.0, chance))
    now, on_slow = 0.0, 0
    ends: list[tuple[float, int, Backend]] = []
    took: list[float] = []
    for number in range(calls):
        now += chance.expovariate(1 / 0.8)
        while ends and ends[0][0] <= now:
            group.release(heapq.heappop(ends)[2])
        backend = group.pick(now)
        assert backend is not None
        time = (slow if backend is members[0] else 1.0) * backend.in_flight
        if backend is members[0]:
            on_slow += 1
        else:
            took.append(time)
        heapq.heappush(ends, (now + time, number, backend))
    return sorted(took)[int(len(took) * 0.99)], on_slow / calls


def test_a_slow_backend_does_not_slow_down_the_calls_of_the_others() -> None:
    """One ten times slower gets few calls and the others are as fast as ever; taken in turn, it gets a quarter."""
    slowest, part = simulated("least-of-two", 10.0)
    assert slowest <= 1.5 * simulated("least-of-two", 1.0)[0]
    assert part < 0.12
    assert simulated("round-robin", 10.0)[1] == 0.25


@pytest.mark.parametrize("policy", ["least-of-two", "round-robin"])
def test_weights_hold(policy: str) -> None:
    """A backend of twice the weight gets twice the calls."""
    group = BackendGroup(backends(1, 2, 5), choice_for(policy, 0.0, random.Random(1)))
    if policy == "round-robin":
        assert shares(group, 800) == [100, 200, 500]
        return
    held: list[Backend] = []
    for _ in range(800):
        backend = group.pick(0.0)
        assert backend is not None
        held.append(backend)
    for got, wanted in zip((backend.in_flight for backend in group.backends), (100, 200, 500), strict=True):
        assert abs(got - wanted) < 30


def test_turns_are_mixed_evenly() -> None:
    """A heavy backend does not get its calls in one row."""
    group = BackendGroup(backends(1, 1, 4), RoundRobin(0.0))
    names = []
    for _ in range(6):
        backend = group.pick(0.0)
        assert backend is not None
        names.append(backend.name)
    assert "b2b2b2b2" not in "".join(names)
    assert Counter(names) == {"b0": 1, "b1": 1, "b2": 4}


def test_of_two_the_less_busy_one_is_taken() -> None:
    one, two = backends(1, 1)
    choose = LeastOfTwo(0.0, random.Random(1))
    one.in_flight = 3
    assert {choose([one, two], 0.0, None) for _ in range(50)} == {two}
    one.in_flight, two.clients = 0, 5
    assert {choose([one, two], 0.0, None) for _ in range(50)} == {one}


def test_every_pair_is_possible() -> None:
    """With equal loads nobody is left out."""
    members = backends(1, 1, 1, 1, 1)
    choose = LeastOfTwo(0.0, random.Random(3))
    assert {choose(members, 0.0, None).name for _ in range(300)} == {backend.name for backend in members}


KEYS = [f"key{number}" for number in range(2000)]


@given(st.integers(2, 8), st.data())
def test_only_the_keys_of_a_backend_that_goes_move(count: int, data: st.DataObject) -> None:
    """And they spread over all the others."""
    members = backends(*([1.0] * count))
    gone = members[data.draw(st.integers(0, count - 1))]
    rest = [backend for backend in members if backend is not gone]
    choose = Rendezvous()
    keys = KEYS[:200]
    for key in keys:
        before = choose(members, 0.0, key)
        if before is not gone:
            assert choose(rest, 0.0, key) is before


def test_keys_are_shared_out_by_weight() -> None:
    members = backends(1, 1, 2)
    seen = Counter(Rendezvous()(members, 0.0, key).name for key in KEYS)
    for name, wanted in {"b0": 500, "b1": 500, "b2": 1000}.items():
        assert abs(seen[name] - wanted) < 100


@given(st.text(max_size=50))
def test_any_text_is_a_key(key: str) -> None:
    members = backends(1, 1, 1)
    assert Rendezvous()(members, 0.0, key) in members


def test_a_key_waits_for_its_busy_backend() -> None:
    """It may hold what belongs to the key; only a backend that is down is replaced."""
    members = backends(1, 1, limit=1)
    group = BackendGroup(members, Rendezvous(), sticky=True)
    first = group.pick(0.0, key="k")
    assert first is not None
    assert group.pick(0.0, key="k") is None
    assert group.has_busy(0.0)
    group.failed(first, 0.0, "gone")
    second = group.pick(0.0, key="k")
    assert second not in (None, first)


def test_a_backend_that_came_back_warms_up() -> None:
    [backend] = backends(4)
    backend.up_since = 100.0
    weights = [effective_weight(backend, now, 10.0) for now in (100.0, 101.0, 105.0, 110.0, 500.0)]
    assert weights == [4 * SLOWEST, 4 * SLOWEST, 2.0, 4.0, 4.0]


def test_a_warm_up_begins_when_a_backend_is_back() -> None:
    members = backends(1, 1)
    group = BackendGroup(members, RoundRobin(10.0))
    group.failed(members[0], 0.0, "refused")
    group.opened(members[0], 50.0)
    seen: Counter[str] = Counter()
    for _ in range(110):
        backend = group.pick(50.0)
        assert backend is not None
        seen[backend.name] += 1
    assert seen == {"b0": 10, "b1": 100}


def test_preferred_tags_are_taken_first() -> None:
    """While any of them has room; then the next tag; then the others."""
    members = backends(1, 1, 1, limit=1)
    members[0].tags, members[1].tags = frozenset({"far"}), frozenset({"near", "far"})
    group = BackendGroup(members, LeastOfTwo(0.0, random.Random(1)), ("near", "far"))
    assert [group.pick(0.0) for _ in range(4)] == [members[1], members[0], members[2], None]


def test_every_policy_has_a_rule_and_others_have_none() -> None:
    for policy in POLICIES:
        assert choice_for(policy, 0.0, random.Random(1))(backends(1), 0.0, "k")
    with pytest.raises(ValueError, match="choose one of"):
        choice_for("best", 0.0, random.Random(1))


def test_keys_are_spread_over_backends_whose_names_begin_alike() -> None:
    """Names out of a registry may be long."""
    members = [Backend("n" * 100 + str(n), Uri(f"PYRO:x@h:{n}")) for n in range(4)]
    chosen = Counter(Rendezvous()(members, 0.0, f"key {number}").name for number in range(400))
    assert len(chosen) == 4
    assert min(chosen.values()) > 50


# --- many


def test_of_many_two_are_drawn_and_the_others_are_not_looked_at() -> None:
    """Among a thousand a call costs what it costs among ten."""
    members, seen = backends(*([1.0] * 1000)), []

    def usable(backend: Backend) -> bool:
        seen.append(backend)
        return True

    chosen = LeastOfTwo(0.0, random.Random(1)).draw(members, usable, 0.0)
    assert chosen in seen
    assert len(seen) < 10


def test_among_many_the_turn_goes_round_and_the_others_are_not_looked_at() -> None:
    """A thousand calls for a thousand back ends: one each, and one look for each call."""
    members, looks = backends(*([1.0] * 1000)), 0

    def usable(backend: Backend) -> bool:
        nonlocal looks
        looks += 1
        return backend is not members[500]

    in_turn = RoundRobin(0.0)
    assert [in_turn.draw(members, usable, 0.0) for _ in range(999)] == [*members[:500], *members[501:]]
    assert looks == 1000


def test_turns_among_many_hold_weights_and_are_mixed() -> None:
    """Also when the heaviest has gone, and a group from which all but one have gone."""
    members = backends(*([1.0] * 20), *([4.0] * 20))
    group = BackendGroup(members, RoundRobin(0.0))
    given = [group.pick(0.0) for _ in range(1000)]
    assert {given.count(one) for one in members[:20]} == {10}
    assert {given.count(one) for one in members[20:]} == {40}
    assert max(given[start : start + 100].count(members[39]) for start in range(900)) <= 5
    group.backends = members[:20]
    given = [group.pick(0.0) for _ in range(1000)]
    assert max(given.count(one) for one in members[:20]) - min(given.count(one) for one in members[:20]) <= 1
    for one in members[1:]:
        one.draining = True
    assert {group.pick(0.0) for _ in range(50)} == {members[0]}


def test_a_group_of_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    group = BackendGroup(backends(*([1.0] * 100)), LeastOfTwo(0.0, random.Random(1)))
    monkeypatch.setattr(LeastOfTwo, "__call__", lambda *_: pytest.fail("it looked at all"))
    got = [group.pick(0.0) for _ in range(1000)]
    assert len(set(got)) == 100
    assert max(backend.in_flight for backend in group.backends) <= 20, "the less busy one of two"


def test_weights_hold_among_many() -> None:
    """Twenty of weight 1, twenty of weight 3."""
    members = backends(*([1.0] * 20), *([3.0] * 20))
    group = BackendGroup(members, LeastOfTwo(0.0, random.Random(1)))
    for _ in range(4000):
        assert group.pick(0.0) is not None
    light = sum(backend.in_flight for backend in members[:20])
    assert abs(light - 1000) < 100


@pytest.mark.parametrize("policy", POLICIES)
def test_many_that_are_full_or_down_get_nothing_and_come_back(policy: str) -> None:
    """Each place is given out once, and again when it is free."""
    members = backends(*([1.0] * 40), limit=2)
    group = BackendGroup(members, choice_for(policy, 0.0, random.Random(1)))
    down = members[7]
    down.draining = True
    given = [group.pick(0.0, key=str(number)) for number in range(78)]
    assert Counter(given) == dict.fromkeys([one for one in members if one is not down], 2)
    assert group.pick(0.0, key="k") is None
    group.release(members[3])
    assert group.pick(0.0, key="k") is members[3]
    down.draining = False
    assert group.pick(0.0, key="k") is down


def test_one_that_left_the_group_is_not_drawn_any_more() -> None:
    members = backends(*([1.0] * 40), limit=1)
    group = BackendGroup(members, choice_for("least-of-two", 0.0, random.Random(1)))
    assert {group.pick(0.0) for _ in range(40)} == set(members)
    group.remove(members[0])
    group.release(members[0])
    assert group.pick(0.0) is None


def test_a_key_comes_back_to_its_backend_and_follows_weights() -> None:
    """Whose it is, is remembered: not while that one is out, and not when an operator says other weights."""
    members = backends(*([1.0] * 10))
    group = BackendGroup(members, Rendezvous(), sticky=True)
    own = group.favourite(0.0, key="k")
    assert own is not None
    own.draining = True
    other = group.favourite(0.0, key="k")
    assert other not in (None, own)
    own.draining = False
    assert group.favourite(0.0, key="k") is own
    assert other is not None
    group.weigh(other, 1000.0)
    assert group.favourite(0.0, key="k") is other
