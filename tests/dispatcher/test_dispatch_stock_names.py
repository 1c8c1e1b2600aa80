"""Back ends out of real name servers of Pyro4 and Pyro5, which are asked again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from doubles_dispatch import POISON, ask, blob, echo, raw_backend, raw_client, wait_for
from peers import started, stock_python

from pyroxfer_core import locate_ns
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import parse_config

pytestmark = pytest.mark.interop

PROGRAMS = {"pyro4": "Pyro4.naming", "pyro5": "Pyro5.nameserver"}


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def name_server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a stock name server."""
    with ExitStack() as stack:
        command = ("-u", "-m", PROGRAMS[request.param], "-n", "127.0.0.1", "-p", "0", "-x")
        yield int(started(stack, r"NS running on \S+:(\d+) ", stock_python(), *command))


SECTIONS = (
    'name = "orders.a"',
    'prefix = "orders."\nany = ["eu"]',
    'all = ["eu", "weight:2"]',
    'any = ["eu", "us"]',
    'all = ["eu"]\nany = ["weight:2"]',
)
"""Whatever is asked for, and however much of that the name server can select by itself."""


async def test_backends_come_and_go(name_server: int) -> None:
    """A service for each section: all of them find the one that is meant, and lose it."""
    text = f'listen = "localhost:0"\nnameserver = "127.0.0.1:{name_server}"\n' + "".join(
        f'[[services]]\nname = "{number}"\n[[services.discover]]\ninterval = 1\n{section}\n'
        for number, section in enumerate(SECTIONS)
    )
    async with raw_backend(echo) as one, await locate_ns("127.0.0.1", name_server) as ns:
        await ns.register("orders.a", one.uri, False, ["eu", "weight:2"])
        await ns.register("orders.b", "PYRO:x@localhost:1", False, ["asia"])
        async with Dispatcher(parse_config(text)) as dispatcher, raw_client(dispatcher.location) as client:
            groups = [service.group for service in dispatcher.directory.services.values()]
            for number in range(len(SECTIONS)):
                assert (await ask(client, blob(number, topic=str(number)))).body == POISON
            assert [(backend.weight, backend.origin) for group in groups for backend in group.backends] == [
                (2.0, "ns")
            ] * len(SECTIONS)
            await ns.remove("orders.a")
            await wait_for(lambda: not any(group.backends for group in groups))
            assert b"NotSent: no live backend" in bytes((await ask(client, blob(9, topic="0"))).body)
