"""One backend ten times slower than its three neighbours, through a whole dispatcher, in virtual time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from doubles_dispatch import Script, answer_to, ask, blob, raw_backend, raw_client
from trio.testing import MockClock

from pyroxfer_core import Connection
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher import Dispatcher, building
from pyroxfer_dispatcher.config import Config, parse_config

FAST_S = 0.01
CLIENTS = 12
CALLS = 30
"""Of each client, with pauses of about four fast calls."""

Times = Mapping[int, Sequence[float]]
"""How long the calls of each backend took; 0 is the slow one."""


def worker(number: int, seconds: float) -> Script:
    """Runs one call at a time, and says who ran it."""
    one_at_a_time = trio.Lock()

    async def work(connection: Connection, request: Message) -> None:
        async with one_at_a_time:
            await trio.sleep(seconds)
        await connection.send(answer_to(request, bytes([number])))

    return work


def config_for(ports: Sequence[int], policy: str) -> Config:
    """No name is looked up, which would take real time in a thread."""
    backends = "".join(
        f'[[services.backends]]\nname = "b{port}"\nuri = "PYRO:worker@127.0.0.1:{port}"\n' for port in ports
    )
    head = f'listen = "127.0.0.1:0"\n[[services]]\nname = "orders"\npolicy = "{policy}"\n'
    return parse_config(head + backends)


async def times(policy: str, slow: float) -> Times:
    found: defaultdict[int, list[float]] = defaultdict(list)

    async def client(location: str, number: int) -> None:
        chance = random.Random(number)
        async with raw_client(location) as connection:
            for call in range(CALLS):
                await trio.sleep(chance.expovariate(1 / (4 * FAST_S)))
                began = trio.current_time()
                answer = await ask(connection, blob(call))
                found[answer.body[0]].append(trio.current_time() - began)

    async with AsyncExitStack() as stack:
        scripts = [worker(number, FAST_S if number else FAST_S * slow) for number in range(4)]
        backends = [await stack.enter_async_context(raw_backend(script)) for script in scripts]
        config = config_for([backend.port for backend in backends], policy)
        dispatcher = await stack.enter_async_context(Dispatcher(config))
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, dispatcher.location, number)
    return found


def p99_of_the_others(found: Times) -> float:
    took = sorted(seconds for number in (1, 2, 3) for seconds in found[number])
    return took[int(len(took) * 0.99)]


@pytest.fixture
def _same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice between backends repeats itself."""
    monkeypatch.setattr(building, "random", SimpleNamespace(Random=partial(random.Random, 7)))


@pytest.mark.usefixtures("_same_chance")
async def test_a_slow_backend_does_not_slow_down_the_calls_of_the_others(autojump_clock: MockClock) -> None:
    """Their slowest calls take at most half as long again as when all are fast, for it gets few; taken in turns it
    would get as many as each."""
    all_fast = await times("least-of-two", 1.0)
    one_slow = await times("least-of-two", 10.0)
    assert p99_of_the_others(one_slow) <= 1.5 * p99_of_the_others(all_fast)
    assert len(one_slow[0]) < 0.1 * CLIENTS * CALLS
    in_turns = await times("round-robin", 10.0)
    assert len(in_turns[0]) == CLIENTS * CALLS / 4
