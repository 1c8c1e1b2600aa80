"""The same plain Pyro programs on our blocking facade, one import changed, against the stock libraries and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matrix
import pytest
from peers import PeerError, StartClient, StartService
from scenarios import (
    EXPECTED,
    SERIALIZERS,
    STOCK,
    STOCK_BLOB_OVER_JSON,
    STOCK_CLIENT_CANNOT,
    STOCK_SERVICE_CANNOT,
)

Record = Callable[[str, Any], None]


@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_blocking_proxy(
    client: StartClient,
    service: StartService,
    record_property: Record,
    library: str,
    serializer: str,
    scenario: str,
) -> None:
    """Our blocking proxy sees from a stock daemon what a stock client sees."""
    cannot = STOCK_SERVICE_CANNOT.get((scenario, serializer))
    record_property(*matrix.cell("our blocking proxy -> stock daemon", scenario, f"{library} {serializer}",
                                 "peer cannot" if cannot else ""))  # fmt: skip
    ours, daemon = client("pyroxfer"), service(library, "--server", "thread")
    if cannot is None:
        over_json = STOCK_BLOB_OVER_JSON if (scenario, serializer) == ("blob", "json") else None
        assert ours.play(scenario, daemon, serializer) == (over_json or EXPECTED[scenario])
    else:
        with pytest.raises(PeerError, match=cannot):
            ours.play(scenario, daemon, serializer)


@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_blocking_daemon(
    client: StartClient,
    service: StartService,
    record_property: Record,
    library: str,
    serializer: str,
    scenario: str,
) -> None:
    """A stock client sees from our blocking daemon what it sees from its own kind."""
    cannot = STOCK_CLIENT_CANNOT.get((scenario, serializer))
    record_property(*matrix.cell("stock client -> our blocking daemon", scenario, f"{library} {serializer}",
                                 "peer cannot" if cannot else ""))  # fmt: skip
    stock, daemon = client(library), service("pyroxfer")
    if cannot is None:
        assert stock.play(scenario, daemon, serializer) == EXPECTED[scenario]
    else:
        with pytest.raises(PeerError, match=cannot):
            stock.play(scenario, daemon, serializer)


@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("ours", ["trio", "pyroxfer"])
def test_blocking_proxy_with_our_daemons(
    client: StartClient, service: StartService, record_property: Record, ours: str, scenario: str
) -> None:
    """Between two ends of ours the program sees the same."""
    record_property(*matrix.cell("our blocking proxy -> our daemons", scenario, f"{ours} serpent"))
    assert client("pyroxfer").play(scenario, service(ours), "serpent") == EXPECTED[scenario]
