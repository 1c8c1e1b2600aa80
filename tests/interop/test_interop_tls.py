"""TLS and mutual TLS with real Pyro4 and Pyro5 peers, set up by Pyro's own configuration items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import matrix
import pytest
from certificates import Certificates
from peers import Client, PeerError, Service
from scenarios import EXPECTED, PROTOCOL, STOCK
from trio_scenarios import SCENARIOS

from pyroxfer_core import Proxy, Settings

WAYS = ("tls", "mutual")
PLAYED = ("calls", "exceptions", "stream", "oneway", "batch_oneway", "annotations", "session", "reconnect")


class Peers:
    """Programs started at their first use, with TLS one way or mutual."""

    def __init__(self, certificates: Certificates, stack: ExitStack) -> None:
        self._certificates = certificates
        self._stack = stack
        self._services: dict[tuple[str, ...], Service] = {}
        self._clients: dict[tuple[str, str], Client] = {}

    def service(self, library: str, way: str, *options: str) -> Service:
        """A daemon with TLS."""
        at, key = self._certificates, (library, way, *options)
        if key not in self._services:
            if library == "trio":
                tls = ["--tls", str(at.server), str(at.ca), *(["--mutual"] if way == "mutual" else [])]
            else:
                items = {
                    "SSL": True,
                    "SSL_SERVERCERT": str(at.server),
                    "SSL_CACERTS": str(at.ca),
                    "SSL_REQUIRECLIENTCERT": way == "mutual",
                }
                tls = ["--config", json.dumps(items)]
            self._services[key] = self._stack.enter_context(Service(library, *options, *tls))
        return self._services[key]

    def client(self, library: str, way: str) -> Client:
        """A client program; it shows a certificate only if TLS is mutual."""
        if (library, way) not in self._clients:
            at = self._certificates
            items = {"SSL": True, "SSL_CACERTS": str(at.ca)}
            if way == "mutual":
                items["SSL_CLIENTCERT"] = str(at.client)
            self._clients[library, way] = self._stack.enter_context(Client(library, json.dumps(items)))
        return self._clients[library, way]


@pytest.fixture(scope="module")
def peers(certificates: Certificates) -> Iterator[Peers]:
    """Daemons and clients with TLS."""
    with ExitStack() as stack:
        yield Peers(certificates, stack)


@matrix.cell("our trio proxy to a stock {library} daemon, with", column="{way} {server}")
@pytest.mark.parametrize("scenario", PLAYED)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("server", ["thread", "multiplex"])
@pytest.mark.parametrize("library", STOCK)
async def test_trio_proxy(
    certificates: Certificates, peers: Peers, library: str, server: str, way: str,
    scenario: str,
) -> None:  # fmt: skip
    """Our trio proxy talks to a stock daemon that has SSL on."""
    daemon = peers.service(library, way, "--server", server)
    settings = certificates.settings(mutual=way == "mutual", protocol=PROTOCOL[library])
    async with Proxy(daemon.uri, settings=settings) as proxy:
        assert await SCENARIOS[scenario](proxy, daemon, settings) == EXPECTED[scenario]


@matrix.cell("our facade proxy to a stock {library} daemon, with", column="{way}")
@pytest.mark.parametrize("scenario", PLAYED)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", STOCK)
def test_blocking_proxy(
    peers: Peers, library: str, way: str, scenario: str
) -> None:  # fmt: skip
    """The facade's items of configuration mean what Pyro's mean: the same program, one import changed."""
    service = peers.service(library, way, "--server", "multiplex")
    assert peers.client("pyroxfer", way).play(scenario, service, "serpent") == EXPECTED[scenario]


@matrix.cell("stock {library} client to our {kind} daemon, with", column="{way}")
@pytest.mark.parametrize("scenario", PLAYED)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["trio", "pyroxfer"])
@pytest.mark.parametrize("library", STOCK)
def test_stock_client(peers: Peers, library: str, kind: str, way: str, scenario: str) -> None:
    """A stock client with SSL on talks to our trio daemon and to our facade."""
    assert peers.client(library, way).play(scenario, peers.service(kind, way), "serpent") == EXPECTED[scenario]


@matrix.cell("refused as it must be", "stock client without a certificate, our {kind} daemon with mutual TLS")
@pytest.mark.parametrize("library", STOCK)
@pytest.mark.parametrize("kind", ["trio", "pyroxfer"])
def test_a_stock_client_without_a_certificate_is_refused(peers: Peers, library: str, kind: str) -> None:
    """Mutual TLS is not a matter of taste."""
    with pytest.raises(PeerError, match=r"(?i)certificate|closed|connect"):
        peers.client(library, "tls").play("calls", peers.service(kind, "mutual"), "serpent")


@matrix.cell("refused as it must be", "our proxy with TLS, stock daemon without")
@pytest.mark.parametrize("library", STOCK)
async def test_a_stock_daemon_without_tls(certificates: Certificates, library: str) -> None:
    """A proxy that wants TLS says what is wrong; it never goes on in clear."""
    with Service(library) as service:
        async with Proxy(service.uri, settings=certificates.settings(connect_timeout_s=5)) as proxy:
            with pytest.raises(Exception, match=r"TLS with localhost: .*(does not speak|does it speak) TLS"):
                await proxy.add(1, 2)


@matrix.cell("refused as it must be", "our proxy without TLS, stock daemon with it")
@pytest.mark.parametrize("library", STOCK)
async def test_a_stock_daemon_with_tls_and_a_plain_proxy(peers: Peers, library: str) -> None:
    """It is refused and does not hang."""
    settings = Settings(connect_timeout_s=5, protocol=PROTOCOL[library])
    async with Proxy(peers.service(library, "tls", "--server", "thread").uri, settings=settings) as proxy:
        with pytest.raises(Exception, match=r"(?i)closed|invalid|lost|no answer"):
            await proxy.add(1, 2)
