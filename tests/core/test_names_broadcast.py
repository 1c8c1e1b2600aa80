"""Finding name servers by broadcast, on the loopback interface."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import broadcast
from pyroxfer_core.nameserver.broadcast import BroadcastResponder, find_by_broadcast, open_responder
from pyroxfer_core.uri import Uri

HERE = ("127.0.0.1",)
VECTORS = Path(__file__).parent.parent / "vectors"


@pytest.fixture
async def listening() -> AsyncIterator[trio.socket.SocketType]:
    """A UDP socket that a test answers from as it likes."""
    bound = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await bound.bind(("127.0.0.1", 0))
    yield bound
    bound.close()


def port_of(bound: trio.socket.SocketType) -> int:
    port: int = bound.getsockname()[1]
    return port


@pytest.mark.parametrize("library", ["pyro4", "pyro5"])
@pytest.mark.parametrize(("kind", "host"), [("any", "0.0.0.0"), ("named", "neptune.example")])
async def test_datagrams_are_those_of_pyro(library: str, kind: str, host: str) -> None:
    vectors: list[dict[str, Any]] = json.loads((VECTORS / f"{library}-discovery.json").read_text())["vectors"]
    request, response = (bytes.fromhex(vector["hex"]) for vector in vectors if f".{kind}." in vector["name"])
    assert request == broadcast.QUERY
    responder = await open_responder(Uri(f"PYRO:Pyro.NameServer@{host}:9090"), "127.0.0.1", 0)
    assert responder.answer_to("127.0.0.1") == response
    responder.close()


@pytest.mark.parametrize(
    ("host", "answer"), [("192.168.1.5", "192.168.1.5"), ("neptune", "neptune"), ("0.0.0.0", "127.0.0.1")]
)
async def test_responder_and_finder(host: str, answer: str) -> None:
    responder = await open_responder(Uri(f"PYRO:Pyro.NameServer@{host}:9090"), "127.0.0.1", 0)
    port = int(responder.location.rpartition(":")[2])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(responder.run)
        found = await find_by_broadcast(port, HERE)
        assert found == Uri(f"PYRO:Pyro.NameServer@{answer}:9090")
        nursery.cancel_scope.cancel()


async def test_anything_but_the_question_is_ignored() -> None:
    responder = await open_responder(Uri("PYRO:Pyro.NameServer@h:1"), "127.0.0.1", 0)
    port = int(responder.location.rpartition(":")[2])
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(responder.run)
            for datagram in (b"", b"GET_NSURI ", b"get_nsuri", b"x" * 60_000, broadcast.QUERY):
                await asking.sendto(datagram, ("127.0.0.1", port))
            assert await asking.recvfrom(1000) == (b"PYRO:Pyro.NameServer@h:1", ("127.0.0.1", port))
            with trio.move_on_after(0.05) as silence:
                await asking.recvfrom(1000)
            assert silence.cancelled_caught
            nursery.cancel_scope.cancel()


async def test_no_answer_when_no_address_leads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "local_address_towards", lambda peer: None)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as idle:
        assert BroadcastResponder(Uri("PYRO:Pyro.NameServer@0.0.0.0:9090"), idle).answer_to("10.0.0.1") is None


async def test_a_taken_port_is_a_clear_error(listening: trio.socket.SocketType) -> None:
    with pytest.raises(NamingError, match=r"cannot listen for broadcasts on 127\.0\.0\.1:"):
        await open_responder(Uri("PYRO:Pyro.NameServer@h:1"), "127.0.0.1", port_of(listening))


async def test_nobody_answers(listening: trio.socket.SocketType, autojump_clock: trio.testing.MockClock) -> None:
    """All tries are made, then the answer is None."""
    began = trio.current_time()
    assert await find_by_broadcast(port_of(listening), HERE) is None
    assert trio.current_time() - began == pytest.approx(broadcast.TRIES * broadcast.WAIT_S)
    for _ in range(broadcast.TRIES):
        assert (await listening.recvfrom(100))[0] == broadcast.QUERY


async def test_rubbish_answers_are_passed_over(listening: trio.socket.SocketType) -> None:
    async def answer() -> None:
        _, asker = await listening.recvfrom(100)
        for datagram in (
            b"",
            b"\xff" * 400,
            b"PYRO:other@h:1",
            b"PYRONAME:Pyro.NameServer@h:1",
            b"PYRO:Pyro.NameServer@0.0.0.0:9090",
            b"PYRO:Pyro.NameServer@h:99999",
            b"PYRO:Pyro.NameServer@h:1",
        ):
            await listening.sendto(datagram, asker)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert await find_by_broadcast(port_of(listening), HERE) == Uri("PYRO:Pyro.NameServer@h:1")
