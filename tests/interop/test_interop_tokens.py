"""Tokens with real Pyro4 and Pyro5 peers: as handshake data, which is all they can do."""

from __future__ import annotations

from pathlib import Path

import matrix
import pytest
from peers import PeerError, Service, StartClient, StartService
from scenarios import EXPECTED, STOCK

from pyroxfer_core import Proxy, Settings

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def guarded(service: StartService, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Our trio daemon, for those who have a token."""
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"alice {TOKEN}\n")
    path.chmod(0o600)
    return service("trio", "--tokens", str(path))


@matrix.cell("stock {library} client to our trio daemon, with", "calls", "token")
@pytest.mark.parametrize("library", STOCK)
def test_a_stock_client_shows_a_token(client: StartClient, guarded: Service, library: str) -> None:
    """With it as ``_pyroHandshake`` it is let in."""
    assert client(library).play("calls", guarded, "serpent", handshake=TOKEN) == EXPECTED["calls"]


@matrix.cell("refused as it must be", "stock client without the right token, our trio daemon")
@pytest.mark.parametrize("handshake", [None, "wrong-horse-battery"])
@pytest.mark.parametrize("library", STOCK)
def test_a_stock_client_without_one_is_refused(
    client: StartClient, guarded: Service, library: str, handshake: str | None
) -> None:
    """It is told why."""
    with pytest.raises(PeerError, match="authentication required"):
        client(library).play("calls", guarded, "serpent", handshake=handshake)


@pytest.mark.parametrize("library", STOCK)
async def test_a_stock_daemon_does_not_mind(service: StartService, library: str) -> None:
    """A proxy that has a token works with daemons that never heard of it, and does not show it to them."""
    async with Proxy(service(library).uri, settings=Settings(token=TOKEN)) as proxy:
        assert await proxy.add(1, 2) == 3
