"""How long the hub goes on without asking trio, and when it looks for the next message without sleeping."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing

import pytest
import trio
import trio.testing

from pyroxfer_dispatcher.channel import Channel
from pyroxfer_dispatcher.hub import MOST_MISSES, SPIN_FOR, Hub, Patience


def chances_until_tried(patience: Patience) -> int:
    for chance in range(1000):
        if patience.wants():
            return chance
    raise AssertionError("it is never tried again")


def test_what_pays_is_always_tried() -> None:
    patience = Patience()
    for _ in range(10):
        assert patience.wants()
        patience.paid()


def test_what_is_in_vain_is_tried_less_and_less_often_but_never_given_up() -> None:
    patience, pauses = Patience(), []
    for _ in range(MOST_MISSES + 3):
        patience.failed()
        pauses.append(chances_until_tried(patience))
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 128, 128, 128]


def test_what_pays_again_is_soon_tried_as_often_as_before() -> None:
    patience = Patience()
    for _ in range(3):
        patience.failed()
    for _ in range(3):
        chances_until_tried(patience)
        patience.paid()
    patience.failed()
    assert chances_until_tried(patience) == 2


class Yields:
    """Counts how often the core was left to others."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> Yields:
    counted = Yields()
    monkeypatch.setattr(os, "sched_yield", counted)
    return counted


async def after_all_have_spoken(sockets: int, spin_s: float = 0.0002) -> None:
    """So many sockets say something at once, and nobody answers."""
    with ExitStack() as stack:
        hub = stack.enter_context(closing(Hub(spin_s)))
        said: list[bytes] = []
        lost: list[str] = []
        peers = []
        for _ in range(sockets):
            near, far = socket.socketpair()
            near.setblocking(False)
            stack.enter_context(closing(Channel(hub, near, said.append, lost.append)))
            peers.append(stack.enter_context(far))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            await trio.testing.wait_all_tasks_blocked()
            for peer in peers:
                peer.send(b"x")
            while len(said) < sockets:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


def two_cores(process: int) -> set[int]:
    return {0, 1}


async def test_the_answer_to_a_lonely_message_is_looked_for_without_sleeping(
    yields: Yields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", two_cores)
    await after_all_have_spoken(1)
    assert yields.count


async def test_where_many_talk_the_core_is_theirs(yields: Yields, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", two_cores)
    await after_all_have_spoken(SPIN_FOR + 1)
    assert not yields.count


async def test_on_a_single_core_nothing_is_looked_for_without_sleeping(
    yields: Yields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    await after_all_have_spoken(1)
    assert not yields.count


async def test_without_busy_polling_nothing_is_looked_for_without_sleeping(
    yields: Yields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", two_cores)
    await after_all_have_spoken(1, spin_s=0.0)
    assert not yields.count
