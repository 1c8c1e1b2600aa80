"""Real Pyro4 and Pyro5 programs against our trio daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matrix
import pytest
import trio
from peers import Client, PeerError, Service, StartClient, StartService, has_ipv6
from scenarios import EXPECTED, SERIALIZERS, STOCK, STOCK_CLIENT_CANNOT, client_cannot

IPV6 = ("ipv6",) if has_ipv6() else ()  # containers often have none
EXTRA_SCENARIOS = ("calls", "autoproxy", "callback", "exceptions", "stream", "oneway", "annotations")
KEYED_SCENARIOS = ("calls", "exceptions", "stream", "oneway", "annotations")  # a proxy that arrives has no key


@matrix.cell("stock {library} client to our trio daemon", column="{serializer}", cannot=client_cannot)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_stock_client(
    client: StartClient,
    service: StartService,
    library: str,
    serializer: str,
    scenario: str,
) -> None:
    """A stock client sees from our daemon what it sees from its own kind."""
    cannot = STOCK_CLIENT_CANNOT.get((scenario, serializer))
    stock, daemon = client(library), service("trio")
    if cannot is None:
        assert stock.play(scenario, daemon, serializer) == EXPECTED[scenario]
    else:
        with pytest.raises(PeerError, match=cannot.match):
            stock.play(scenario, daemon, serializer)


@matrix.cell("stock {library} client to our {kind} daemon, with", column="{extra}")
@pytest.mark.parametrize("scenario", EXTRA_SCENARIOS)
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("kind", ("trio", "pyroxfer"))
@pytest.mark.parametrize("extra", ("compression", "unix socket", "nat", *IPV6))
def test_stock_client_with(
    client: StartClient, service: StartService,
    tmp_path_factory: pytest.TempPathFactory, extra: str, kind: str, library: str, scenario: str,
) -> None:  # fmt: skip
    """Compression on both sides, a unix socket and IPv6 change nothing for a stock client."""
    socket_path = Path(tmp_path_factory.getbasetemp()) / f"{kind}.sock"
    options = {
        "compression": ("--compression",),
        "unix socket": ("--unix", str(socket_path)),
        "nat": ("--host", "127.0.0.1", "--nathost", "localhost"),
        "ipv6": ("--host", "::1"),
    }[extra]
    daemon = service(kind, *options)
    assert extra != "nat" or "@localhost:" in daemon.uri
    result = client(library).play(scenario, daemon, "serpent", compression=extra == "compression")
    assert result == EXPECTED[scenario]


@matrix.cell("stock pyro4 client to our trio daemon, with", column="hmac")
@pytest.mark.parametrize("scenario", KEYED_SCENARIOS)
def test_pyro4_client_with_the_shared_key(client: StartClient, service: StartService, scenario: str) -> None:
    """A keyed daemon of ours serves a stock Pyro4 client that has the key."""
    daemon = service("trio", "--key", "secret")
    assert client("pyro4").play(scenario, daemon, "serpent", key="secret") == EXPECTED[scenario]


@matrix.cell("refused as it must be", "stock client without the right HMAC key, our trio daemon")
@pytest.mark.parametrize(("library", "key"), [("pyro4", None), ("pyro4", "wrong"), ("pyro5", None)])
def test_a_keyed_daemon_refuses_the_others(
    client: StartClient, service: StartService, library: str, key: str | None
) -> None:
    """Without the key nothing is served, and protocol 502, which cannot sign, is not a way around it."""
    with pytest.raises(PeerError):
        client(library).play("calls", service("trio", "--key", "secret"), "serpent", key=key)


async def test_both_protocols_on_one_port_at_the_same_time(service: StartService) -> None:
    """Pyro4 and Pyro5 clients share one daemon of ours, each in its own words."""
    daemon = service("trio")
    changing = ("attributes", "oneway", "oneway_context", "batch_oneway", "stream_early_close", "instance_single")
    names = [name for name in EXPECTED if name not in (*changing, "resource_tracking")]
    # Left out: scenarios that read back state which the other client changes at the same time.

    def play_all(library: str, results: dict[str, list[Any]]) -> None:
        with Client(library) as peer:
            results[library] = [peer.play(name, daemon, "serpent") for _ in range(5) for name in names]

    results: dict[str, list[Any]] = {}
    async with trio.open_nursery() as nursery:
        for library in STOCK:
            nursery.start_soon(trio.to_thread.run_sync, play_all, library, results)
    wanted = [EXPECTED[name] for _ in range(5) for name in names]
    assert results == dict.fromkeys(STOCK, wanted)


def test_an_own_daemon_outlives_its_stock_clients(client: StartClient, service: StartService) -> None:
    """A client killed in the middle of a call leaves a daemon that serves the next one."""
    daemon: Service = service("trio")
    with Client("pyro5") as doomed:
        doomed.play("calls", daemon, "serpent")
    assert client("pyro5").play("calls", daemon, "serpent") == EXPECTED["calls"]
