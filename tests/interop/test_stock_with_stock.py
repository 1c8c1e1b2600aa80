"""The control: stock clients against stock daemons see what the table says, so a difference elsewhere is ours."""

from __future__ import annotations

import pytest
from peers import PeerError, StartClient, StartService
from scenarios import EXPECTED, SERIALIZERS, STOCK, STOCK_BLOB_OVER_JSON, STOCK_CLIENT_CANNOT, STOCK_SERVICE_CANNOT


@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("library", STOCK)
def test_stock_client_against_stock_daemon(
    client: StartClient, service: StartService, library: str, serializer: str, scenario: str
) -> None:
    """Every cell of the table is a fact about the real libraries."""
    cannot = {**STOCK_SERVICE_CANNOT, **STOCK_CLIENT_CANNOT}.get((scenario, serializer))
    peer, daemon = client(library), service(library)
    if cannot is not None:
        with pytest.raises(PeerError, match=cannot):
            peer.play(scenario, daemon, serializer)
        return
    over_json = STOCK_BLOB_OVER_JSON if (scenario, serializer) == ("blob", "json") else None
    assert peer.play(scenario, daemon, serializer) == (over_json or EXPECTED[scenario])
