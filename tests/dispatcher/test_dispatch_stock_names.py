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


@pytest.mark.parametrize(
    "section",
    [
        'name = "orders.a"',
        'prefix = "orders."\nall = ["eu"]',
        'all = ["eu", "weight:2"]',
        'any = ["eu", "us"]',
        'all = ["eu"]\nany = ["weight:2"]',
    ],
)
async def test_backends_come_and_go(name_server: int, section: str) -> None:
    """Whatever is asked for, and however much of that the name server can select by itself."""
    text = (
        f'listen = "localhost:0"\nnameserver = "127.0.0.1:{name_server}"\n[[services]]\nname = "orders"\n'
        f"[[services.discover]]\ninterval = 1\n{section}\n"
    )
    async with raw_backend(echo) as one, await locate_ns("127.0.0.1", name_server) as ns:
        await ns.register("orders.a", one.uri, False, ["eu", "weight:2"])
        await ns.register("orders.b", "PYRO:x@localhost:1", False, ["asia"])
        async with Dispatcher(parse_config(text)) as dispatcher, raw_client(dispatcher.location) as client:
            assert (await ask(client, blob())).body == POISON
            if "prefix" not in section:
                (backend,) = dispatcher.directory.services["orders"].group.backends
                assert (backend.weight, backend.origin) == (2.0, "ns")
            await ns.remove("orders.a")
            await wait_for(lambda: not dispatcher.directory.services["orders"].group.backends)
            assert b"NotSent: no live backend" in bytes((await ask(client, blob(2))).body)
