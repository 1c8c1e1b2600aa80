"""The control: stock clients against stock daemons see what the table says, so a difference elsewhere is ours."""

from __future__ import annotations

import matrix
import pytest
from peers import PeerError, StartClient, StartService
from scenarios import EXPECTED, SERIALIZERS, STOCK, either_cannot, expected_of_stock


@matrix.cell(
    "control: stock {library} client to a stock {library} daemon", column="{serializer}", cannot=either_cannot
)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_stock_client_against_stock_daemon(
    client: StartClient, service: StartService, library: str, serializer: str, scenario: str
) -> None:
    """Every cell of the table is a fact about the real libraries."""
    cannot = either_cannot({"scenario": scenario, "serializer": serializer})
    peer, daemon = client(library), service(library)
    if cannot is not None:
        with pytest.raises(PeerError, match=cannot.match):
            peer.play(scenario, daemon, serializer)
        return
    assert peer.play(scenario, daemon, serializer) == expected_of_stock(scenario, serializer)
