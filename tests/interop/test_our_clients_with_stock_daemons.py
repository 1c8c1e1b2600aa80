"""Our trio proxy against real Pyro4 and Pyro5 daemons."""

from __future__ import annotations

from fractions import Fraction

import matrix
import numpy as np
import pytest
import trio
from peers import StartService, has_ipv6
from scenarios import (
    EXPECTED,
    PROTOCOL,
    SERIALIZERS,
    SERVERS,
    STOCK,
    STOCK_SERVICE_CANNOT,
    expected_of_stock,
    service_cannot,
)
from trio_scenarios import SCENARIOS

from pyroxfer_core import Proxy, Settings, blocking, errors

IPV6 = ("ipv6",) if has_ipv6() else ()  # containers often have none
EXTRA_SCENARIOS = ("calls", "autoproxy", "callback", "exceptions", "stream", "oneway", "annotations")
KEYED_SCENARIOS = ("calls", "autoproxy", "exceptions", "stream", "oneway", "annotations")


def test_every_scenario_is_played() -> None:
    """The table and the players name the same scenarios."""
    assert list(SCENARIOS) == list(EXPECTED)


@matrix.cell("our trio proxy to a stock {library} daemon", column="{serializer} {server}", cannot=service_cannot)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("library", STOCK)
async def test_trio_proxy(service: StartService, library: str, server: str, serializer: str, scenario: str) -> None:
    """Our trio proxy sees from a stock daemon what a stock client sees."""
    cannot = STOCK_SERVICE_CANNOT.get((scenario, serializer))
    daemon = service(library, "--server", server)
    settings = Settings(serializer=serializer)
    async with Proxy(daemon.uri, settings=settings) as proxy:
        play = SCENARIOS[scenario](proxy, daemon, settings)
        if cannot is None:
            assert await play == expected_of_stock(scenario, serializer)
        else:
            with pytest.raises(Exception, match=cannot.match):
                await play


@matrix.cell("our trio proxy to a stock {library} daemon, with", column="{extra}")
@pytest.mark.parametrize("scenario", EXTRA_SCENARIOS)
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("extra", ("compression", "unix socket", "nat", *IPV6, "protocol given"))
async def test_trio_proxy_with(
    service: StartService, tmp_path_factory: pytest.TempPathFactory, extra: str,
    library: str, scenario: str,
) -> None:  # fmt: skip
    """Compression, unix sockets, IPv6 and a protocol named by the user change nothing for the caller."""
    options = {
        "compression": ("--compression",),
        "unix socket": ("--unix", str(tmp_path_factory.getbasetemp() / f"{library}.sock")),
        "nat": ("--host", "127.0.0.1", "--nathost", "localhost"),
        "ipv6": ("--host", "::1"),
    }.get(extra, ())
    settings = {
        "compression": Settings(compression=True),
        "protocol given": Settings(protocol=PROTOCOL[library]),
    }.get(extra, Settings())
    daemon = service(library, *options)
    async with Proxy(daemon.uri, settings=settings) as proxy:
        assert await SCENARIOS[scenario](proxy, daemon, settings) == EXPECTED[scenario]


@matrix.cell("our trio proxy to a stock pyro4 daemon, with", column="hmac")
@pytest.mark.parametrize("scenario", KEYED_SCENARIOS)
async def test_trio_proxy_signs_for_a_keyed_pyro4_daemon(service: StartService, scenario: str) -> None:
    """With the shared key every message is signed and every answer checked."""
    daemon, settings = service("pyro4", "--key", "secret"), Settings(hmac_key=b"secret", protocol=48)
    async with Proxy(daemon.uri, settings=settings) as proxy:
        assert await SCENARIOS[scenario](proxy, daemon, settings) == EXPECTED[scenario]


@matrix.cell("refused as it must be", "our proxy without the right HMAC key, stock daemon", "pyro4")
@pytest.mark.parametrize("key", [None, b"wrong"])
async def test_a_keyed_pyro4_daemon_refuses_another_key(service: StartService, key: bytes | None) -> None:
    """Without the right key no call is answered, and the caller gets an error, not a hang."""
    daemon = service("pyro4", "--key", "secret")
    async with Proxy(daemon.uri, settings=Settings(hmac_key=key, protocol=48, connect_timeout_s=5)) as proxy:
        with pytest.raises(Exception, match=r"(?i)hmac|closed|handshake|connect"):
            await proxy.add(1, 2)


@matrix.cell("our trio proxy to a stock {library} daemon, with", "50 tasks on one proxy", "plain")
@pytest.mark.parametrize("library", STOCK)
async def test_many_tasks_share_one_proxy_to_a_stock_daemon(service: StartService, library: str) -> None:
    """Calls queue on the one connection and every caller gets its own answer."""
    answers: dict[int, int] = {}

    async def call(proxy: Proxy, number: int) -> None:
        answers[number] = await proxy.add(number, 1000)

    async with Proxy(service(library).uri) as proxy, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(call, proxy, number)
    assert answers == {number: number + 1000 for number in range(50)}


@matrix.cell("our trio proxy to a stock {library} daemon, with", "reading ahead in a stream", "plain")
@pytest.mark.parametrize("library", STOCK)
async def test_reading_ahead_gets_the_same_items(service: StartService, library: str) -> None:
    """Several item requests in flight: the items come in order and none is lost."""
    async with Proxy(service(library).uri) as proxy:
        items = [item async for item in proxy.count.options(read_ahead=8)(100)]
        assert items == list(range(100))
        assert await proxy.add(1, 2) == 3


@matrix.cell(
    "our trio proxy to a stock {library} daemon", "NumPy array refused, naming .tolist()", "{serializer} {server}"
)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
async def test_arrays_are_refused_with_the_way_out(
    service: StartService, library: str, serializer: str, server: str
) -> None:
    """A stock daemon cannot take an array: the caller is told what to send instead, and the connection goes on."""
    daemon = service(library, "--server", server)
    async with Proxy(daemon.uri, settings=Settings(serializer=serializer)) as proxy:
        with pytest.raises(errors.SerializeError, match=r"\.tolist\(\)"):
            await proxy.echo(np.arange(3))
        assert await proxy.echo(np.arange(3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("library", STOCK)
async def test_the_call_after_an_unreadable_one_arrives(service: StartService, library: str) -> None:
    """A stock daemon hangs up behind such an answer: the next call does not go down with the old connection."""
    async with Proxy(service(library).uri) as proxy:
        for _ in range(20):
            with pytest.raises(errors.SerializeError, match="unsupported serialized class"):
                await proxy.echo(Fraction(1, 2))
            assert await proxy.add(1, 2) == 3


@pytest.mark.parametrize("library", STOCK)
def test_the_call_after_an_unreadable_one_arrives_for_the_facade(service: StartService, library: str) -> None:
    """The same without a loop."""
    with blocking.Proxy(service(library).uri) as proxy:
        for _ in range(20):
            with pytest.raises(errors.SerializeError, match="unsupported serialized class"):
                proxy.echo(Fraction(1, 2))
            assert proxy.add(1, 2) == 3
