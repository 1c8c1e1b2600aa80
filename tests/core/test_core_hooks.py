"""Hooks of the handshake at both ends."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import trio
from doubles import until

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.errors import (
    CommunicationError,
    Outcome,
    SerializeError,
)

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


@expose
class Service:
    async def echo(self, value: Any) -> Any:
        return value


class Greeter(Daemon):
    seen: Any = None
    left = 0
    is_async = False

    def validateHandshake(self, conn: Any, data: Any) -> Any:
        async def later() -> Any:
            await trio.lowlevel.checkpoint()
            return self._judge(data)

        return later() if self.is_async else self._judge(data)

    def _judge(self, data: Any) -> Any:
        self.seen = data
        if data == "open sesame":
            return {"welcome": [1, 2]}
        if data == "silent":
            raise ValueError
        raise PermissionError("wrong word")

    def clientDisconnect(self, conn: Any) -> None:
        self.left += 1
        raise RuntimeError("errors of the hook stay in the daemon")


class Attentive(Proxy):
    _pyroAnswer: Any = None

    def _pyroValidateHandshake(self, response: Any) -> None:
        self._pyroAnswer = response
        if response == {"welcome": [1, 2]}:
            return
        raise AssertionError(response)


@BOTH
@pytest.mark.parametrize("is_async", [False, True])
async def test_handshake_hooks(client: Settings, is_async: bool) -> None:
    daemon = Greeter(settings=Settings(shutdown_grace_s=1))
    daemon.is_async = is_async
    async with daemon:
        uri = daemon.register(Service())
        proxy = Attentive(uri, settings=client)
        async with proxy:
            with pytest.raises(CommunicationError, match="wrong word") as caught:
                await proxy.echo(1)
            assert caught.value.outcome is Outcome.NOT_SENT
            proxy._pyroHandshake = "silent"
            with pytest.raises(CommunicationError, match="rejected: ValueError"):
                await proxy.echo(1)
            proxy._pyroHandshake = "open sesame"
            assert await proxy.echo(1) == 1
            assert proxy._pyroAnswer == {"welcome": [1, 2]}
            assert daemon.seen == "open sesame"
        await until(lambda: daemon.left == 1)


async def test_who_came_before_the_hook_is_not_known_by_it() -> None:
    """So it may not send pickle, which the daemon takes only of those that it knows."""
    settings = Settings(accepted_serializers=frozenset({"serpent", "msgpack", "pickle"}), shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon:
        uri = daemon.register(Service())
        async with Proxy(uri) as before, Proxy(uri) as after:
            assert await before.echo(1) == 1
            daemon.validateHandshake = lambda conn, data: "hello"  # type: ignore[method-assign]  # what is tested
            assert await after.echo(1) == 1
            early, late = sorted(daemon.peers, key=lambda peer: peer.asked)
            assert late.serializer("pickle").loads(pickle.dumps(1)) == 1
            with pytest.raises(SerializeError, match="who it is"):
                early.serializer("pickle")


async def test_a_proxy_that_refuses_the_daemon_closes_the_connection() -> None:
    async with Daemon() as daemon, Attentive(daemon.register(Service())) as proxy:
        with pytest.raises(AssertionError):
            await proxy.echo(1)
        assert proxy._pyroLink is None
        await until(lambda: not daemon.peers)
