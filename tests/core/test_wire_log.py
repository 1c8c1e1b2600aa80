"""Headers in the log, on request: every message of a conversation, both ways, and never a body."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose
from pyroxfer_core.transport.wirelog import log

SECRET = "do-not-log-me"


@expose
class Service:
    async def echo(self, value: str) -> str:
        return value


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.getLogger().setLevel(logging.DEBUG)
    yield caplog
    log.setLevel(logging.NOTSET)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pyroxfer.wire"]


@pytest.mark.parametrize("protocol", [48, 502])
async def test_each_header_is_logged_at_both_ends_and_no_body(lines: pytest.LogCaptureFixture, protocol: int) -> None:
    """CONNECT, its answer, a call and its result: sent and received, with sizes and keys; the argument is nowhere."""
    wanted = Settings(log_wire=True, protocol=protocol)
    async with Daemon(settings=wanted) as daemon:
        async with Proxy(daemon.register(Service(), "service"), settings=wanted) as proxy:
            assert await proxy.echo(SECRET) == SECRET
    kinds = [re.match(r"(sent|received) \S+: (\w+) protocol (\d+)", text) for text in said(lines)]
    found = {kind.groups() for kind in kinds if kind is not None}
    for direction in ("sent", "received"):
        for name in ("CONNECT", "CONNECTOK", "INVOKE", "RESULT"):
            assert (direction, name, str(protocol)) in found
    assert all(re.search(r"sequence \d+, serializer \w+, flags 0x.*body \d+ bytes$", text) for text in said(lines))
    assert SECRET not in lines.text


async def test_nothing_is_logged_unless_asked_for(lines: pytest.LogCaptureFixture) -> None:
    """A log of level DEBUG alone does not bring it; the level of its own logger does."""
    async with Daemon() as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri) as proxy:
            await proxy.echo("x")
        assert not said(lines)
        log.setLevel(logging.DEBUG)
        async with Proxy(uri) as proxy:
            await proxy.echo("x")
        assert said(lines)


async def test_the_blocking_proxy_logs_too(lines: pytest.LogCaptureFixture) -> None:
    """``config.LOGWIRE``, as in Pyro."""
    import trio

    def call(uri: str) -> None:
        blocking.config.LOGWIRE = True
        try:
            with blocking.Proxy(uri) as proxy:
                assert proxy.echo(SECRET) == SECRET
        finally:
            blocking.config.reset()

    async with Daemon() as daemon:
        uri = daemon.register(Service(), "service")
        await trio.to_thread.run_sync(call, str(uri))
    assert any(text.startswith("sent") and "INVOKE" in text for text in said(lines))
    assert any(text.startswith("received") and "RESULT" in text for text in said(lines))
    assert SECRET not in lines.text
