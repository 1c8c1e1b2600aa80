"""The same plain Pyro programs on our blocking facade, one import changed, against the stock libraries and ours."""

from __future__ import annotations

import matrix
import pytest
from peers import PeerError, StartClient, StartService
from scenarios import (
    EXPECTED,
    SERIALIZERS,
    SERVERS,
    STOCK,
    STOCK_CLIENT_CANNOT,
    STOCK_SERVICE_CANNOT,
    client_cannot,
    expected_of_stock,
    service_cannot,
)


@matrix.cell("our facade proxy to a stock {library} daemon", column="{serializer} {server}", cannot=service_cannot)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("library", STOCK)
def test_blocking_proxy(
    client: StartClient,
    service: StartService,
    library: str,
    server: str,
    serializer: str,
    scenario: str,
) -> None:
    """Our blocking proxy sees from a stock daemon what a stock client sees."""
    cannot = STOCK_SERVICE_CANNOT.get((scenario, serializer))
    ours, daemon = client("pyroxfer"), service(library, "--server", server)
    if cannot is None:
        assert ours.play(scenario, daemon, serializer) == expected_of_stock(scenario, serializer)
    else:
        with pytest.raises(PeerError, match=cannot.match):
            ours.play(scenario, daemon, serializer)


@matrix.cell("stock {library} client to our facade daemon", column="{serializer}", cannot=client_cannot)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_blocking_daemon(
    client: StartClient,
    service: StartService,
    library: str,
    serializer: str,
    scenario: str,
) -> None:
    """A stock client sees from our blocking daemon what it sees from its own kind."""
    cannot = STOCK_CLIENT_CANNOT.get((scenario, serializer))
    stock, daemon = client(library), service("pyroxfer")
    if cannot is None:
        assert stock.play(scenario, daemon, serializer) == EXPECTED[scenario]
    else:
        with pytest.raises(PeerError, match=cannot.match):
            stock.play(scenario, daemon, serializer)


@matrix.cell("our facade proxy to our daemons", column="{ours} serpent")
@pytest.mark.parametrize(
    "scenario", [name for name in EXPECTED if name != "stream_linger"]
)  # no ids to ask again with
@pytest.mark.parametrize("ours", ["trio", "pyroxfer"])
def test_blocking_proxy_with_our_daemons(
    client: StartClient, service: StartService, ours: str, scenario: str
) -> None:
    """Between two ends of ours the program sees the same."""
    assert client("pyroxfer").play(scenario, service(ours), "serpent") == EXPECTED[scenario]
