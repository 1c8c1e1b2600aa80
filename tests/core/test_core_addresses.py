"""Addresses: where daemons listen, what they publish, which doors stay shut."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificates

from pyroxfer_core import Daemon, Proxy, Settings, Tokens, expose
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    SecurityError,
)
from pyroxfer_core.server import places
from pyroxfer_core.transport.sockets import bind_tcp
from pyroxfer_core.uri import uri_of

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


@expose
class Service:
    def __init__(self) -> None:
        self.calls = 0

    async def count(self) -> int:
        self.calls += 1
        return self.calls


@pytest.fixture
async def service() -> Service:
    return Service()


@BOTH
async def test_unix_sockets(service: Service, client: Settings, tmp_path: Path) -> None:
    path = str(tmp_path / "daemon socket")
    for _ in range(2):
        async with Daemon(unixsocket=path) as daemon:
            assert daemon.location == f"./u:{path}"
            async with Proxy(daemon.register(service), settings=client) as proxy:
                assert await proxy.count() > 0
            daemon.unregister(service)
        assert not os.path.exists(path)
    leftover = socket.socket(socket.AF_UNIX)
    leftover.bind(path)
    leftover.close()
    async with Daemon(unixsocket=path):
        with pytest.raises(CommunicationError, match="cannot listen"):
            Daemon(unixsocket=path).bind()
    with open(path, "w") as file:
        file.write("a file")
    with pytest.raises(CommunicationError, match="cannot listen"):
        Daemon(unixsocket=path).bind()
    with open(path) as file:
        assert file.read() == "a file"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_ipv6(service: Service) -> None:
    daemon = Daemon(host="::1")
    if not has_ipv6():
        with pytest.raises(CommunicationError, match="cannot listen"):
            daemon.bind()
        return
    async with daemon:
        assert daemon.location.startswith("[::1]:")
        async with Proxy(str(daemon.register(service))) as proxy:
            assert await proxy.count() == 1


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "some.host.example"])
async def test_a_door_open_to_the_network_needs_a_word(host: str) -> None:
    with pytest.raises(SecurityError, match="insecure"):
        Daemon(host=host).bind()


class Guarded(Daemon):
    def validateHandshake(self, conn: Any, data: Any) -> Any:
        return data


GUARDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "tokens": {"tokens": Tokens({"alice": "correct-horse-battery"})},
    "authenticator": {"authenticator": lambda hello: None},
    "hmac": {"hmac_key": b"secret"},
    "client certificates": {},
    "validateHandshake": {},
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("guard", GUARDS)
async def test_what_counts_as_protection(certificates: Certificates, guard: str, tls: bool) -> None:
    """TLS and a proof, both; what is missing is named."""
    mutual = guard == "client certificates"
    if mutual and not tls:
        return
    context = certificates.server_context(mutual=mutual) if tls else None
    kind = Guarded if guard == "validateHandshake" else Daemon
    daemon = kind(host="0.0.0.0", settings=Settings(ssl_server_context=context, **GUARDS[guard]))
    if tls and guard != "nothing":
        daemon.bind()
        daemon.close()
        return
    missing = {(False, True): "everything in clear: it needs TLS", (True, False): "let everybody in: it needs tokens"}
    text = missing.get((tls, guard != "nothing"), "let everybody on the network in, and send everything in clear")
    with pytest.raises(SecurityError, match=text):
        daemon.bind()


async def test_an_open_door_that_was_asked_for() -> None:
    daemon = Daemon(host="", settings=Settings(insecure=True))
    daemon.bind()
    assert daemon.location.startswith("0.0.0.0:")
    daemon.close()
    daemon.close()


async def test_addresses_that_cannot_be_had() -> None:
    async with Daemon() as daemon:
        with pytest.raises(CommunicationError, match="cannot listen"):
            Daemon(port=daemon._address.port).bind()
    for host, port in [("192.0.2.1", 0), ("nobody.invalid", 0), ("localhost", 70000), ("\udcff", 1)]:
        with pytest.raises(CommunicationError, match="cannot listen"):
            Daemon(host=host, port=port, settings=Settings(insecure=True)).bind()


async def test_published_addresses(service: Service) -> None:
    with pytest.raises(ValueError, match="nathost"):
        Daemon(natport=1)
    with pytest.raises(ValueError, match="unixsocket"):
        Daemon(nathost="x", unixsocket="y")
    async with Daemon(nathost="outside.example", natport=99) as daemon:
        assert daemon.register(service, "s").location == "outside.example:99"
        assert daemon.uri_for("s", nat=False).location == daemon.location
    async with Daemon(nathost="fe80::1") as daemon:
        assert daemon.register(Service(), "s").location == f"[fe80::1]:{daemon._address.port}"


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("outside.example:99", "outside.example:99"),
        ("outside.example", "outside.example:{port}"),
        ("192.0.2.7", "192.0.2.7:{port}"),
        ("2001:db8::7", "[2001:db8::7]:{port}"),
        ("[2001:db8::7]:99", "[2001:db8::7]:99"),
        ("[2001:db8::7]", "[2001:db8::7]:{port}"),
    ],
)
async def test_an_advertised_address(service: Service, text: str, location: str) -> None:
    """One word in place of nathost and natport; what is left out is that of the listener."""
    async with Daemon(advertise=text) as daemon:
        assert daemon.register(service, "s").location == location.format(port=daemon._address.port)
        assert daemon.uri_for("s", nat=False).location == daemon.location


@pytest.mark.parametrize("text", ["", "host:port", "a b", "host:1:2:x", "host:99999999", "./u:/socket", ":99"])
def test_what_cannot_be_advertised(text: str) -> None:
    """It is said at once, not by clients that cannot connect."""
    with pytest.raises(ValueError, match="advertise"):
        Daemon(advertise=text)


def test_one_way_to_publish_an_address() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Daemon(advertise="x", nathost="y")
    with pytest.raises(ValueError, match="needs a host"):
        Daemon(host=[])


class Parent:
    def __init__(self) -> None:
        self.kid = Service()

    @expose
    async def child(self) -> Service:
        return self.kid


async def test_several_listeners() -> None:
    """One daemon on several addresses and one port; who asks gets URIs that lead to where it came in."""
    async with Daemon(host=("127.0.0.2", "127.0.0.3")) as daemon:
        port, parent = daemon._address.port, Parent()
        daemon.register(parent.kid)
        assert str(daemon.register(parent, "parent")) == f"PYRO:parent@127.0.0.2:{port}"
        for host in ("127.0.0.3", "127.0.0.2"):
            async with Proxy(f"PYRO:parent@{host}:{port}") as proxy, await proxy.child() as child:
                assert child._pyroUri.location == f"{host}:{port}"
                assert await child.count() in (1, 2)
    assert not daemon.listeners


async def test_a_wildcard_is_never_published(service: Service) -> None:
    """Nobody can connect to 0.0.0.0: URIs name this machine, and answers the address the caller used."""
    async with Daemon(host="", settings=Settings(insecure=True)) as daemon:
        parent = Parent()
        daemon.register(parent.kid)
        uri = daemon.register(parent, "parent")
        assert uri.host not in ("", "0.0.0.0", None)
        async with Proxy(f"PYRO:parent@127.0.0.4:{daemon._address.port}") as proxy, await proxy.child() as child:
            assert child._pyroUri.location == f"127.0.0.4:{daemon._address.port}"


async def test_a_port_that_is_taken_on_one_of_the_addresses() -> None:
    """Nothing stays open of a daemon that could not have them all."""
    with socket.create_server(("127.0.0.3", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommunicationError, match=r"cannot listen on 127.0.0.3"):
            Daemon(host=("127.0.0.2", "127.0.0.3"), port=port).bind()
        with socket.create_server(("127.0.0.2", port)):
            pass


def test_a_host_name_that_leads_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Debian's hosts file makes a machine's own name a loopback address; it is said when it is listened on."""
    monkeypatch.setattr(places, "bind_tcp", lambda host, port, prefer: bind_tcp("127.0.0.1", port))
    for host, told in (("files.example", True), ("localhost", False), ("127.0.1.1", False), ("", False)):
        caplog.clear()
        for listener in places.bind_hosts([host], 0, 0):
            listener.close()
        assert ("resolves to 127.0.0.1 on this machine" in caplog.text) is told


@pytest.mark.parametrize("version", [4, 6])
async def test_the_preferred_version_of_ip(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """It is listened on, and tried first, where a name has both; the other one is used when it does not answer."""
    if not has_ipv6():
        return
    settings = Settings(prefer_ip_version=version)
    both = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in ("both.example", b"both.example"):
            return list(real(host, port, *args, **kwargs))
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in both]

    real: Any = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    daemon = Daemon(host="both.example", settings=settings.with_changes(insecure=True))
    async with daemon:
        daemon.register(Service(), "s")
        assert daemon.bound_address == ("::1" if version == 6 else "127.0.0.1")
        for prefer in (4, 6):
            async with Proxy(
                f"PYRO:s@both.example:{daemon._address.port}", settings=Settings(prefer_ip_version=prefer)
            ) as proxy:
                await proxy.count()


async def test_a_place_where_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    for place in (f"127.0.0.1:{port}", "./u:/nowhere/at/all", "nobody.invalid:1", "127.0.0.1:0"):
        with pytest.raises(ConnectionClosedError, match="cannot connect") as caught:
            await Proxy(f"PYRO:x@{place}").method()
        assert caught.value.outcome is Outcome.NOT_SENT


def test_a_uri_cannot_be_changed_for_those_who_are_given_it_after() -> None:
    uri = uri_of("PYRO:shared@localhost:4711")
    for name in ("protocol", "object", "host", "port"):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(uri, name, None)
        with pytest.raises(AttributeError, match="cannot be changed"):
            delattr(uri, name)
    assert str(uri_of("PYRO:shared@localhost:4711")) == "PYRO:shared@localhost:4711"
