"""Peers that speak wrongly: our daemon goes on serving, our proxy says what is wrong; nobody hangs or falls."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import Service, StartClient, StartService
from scenarios import EXPECTED, STOCK

from pyroxfer_core import Proxy, Settings, errors

VECTORS = Path(__file__).parent.parent / "vectors"


def address(daemon: Service) -> tuple[str, int]:
    host, port = daemon.uri.split("@")[1].rsplit(":", 1)
    return host, int(port)


def send_and_listen(daemon: Service, *pieces: bytes) -> bytes:
    """What the daemon answers to these bytes until it closes (or falls silent)."""
    with socket.create_connection(address(daemon), timeout=10) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.settimeout(0.2)
            while data := connection.recv(65536):
                answer += data
        except (ConnectionError, TimeoutError):
            pass
        return answer


RUBBISH = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls hello": bytes.fromhex("160301020001000000"),
    "zeros": bytes(4096),
    "magic only": b"PYRO",
    "unknown protocol": b"PYRO\x00\x63" + bytes(40),
    "half a header": b"PYRO\x01\xf6\x01\x02",
    "huge announced": b"PYRO\x01\xf6\x01\x01\x00\x00\x00\x01\xff\xff\xff\xff" + bytes(24),
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_our_daemon_survives(client: StartClient, service: StartService, rubbish: str) -> None:
    """After any bytes at all the daemon still answers a stock client of each protocol."""
    daemon = service("trio")
    send_and_listen(daemon, RUBBISH[rubbish])
    for library in STOCK:
        assert client(library).play("calls", daemon, "serpent") == EXPECTED["calls"]


def malformed_cases() -> list[Any]:
    recorded = [json.loads((VECTORS / f"{library}-malformed.json").read_text())["vectors"] for library in STOCK]
    return [pytest.param(case, id=case["name"]) for cases in recorded for case in cases if case["sent_hex"]]


@pytest.mark.parametrize("case", malformed_cases())
def test_our_daemon_survives_what_was_recorded(
    client: StartClient, service: StartService, case: dict[str, Any]
) -> None:
    """Malformed bytes recorded with the stock libraries: an answer in Pyro's words or none, and we serve on."""
    daemon = service("trio")
    answer = send_and_listen(daemon, bytes.fromhex(case["sent_hex"]))
    assert answer[:4] in (b"", b"PYRO")
    assert client("pyro5").play("calls", daemon, "serpent") == EXPECTED["calls"]


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, bytes(4096), b"PYRO\x01\xf6"])
async def test_our_proxy_says_what_is_wrong(nursery: trio.Nursery, reply: bytes) -> None:
    """A server that is no Pyro server gives one typed error within the time for connecting."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, answer, 0)
    port = listeners[0].socket.getsockname()[1]
    async with Proxy(f"PYRO:object@localhost:{port}", settings=Settings(connect_timeout_s=5)) as proxy:
        with pytest.raises(errors.CommunicationError):
            await proxy.method()
    nursery.cancel_scope.cancel()
