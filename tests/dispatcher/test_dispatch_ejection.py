"""Backends whose calls fail one after the other are left out for a while, as long as enough others are there."""

from __future__ import annotations

import logging
from math import inf
from pathlib import Path
from typing import Any

import pytest
from doubles_dispatch import (
    POISON,
    ask,
    blob,
    call,
    client_of,
    config_for,
    echo,
    http,
    led_config_for,
    operated,
    raw_backend,
    raw_client,
    text_of,
    wait_for,
)
from doubles_plays import Stage, called, reply, request, sealed, with_service
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import Connection, Uri
from pyroxfer_core.errors import Outcome
from pyroxfer_core.wire import Flags, Message, MessageType
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.backends import Backend, BackendGroup
from pyroxfer_dispatcher.balance import RoundRobin, effective_weight
from pyroxfer_dispatcher.commands import (
    AnnounceEjection,
    CloseBackend,
    Command,
    Fail,
    OpenBackend,
    ReleaseBackend,
    Reply,
)
from pyroxfer_dispatcher.config import parse_config
from pyroxfer_dispatcher.ejection import Ejection, Rules, Verdict
from pyroxfer_dispatcher.events import BackendLost, Event, Overdue, ReplyArrived, RequestSent
from pyroxfer_dispatcher.relay import GRACE_S, Relay

RELEASE = ReleaseBackend()
ASKED = request()
OTHER = "the backend answered something else than the call"
RULES = Rules(after=3, first_s=30.0, most_s=100.0)
STAYS, EJECTED, NEEDED = Verdict.STAYS, Verdict.EJECTED, Verdict.NEEDED


def make(count: int, rules: Rules = RULES) -> tuple[Ejection, BackendGroup, tuple[Backend, ...]]:
    group = BackendGroup((Backend(f"b{n}", Uri(f"PYRO:x@localhost:{n}")) for n in range(count)), RoundRobin(0.0))
    return Ejection(group, rules), group, group.backends


def fail(ejection: Ejection, backend: Backend, now: float, times: int = RULES.after) -> list[Verdict]:
    return [ejection.failed(backend, now, "reset") for _ in range(times)]


def picked(group: BackendGroup, now: float, calls: int = 12) -> set[Backend | None]:
    found = set()
    for _ in range(calls):
        backend = group.pick(now)
        found.add(backend)
        if backend is not None:
            group.release(backend)
    return found


# -- the rule, with a clock that is a number


def test_calls_that_fail_in_a_row_eject_a_backend_for_a_time() -> None:
    ejection, group, (first, second) = make(2)
    assert fail(ejection, first, 10.0) == [STAYS, STAYS, EJECTED]
    assert picked(group, 10.0) == {second}
    assert ejection.look(39.9) == []
    assert picked(group, 39.9) == {second}
    assert ejection.look(40.0) == [first]
    assert picked(group, 40.0) == {first, second}
    assert fail(ejection, first, 40.0, 2) == [STAYS, STAYS], "it begins anew"


def test_an_answer_ends_the_row() -> None:
    ejection, _, (first, _) = make(2)
    for _ in range(10):
        assert fail(ejection, first, 0.0, 2) == [STAYS, STAYS]
        ejection.answered(first)


def test_each_ejection_in_a_row_takes_longer_up_to_the_longest() -> None:
    ejection, _, (first, _) = make(2)
    now, took = 0.0, []
    for _ in range(5):
        fail(ejection, first, now)
        assert first.ejected_until is not None
        took.append(first.ejected_until - now)
        now = first.ejected_until
        ejection.look(now)
    assert took == [30.0, 60.0, 90.0, 100.0, 100.0]
    assert first.ejections == 5


@pytest.mark.parametrize(("healthy_s", "took"), [(0.0, 90.0), (29.0, 90.0), (30.0, 60.0), (60.0, 30.0), (1e9, 30.0)])
def test_a_backend_that_does_well_is_forgiven_step_by_step(healthy_s: float, took: float) -> None:
    """One ejection is forgotten for each time that the first one takes."""
    ejection, _, (first, _) = make(2)
    fail(ejection, first, 0.0)
    ejection.look(30.0)
    fail(ejection, first, 30.0)
    ejection.look(90.0)
    now = 90.0 + healthy_s
    fail(ejection, first, now)
    assert first.ejected_until == now + took


def test_it_comes_back_with_a_part_of_its_weight() -> None:
    ejection, _, (first, _) = make(2)
    fail(ejection, first, 0.0)
    ejection.look(30.0)
    assert [effective_weight(first, 30.0 + age, 10.0) for age in (0.0, 5.0, 10.0)] == [0.1, 0.5, 1.0]


def test_connections_lost_together_are_one_failure() -> None:
    """A process that ends takes all its calls with it; only one that was begun afterwards tells something new."""
    ejection, _, (first, _) = make(2)
    assert [ejection.lost(first, 1.0 + n, 10.0, "reset") for n in range(9)] == [STAYS] * 9
    assert first.failed_calls == 1
    assert ejection.lost(first, 10.5, 11.0, "reset") is STAYS
    assert ejection.lost(first, 11.5, 12.0, "reset") is EJECTED


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_half_of_the_backends_stay(count: int, most: int) -> None:
    """The next one would be ejected, which is told once, and stays."""
    ejection, group, backends = make(count)
    for one in backends[:most]:
        assert fail(ejection, one, 0.0)[-1] is EJECTED
    for one in backends[most:]:
        assert fail(ejection, one, 0.0, 5) == [STAYS, STAYS, NEEDED, STAYS, STAYS]
    assert picked(group, 0.0) == {*backends[most:]}


def test_backends_that_are_down_count_as_missing() -> None:
    """Of four, one is ejected and one is down: a third one stays. When that goes down, the ejected one returns."""
    ejection, group, backends = make(4)
    assert fail(ejection, backends[0], 0.0)[-1] is EJECTED
    group.failed(backends[1], 0.0, "refused")
    assert ejection.look(0.0) == []
    assert fail(ejection, backends[2], 0.0)[-1] is NEEDED
    group.failed(backends[2], 0.0, "refused")
    assert ejection.look(0.0) == [backends[0]]


def test_what_an_operator_took_out_does_not_count_at_all() -> None:
    """Of four backends two are drained: of the other two one may be ejected, and a drained one is none to eject."""
    ejection, _, backends = make(4)
    backends[2].draining = backends[3].draining = True
    assert fail(ejection, backends[3], 0.0) == [STAYS] * 3
    assert fail(ejection, backends[0], 0.0)[-1] is EJECTED
    assert fail(ejection, backends[1], 0.0)[-1] is NEEDED
    backends[1].draining = True
    assert ejection.look(0.0) == [backends[0]]


def test_a_ping_that_is_answered_does_not_end_an_ejection() -> None:
    """Pings were answered before: it is calls that fail. One that fails takes it down, too, and both must end."""
    ejection, group, (first, second) = make(2)
    fail(ejection, first, 0.0)
    group.failed(first, 1.0, "no answer to a ping")
    assert first.describe(1.0) == "b0 is down (no answer to a ping), next try in 0.2 s"
    group.opened(first, 2.0)
    assert picked(group, 2.0) == {second}
    assert first.describe(2.0) == "b0 is ejected (3 calls in a row failed, the last one: reset)"


def test_an_ejected_backend_is_tried_when_nobody_else_is_left() -> None:
    """Rather than nobody; but a call waits for a live one that is only busy."""
    ejection, group, (first, second) = make(2)
    fail(ejection, first, 0.0)
    second.max_in_flight = 1
    assert group.pick(0.0) is second
    assert group.pick(0.0) is None
    assert group.has_busy(0.0)
    assert group.pick(0.0, {second}) is first
    group.failed(second, 0.0, "refused")
    assert group.pick(0.0) is first


def test_backends_that_are_gone_are_forgotten() -> None:
    ejection, group, (first, _, _) = make(3)
    fail(ejection, first, 0.0)
    group.remove(first)
    assert ejection.look(1000.0) == []


def test_nothing_is_ejected_where_that_is_switched_off() -> None:
    ejection, _, (first, _) = make(2, Rules(after=0))
    assert fail(ejection, first, 0.0, 50) == [STAYS] * 50


STEPS = st.tuples(st.sampled_from(["fail", "answer", "lose", "down", "up", "drain", "undrain"]), st.integers(0, 4))


@given(st.integers(1, 5), st.lists(STEPS, max_size=80))
def test_never_more_than_half_are_ejected_and_somebody_gets_each_call(
    count: int, steps: list[tuple[str, int]]
) -> None:
    """After any history: of the backends in service at most half are ejected, and fewer than half only if forced to
    be by those that are down; and while one is in service that was not refused just now, a call is given to one."""
    ejection, group, backends = make(count)
    now = 0.0
    for what, number in steps:
        backend = backends[number % count]
        now += 3.0
        match what:
            case "fail":
                fail(ejection, backend, now)
            case "answer":
                ejection.answered(backend)
            case "lose":
                ejection.lost(backend, now - 1.0, now, "reset")
            case "down":
                group.failed(backend, now, "refused")
            case "up":
                group.opened(backend, now)
            case _:
                backend.draining = what == "drain"
        ejection.look(now)
        serving = [one for one in backends if not one.draining]
        out = [one for one in serving if one.ejected_until is not None]
        assert len(out) <= len(serving) / 2 or all(one.failures for one in out)
        missing = [one for one in serving if one.ejected_until is not None or one.failures]
        if len(missing) > len(serving) / 2:
            assert all(one.failures for one in out), "an ejected one that works is needed"
        if any(not one.failures for one in serving):
            chosen = group.pick(now)
            assert chosen is not None
            assert chosen.ejected_until is None or not any(one.is_live(now) for one in serving)
            group.release(chosen)


# -- a conversation


def stage_with(after: int, **more: Any) -> Stage:
    stage = Stage()
    with_service(stage, **more).ejection.rules = Rules(after=after)
    return stage


def test_a_lost_call_is_a_failure_and_an_answer_is_none() -> None:
    """Whatever the answer says: an exception is one."""
    stage = stage_with(2)
    asked = request()
    for now in range(4):
        stage.now = float(now)
        answer = reply(1, Flags.EXCEPTION)
        handed_on = Reply(reply(7, Flags.EXCEPTION))
        stage.perform(
            [*called(stage, asked, (stage.a, stage.b)[now % 2]), (ReplyArrived(answer), [RELEASE, handed_on])]
        )
    assert stage.a.failed_calls == 0
    text = "backend lost before it answered: reset"
    lost: list[Command] = [CloseBackend(), Fail(asked, Outcome.UNKNOWN, text)]
    stage.perform([*called(stage, asked, stage.a), (BackendLost("reset"), lost)])
    assert stage.a.failed_calls == 1
    stage.now = 10.0
    told = AnnounceEjection(stage.a, EJECTED, text)
    stage.perform([*called(stage, asked, stage.b), (ReplyArrived(reply(1)), [RELEASE, Reply(reply(7))])])
    stage.perform([*called(stage, asked, stage.a), (BackendLost("reset"), [told, *lost])])
    for _ in range(4):
        stage.perform([*called(stage, asked, stage.b), (ReplyArrived(reply(1)), [RELEASE, Reply(reply(7))])])


@pytest.mark.parametrize(
    ("event", "commands"),
    [
        (ReplyArrived(reply(9)), [CloseBackend(), Fail(ASKED, Outcome.UNKNOWN, OTHER)]),
        (Overdue(), [CloseBackend(), Fail(ASKED, Outcome.UNKNOWN, "a did not answer within 2 s")]),
    ],
    ids=["wrong answer", "no answer"],
)
def test_other_failures_of_a_backend_count_too(event: Event, commands: list[Command]) -> None:
    stage = stage_with(1, answer_timeout_s=2.0)
    stage.perform(called(stage, ASKED, stage.a))
    told = stage.forwarding.handle(event, 0.0)
    assert [type(one) for one in told] == [AnnounceEjection, *map(type, commands)]
    assert told[1:] == commands
    assert stage.a.ejected_until == 30.0
    assert stage.in_flight == [0, 0, 0]


def test_an_answer_is_due_from_when_the_request_left() -> None:
    stage = stage_with(1, answer_timeout_s=2.0)
    assert stage.forwarding.answer_by == inf
    stage.perform(called(stage, ASKED, stage.a)[:-1])
    assert stage.forwarding.answer_by == inf
    stage.forwarding.handle(RequestSent(), 5.0)
    assert stage.forwarding.answer_by == 7.0
    stage.forwarding.handle(ReplyArrived(reply(1)), 6.0)
    assert stage.forwarding.answer_by == inf


def test_a_call_that_may_run_twice_goes_on_when_its_answer_is_overdue() -> None:
    stage = stage_with(5, answer_timeout_s=2.0, idempotent=frozenset({"*"}))
    stage.perform([*called(stage, ASKED, stage.a), (Overdue(), [CloseBackend(), OpenBackend(stage.b, 502)])])


# -- calls of a client that belongs to its backend


def test_each_late_answer_is_told_once(backend: Backend, relay: Relay) -> None:
    """After the time that calls have, or (a while) after their caller's deadline; not while they are being sent."""
    assert relay.asked(sealed(MessageType.INVOKE, 1), 0.0, deadline=3.0)
    assert relay.asked(sealed(MessageType.INVOKE, 2), 0.0)
    slow = sealed(MessageType.INVOKE, 3)
    assert relay.asked(slow, 0.0)
    handed = sealed(MessageType.INVOKE, 4)
    assert relay.asked(handed, 0.0)
    relay.handed_over(handed, 9, 0.0)
    assert relay.newly_late(1.9, 2.0) == 0
    assert relay.newly_late(2.0, 2.0) == 1
    assert relay.newly_late(2.9 + GRACE_S, 2.0) == 0
    assert relay.newly_late(3.0 + GRACE_S, 2.0) == 1
    relay.handed_over(slow, 20, 100.0)
    assert [relay.newly_late(now, 2.0) for now in (101.0, 102.0, 103.0)] == [0, 1, 0]


# -- the whole


async def hang_up(connection: Connection, request: Message) -> None:
    connection.close()


async def keep_silent(connection: Connection, request: Message) -> None:
    pass


def group_of(dispatcher: Dispatcher, service: str = "orders") -> tuple[Backend, ...]:
    return dispatcher.directory.services[service].group.backends


async def test_a_backend_that_loses_every_call_is_left_out_and_everybody_can_see_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes connections, so nothing else would find it out. An operator can take it back before its time."""
    caplog.set_level(logging.INFO, "pyroxfer.dispatcher")
    head = 'admin = "localhost:0"\ndrain_timeout = 0.1'
    async with (
        raw_backend(hang_up) as bad,
        raw_backend(echo) as good,
        operated(tmp_path, bad, good, head=head, service="eject_after = 3") as (dispatcher, there),
        raw_client(dispatcher.location) as client,
    ):
        first, _ = group_of(dispatcher)
        while first.ejected_until is None:
            await ask(client, blob())
        assert len(bad.seen) == 3
        for _ in range(6):
            assert (await ask(client, blob())).body == POISON
        assert len(bad.seen) == 3
        (status,) = await there("status")
        told = status["services"][0]["backends"][0]
        assert (told["state"], told["ejections"]) == ("ejected", 1)
        assert 0 < told["ejected_s"] <= 30
        assert told["reason"].startswith("3 calls in a row failed, the last one: backend lost before it answered")
        assert "backend_ejected backend=b0" in caplog.text
        _, text = await http(dispatcher, "/metrics")
        assert 'pyroxfer_dispatcher_backend_ejections_total{backend="b0",service="orders"} 1.0' in text
        assert 'pyroxfer_dispatcher_backend_up{backend="b0",service="orders"} 0.0' in text
        assert (await there("undrain", target="b0"))[-1]["state"] == "up"
        await ask(client, blob())
        await ask(client, blob())
        assert len(bad.seen) == 4


async def test_an_ejection_ends_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyroxfer.dispatcher")
    async with (
        raw_backend(hang_up) as bad,
        raw_backend(echo) as good,
        Dispatcher(config_for(bad.uri, good.uri, service="eject_after = 1\neject_for = 0.05")) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        first, _ = group_of(dispatcher)
        while not first.ejections:
            await ask(client, blob())
        await wait_for(lambda: first.ejected_until is None)
        assert "backend_returned backend=b0" in caplog.text


async def test_a_call_that_nobody_answers_ends_in_time_and_its_backend_is_left_out() -> None:
    """A black hole: connections and handshakes work, and then nothing comes."""
    service = "eject_after = 2\nanswer_timeout = 0.3"
    async with (
        raw_backend(keep_silent) as bad,
        raw_backend(echo) as good,
        Dispatcher(config_for(bad.uri, good.uri, service=service)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        first, _ = group_of(dispatcher)
        texts = []
        while first.ejected_until is None:
            answer = await ask(client, blob())
            if answer.flags & Flags.EXCEPTION:
                texts.append(text_of(answer))
        assert sum("Unknown: b0 did not answer within 0.3 s" in text for text in texts) == 2
        await wait_for(lambda: not bad.connections)


async def test_clients_of_a_backend_that_says_nothing_are_not_cut_but_new_ones_go_elsewhere() -> None:
    """Whoever waits on a connection of its own decides for itself how long."""
    service = 'policy = "round-robin"\neject_after = 1\nanswer_timeout = 0.3'
    async with (
        raw_backend(keep_silent) as bad,
        raw_backend(echo) as good,
        Dispatcher(led_config_for(bad.uri, good.uri, service=service)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        first, second = group_of(dispatcher, "work")
        await client.send(call())
        await wait_for(lambda: first.ejected_until is not None)
        assert first.clients == 1
        for _ in range(4):
            async with client_of(dispatcher.location) as other:
                assert (await ask(other, call())).body == POISON
        assert (first.clients, second.ejections) == (1, 0)


async def test_a_client_whose_backend_is_lost_counts_against_it() -> None:
    service = 'policy = "round-robin"\neject_after = 1'
    async with (
        raw_backend(hang_up) as bad,
        raw_backend(echo) as good,
        Dispatcher(led_config_for(bad.uri, good.uri, service=service)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        first, _ = group_of(dispatcher, "work")
        await client.send(call())
        await wait_for(lambda: first.ejected_until is not None)
        async with client_of(dispatcher.location) as other:
            assert (await ask(other, call())).body == POISON


async def test_listeners_that_all_get_each_blob_are_never_left_out() -> None:
    """Nobody else can hear it for them."""
    config = parse_config('listen = "localhost:0"\n[[services]]\nname = "events"\nlisteners = "all"\n')
    service = Dispatcher(config).directory.services["events"]
    assert service.listeners is not None
    service.listeners.register("events", Uri("PYRO:x@localhost:1"))
    (topic,) = service.listeners.topics()
    assert topic.ejection.rules.after == 0


async def test_a_reload_keeps_who_is_left_out_and_brings_new_rules() -> None:
    old = config_for("PYRO:x@localhost:1", "PYRO:x@localhost:2")
    new = config_for("PYRO:x@localhost:1", "PYRO:x@localhost:2", service="eject_for = 7\neject_at_most = 8")
    async with Dispatcher(old) as dispatcher:
        first, _ = group_of(dispatcher)
        fail(dispatcher.directory.services["orders"].ejection, first, 0.0, 5)
        dispatcher.reload(new)
        service = dispatcher.directory.services["orders"]
        assert service.group.backends[0].ejected_until == 30.0
        assert service.ejection.rules == Rules(5, 7.0, 8.0)
        assert service.ejection.look(30.0) == [first]
