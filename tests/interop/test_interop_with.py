"""What may be switched on beside plain calls, in our facade and its daemon, and the life of item streams."""

from __future__ import annotations

import matrix
import numpy as np
import pytest
from peers import StartClient, StartService, has_ipv6
from scenarios import EXPECTED, PROTOCOL, SERIALIZERS, SERVERS, STOCK

from pyroxfer_core import Proxy, Settings, blocking, errors

IPV6 = ("ipv6",) if has_ipv6() else ()  # containers often have none
SCENARIOS = ("calls", "autoproxy", "callback", "exceptions", "stream", "oneway", "annotations")
KEYED_SCENARIOS = ("calls", "exceptions", "stream", "oneway", "annotations")
LINGER_AND_LIFETIME: dict[str, dict[str, float]] = {
    "stream_no_linger": {"ITER_STREAM_LINGER": 0},
    "stream_linger_is_over": {"ITER_STREAM_LINGER": 0.2},
    "stream_lifetime_is_over": {"ITER_STREAM_LIFETIME": 0.2},
}
OURS = ("trio", "pyroxfer")


@matrix.cell("our facade proxy to a stock {library} daemon, with", column="{extra}")
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("extra", ("compression", "unix socket", "nat", *IPV6))
def test_facade_proxy_with(
    client: StartClient, service: StartService, tmp_path_factory: pytest.TempPathFactory, extra: str,
    library: str, scenario: str,
) -> None:  # fmt: skip
    """Compression, unix sockets, NAT and IPv6 change nothing for the caller."""
    options = {
        "compression": ("--compression",),
        "unix socket": ("--unix", str(tmp_path_factory.getbasetemp() / f"{library}.sock")),
        "nat": ("--host", "127.0.0.1", "--nathost", "localhost"),
        "ipv6": ("--host", "::1"),
    }[extra]
    result = client("pyroxfer").play(
        scenario, service(library, *options), "serpent", compression=extra == "compression"
    )
    assert result == EXPECTED[scenario]


@matrix.cell("our facade proxy to a stock pyro4 daemon, with", column="hmac")
@pytest.mark.parametrize("scenario", (*KEYED_SCENARIOS, "autoproxy"))
def test_facade_proxy_signs_for_a_keyed_pyro4_daemon(
    client: StartClient, service: StartService, scenario: str
) -> None:
    """With the shared key every message is signed and every answer checked, also of a proxy that arrived."""
    daemon = service("pyro4", "--key", "secret")
    assert client("pyroxfer").play(scenario, daemon, "serpent", key="secret") == EXPECTED[scenario]


@matrix.cell("stock pyro4 client to our pyroxfer daemon, with", column="hmac")
@pytest.mark.parametrize("scenario", KEYED_SCENARIOS)
def test_pyro4_client_with_the_shared_key(client: StartClient, service: StartService, scenario: str) -> None:
    """A keyed daemon of our facade serves a stock Pyro4 client that has the key."""
    daemon = service("pyroxfer", "--key", "secret")
    assert client("pyro4").play(scenario, daemon, "serpent", key="secret") == EXPECTED[scenario]


@matrix.cell("our facade proxy to a stock {library} daemon, with", "{scenario}", "serpent")
@pytest.mark.parametrize("scenario", ["stream_no_linger", "stream_lifetime_is_over"])
@pytest.mark.parametrize("library", STOCK)
def test_streams_of_stock_daemons_end(
    client: StartClient, service: StartService, library: str, scenario: str
) -> None:
    """Our client is told that they have, as a stock client is."""
    daemon = service(library, "--config", _json(LINGER_AND_LIFETIME[scenario]))
    assert client("pyroxfer").play(scenario, daemon, "serpent") == "item stream terminated"


@matrix.cell("our trio proxy to a stock {library} daemon, with", "stream lifetime is over", "serpent")
@pytest.mark.parametrize("library", STOCK)
async def test_streams_of_stock_daemons_end_for_trio(service: StartService, library: str) -> None:
    """Also while they are read."""
    daemon = service(library, "--config", _json(LINGER_AND_LIFETIME["stream_lifetime_is_over"]))
    async with Proxy(daemon.uri) as proxy, await proxy.endless() as items:
        with pytest.raises(errors.PyroError, match="item stream terminated"):
            async for _ in items:
                pass


@matrix.cell("stock {library} client to our {ours} daemon, with", "{scenario}", "serpent")
@pytest.mark.parametrize("scenario", LINGER_AND_LIFETIME)
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("ours", OURS)
def test_our_streams_end_for_stock_clients(
    client: StartClient, service: StartService, ours: str, library: str, scenario: str
) -> None:
    """By the same settings, and with the same words."""
    daemon = service(ours, "--config", _json(LINGER_AND_LIFETIME[scenario]))
    assert client(library).play(scenario, daemon, "serpent") == "item stream terminated"


@matrix.cell("control: stock {library} client to a stock {library} daemon, with", "{scenario}", "serpent")
@pytest.mark.parametrize("scenario", LINGER_AND_LIFETIME)
@pytest.mark.parametrize("library", STOCK)
def test_streams_end_in_the_stock_libraries(
    client: StartClient, service: StartService, library: str, scenario: str
) -> None:
    daemon = service(library, "--config", _json(LINGER_AND_LIFETIME[scenario]))
    assert client(library).play(scenario, daemon, "serpent") == "item stream terminated"


def _json(config: dict[str, float]) -> str:
    return str(config).replace("'", '"')


@matrix.cell(
    "our facade proxy to a stock {library} daemon", "NumPy array refused, naming .tolist()", "{serializer} {server}"
)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_arrays_are_refused_with_the_way_out(
    service: StartService, library: str, serializer: str, server: str
) -> None:
    """A stock daemon cannot take an array: the caller is told what to send instead, and the connection goes on."""
    settings = Settings(serializer=serializer, protocol=PROTOCOL[library])
    with blocking.Proxy(service(library, "--server", server).uri, settings=settings) as proxy:
        with pytest.raises(errors.SerializeError, match=r"\.tolist\(\)"):
            proxy.echo(np.arange(3))
        assert proxy.echo(np.arange(3).tolist()) == [0, 1, 2]


@matrix.cell("stock {library} client to our {ours} daemon, with", "NumPy array as a result refused", "{serializer}")
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("ours", OURS)
def test_arrays_for_stock_clients_are_refused(
    client: StartClient, service: StartService, ours: str, library: str, serializer: str
) -> None:
    """The caller reads what the method should give instead."""
    assert client(library).play("array", service(ours), serializer) == [True, 3]
