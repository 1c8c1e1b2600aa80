"""Coroutines run by hand, and tasks woken with nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing
from doubles import until

from pyroxfer_core.transport.resume import MOST_FREE, WOKEN, Steps, free_steps, resumed


class Value:
    """Something whose end can be seen."""


async def at_once(value: Any) -> Any:
    return value


async def after_a_wait(value: Any, event: trio.Event) -> Any:
    await event.wait()
    return value


async def failing(error: Exception) -> None:
    raise error


async def run_to_the_end(steps: Steps, coroutine: Coroutine[Any, Any, Any]) -> Any:
    request = steps.begin(coroutine)
    return request[0] if type(request) is tuple else await steps.rest(request)


def test_a_coroutine_that_does_not_wait_ends_at_once() -> None:
    """Its value comes in a tuple, whatever it is, and the same steps run the next one."""
    steps = Steps()
    for value in (None, 1, (), (2, 3)):
        assert steps.begin(at_once(value)) == (value,)


def test_nothing_of_a_coroutine_that_ended_is_kept() -> None:
    """A large result lives as long as its answer needs it."""
    steps, value = Steps(), Value()
    seen = weakref.ref(value)
    assert steps.begin(at_once(value)) == (value,)
    del value
    gc.collect()
    assert seen() is None


def test_what_a_coroutine_raises_is_raised() -> None:
    """The error itself, where it was begun."""
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught:
        Steps().begin(failing(error))
    assert caught.value is error


async def test_a_coroutine_that_waits_goes_on_in_its_task() -> None:
    """Its value comes when it has ended, and its steps are free for others then."""
    steps, event, values = Steps(), trio.Event(), list[Any]()

    async def work() -> None:
        values.append(await run_to_the_end(steps, after_a_wait((5,), event)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        assert steps not in free_steps
        event.set()
    assert values == [(5,)]
    free_steps.remove(steps)


async def test_a_cancelled_coroutine_can_clean_up() -> None:
    """The cancellation reaches it where it waits; what it makes of it counts."""

    async def stubborn() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "cancelled"

    steps = Steps()
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await run_to_the_end(steps, stubborn()) == "cancelled"
    free_steps.remove(steps)
    with trio.move_on_after(0) as scope:
        await run_to_the_end(steps, after_a_wait(None, trio.Event()))
    assert scope.cancelled_caught
    assert steps not in free_steps, "they ended with an error"


async def run_on(_: Steps, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await resumed(coroutine, coroutine.send(None))


@pytest.mark.parametrize("run", [run_to_the_end, run_on])
async def test_nothing_of_a_coroutine_that_was_cancelled_is_kept(
    run: Callable[[Steps, Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]],
) -> None:
    """It goes when its task goes on, and not when somebody looks for garbage: a call may hold a lot."""
    value = Value()
    seen = weakref.ref(value)
    gc.collect()
    gc.disable()
    try:
        with trio.move_on_after(0):
            await run(Steps(), after_a_wait(value, trio.Event()))
        del value
        await trio.lowlevel.checkpoint()
        assert seen() is None
    finally:
        gc.enable()


async def test_of_a_crowd_only_some_steps_are_kept() -> None:
    """Those that the next ones will need, and no more."""
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_FREE + 10):
            nursery.start_soon(run_to_the_end, Steps(), after_a_wait(None, event))
        await trio.testing.wait_all_tasks_blocked()
        event.set()
    assert len(free_steps) == MOST_FREE
    free_steps.clear()


async def test_one_outcome_wakes_any_number_of_tasks() -> None:
    """Again and again."""
    parked: list[trio.lowlevel.Task] = []
    woken = 0

    async def park() -> None:
        nonlocal woken
        for _ in range(3):
            parked.append(trio.lowlevel.current_task())
            assert await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED) is None
            woken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(park)
        for turn in range(3):
            await until(lambda: len(parked) == 2)
            assert woken == 2 * turn
            while parked:
                trio.lowlevel.reschedule(parked.pop(), WOKEN)
    assert woken == 6
