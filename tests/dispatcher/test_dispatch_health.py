"""Active checks: a backend that hangs or is gone is found out before any call, and so is its return."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest
import trio
from doubles_dispatch import POISON, ask, blob, config_for, pong, raw_backend, raw_client, wait_for

from pyroxfer_core import Connection, bind_tcp
from pyroxfer_core.wire import Message, MessageType
from pyroxfer_dispatcher import Dispatcher

OFTEN = "health_interval = 0.05\n"
"""With the usual patience: on a busy machine one that answers may take some time."""


def failures(dispatcher: Dispatcher, number: int) -> Callable[[], bool]:
    return lambda: dispatcher.directory.services["orders"].group.backends[number].failures > 0


@pytest.mark.parametrize("version", [48, 502])
async def test_a_backend_that_answers_stays_up(version: int) -> None:
    """Whichever protocol it speaks, and pings are no calls."""
    async with (
        raw_backend(pong, (version,)) as backend,
        Dispatcher(config_for(backend.uri, head=OFTEN)) as dispatcher,
    ):
        await wait_for(lambda: len([one for one in backend.seen if one.type == MessageType.PING]) >= 3)
        assert not failures(dispatcher, 0)()
        assert dispatcher.directory.services["orders"].group.backends[0].calls == 0


async def test_one_that_hangs_gets_no_call_and_comes_back() -> None:
    """It takes connections and says nothing: only the check finds that out, and no call waits for it."""
    hangs = True

    async def moody(connection: Connection, request: Message) -> None:
        if not hangs:
            await pong(connection, request)

    async with (
        raw_backend(moody) as first,
        raw_backend(pong) as second,
        Dispatcher(config_for(first.uri, second.uri, head=OFTEN + "connect_timeout = 2")) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        await wait_for(failures(dispatcher, 0))
        for number in range(4):
            assert (await ask(client, blob(number))).body == POISON
        assert all(one.type == MessageType.PING for one in first.seen)
        hangs = False
        await wait_for(lambda: not failures(dispatcher, 0)())
        await ask(client, blob(5))
        await ask(client, blob(6))
        assert any(one.type == MessageType.INVOKE for one in first.seen)


async def test_one_that_is_gone_is_noticed_without_a_call() -> None:
    with bind_tcp("localhost", 0) as listener:
        port = listener.getsockname()[1]
    async with Dispatcher(config_for(f"PYRO:worker@localhost:{port}", head=OFTEN)) as dispatcher:
        await wait_for(failures(dispatcher, 0))


async def test_a_full_backend_is_not_taken_for_a_dead_one() -> None:
    """It refuses further connections; those it has go on."""
    async with raw_backend(pong) as backend:
        backend.is_full = True
        async with Dispatcher(config_for(backend.uri, head=OFTEN)) as dispatcher:
            await trio.sleep(0.3)
            assert not failures(dispatcher, 0)()


async def test_a_full_backend_that_was_down_is_back() -> None:
    """It refuses, so it is there."""
    async with raw_backend(pong) as backend:
        backend.is_full = True
        async with Dispatcher(config_for(backend.uri, head=OFTEN)) as dispatcher:
            group = dispatcher.directory.services["orders"].group
            group.failed(group.backends[0], monotonic(), "refused")
            await wait_for(lambda: not failures(dispatcher, 0)())
