"""The deadline of a call bounds connecting, too: every step of it, in both kinds of proxy; and nothing was sent."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from certificates import Certificates
from doubles import connectok_bytes, until
from facade_doubles import WITHIN_S, Service, serving

from pyroxfer_core import Proxy, Settings, blocking
from pyroxfer_core.blocking.connect import MAX_LOOKUPS, connect
from pyroxfer_core.blocking.connecting import ConnectingTurn
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from pyroxfer_core.transport.sockets import connect_socket
from pyroxfer_core.uri import Uri

FAR = 1000.0
"""Seconds that no test takes: what connecting may take by itself."""
SHORT = 0.05
LONG_ENOUGH = 0.5
"""For a handshake of TLS, and half a handshake of ours."""


@pytest.fixture
def stopped() -> Iterator[socket.socket]:
    """A daemon that was stopped: the system accepts connections for it, and nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def at(listener: socket.socket, name: str = "thing") -> str:
    return f"{name}@127.0.0.1:{listener.getsockname()[1]}"


def settings(**changes: Any) -> Settings:
    return Settings(connect_timeout_s=FAR, **changes)


def facade(where: str, **changes: Any) -> blocking.Proxy:
    proxy = blocking.Proxy(where, settings=settings(**changes))
    proxy._pyroTimeout = SHORT
    return proxy


def _call(proxy: Any) -> Any:
    return proxy.echo(1)


def _call_with_deadline(proxy: Any) -> Any:
    proxy._pyroTimeout = None
    return proxy.echo.options(deadline=SHORT)(1)


def _batch(proxy: Any) -> Any:
    batch = blocking.BatchProxy(proxy)
    batch.echo(1)
    return batch()


def _set(proxy: Any) -> Any:
    proxy.level = 3


@pytest.mark.parametrize("use", [_call, _batch, _set, blocking.Proxy._pyroBind])
@pytest.mark.parametrize("protocol", [None, 48])
def test_a_daemon_that_does_not_greet(
    stopped: socket.socket, use: Callable[[Any], Any], protocol: int | None
) -> None:
    """Whatever a proxy is asked to do before it knows the object."""
    with facade(f"PYRO:{at(stopped)}", protocol=protocol) as proxy, pytest.raises(TimeoutError) as caught:
        use(proxy)
    assert caught.value.outcome is Outcome.NOT_SENT
    assert f"127.0.0.1:{stopped.getsockname()[1]}" in str(caught.value)


def test_a_deadline_for_one_call(stopped: socket.socket) -> None:
    """Of a method whose proxy knows its members already, and lost its connection."""
    service = Service()
    daemon = blocking.Daemon()
    with facade(str(daemon.register(service, "thing"))) as proxy:
        with serving(daemon):
            proxy._pyroTimeout = None
            assert proxy.echo(1) == 1
            proxy._pyroRelease()
        proxy._pyroUri = blocking.URI(f"PYRO:{at(stopped)}")
        with pytest.raises(TimeoutError) as caught:
            _call_with_deadline(proxy)
        assert caught.value.outcome is Outcome.NOT_SENT
        assert service.ran == 1


@pytest.mark.parametrize("use", [_call, blocking.Proxy._pyroBind])
def test_a_name_server_that_does_not_answer(stopped: socket.socket, use: Callable[[Any], Any]) -> None:
    with facade(f"PYRONAME:{at(stopped)}") as proxy, pytest.raises(TimeoutError) as caught:
        use(proxy)
    assert caught.value.outcome is Outcome.NOT_SENT


def test_a_daemon_that_does_not_answer_under_tls(stopped: socket.socket, certificates: Certificates) -> None:
    context = certificates.client_context()
    with facade(f"PYRO:{at(stopped)}", ssl_client_context=context) as proxy, pytest.raises(TimeoutError) as caught:
        _call(proxy)
    assert caught.value.outcome is Outcome.NOT_SENT


def test_a_daemon_that_stops_in_the_middle_of_its_welcome_under_tls(
    stopped: socket.socket, certificates: Certificates
) -> None:
    """What has come of a record is nothing that can be read."""
    over = threading.Event()
    ended_first: list[bool] = []

    def greet_by_half() -> None:
        sock, _ = stopped.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certificates.server_context().wrap_bio(incoming, outgoing, server_side=True)
        with sock:
            for step in (tls.do_handshake, tls.read):
                while True:
                    try:
                        step()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        incoming.write(sock.recv(65536))
            tls.write(connectok_bytes())
            sock.sendall(outgoing.read()[:-1])
            ended_first.append(over.wait(WITHIN_S))

    daemon = threading.Thread(target=greet_by_half)
    daemon.start()
    changes = {"ssl_client_context": certificates.client_context()}
    with facade(f"PYRO:{at(stopped)}", **changes) as proxy, pytest.raises(TimeoutError) as caught:
        proxy._pyroTimeout = LONG_ENOUGH
        proxy.echo(1)
    over.set()
    daemon.join(WITHIN_S)
    assert ended_first == [True]
    assert caught.value.outcome is Outcome.NOT_SENT


def test_a_place_that_takes_no_more_connections() -> None:
    """The connection itself is not made: the queue of the listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with facade(f"PYRO:{at(listener)}") as proxy, pytest.raises(TimeoutError) as caught:
            _call(proxy)
        assert caught.value.outcome is Outcome.NOT_SENT


def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    known = socket.getaddrinfo

    def look_up(host: Any, port: Any, *, type: int, flags: int = 0) -> Any:
        if flags & socket.AI_NUMERICHOST:
            return known(host, port, type=type, flags=flags)
        answer.wait(WITHIN_S)
        raise socket.gaierror("nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for number in range(MAX_LOOKUPS + 2):  # in the end there is not even a thread for it
        with facade(f"PYRO:thing@far{number}.invalid:4711") as proxy, pytest.raises(TimeoutError) as caught:
            _call(proxy)
        assert caught.value.outcome is Outcome.NOT_SENT
    asking = [thread for thread in threading.enumerate() if thread.name.startswith("pyroxfer: address")]
    assert len(asking) == MAX_LOOKUPS
    answer.set()
    for thread in asking:
        thread.join(WITHIN_S)
    with facade("PYRO:thing@far.invalid:4711") as proxy, pytest.raises(CommunicationError, match="nobody knows"):
        proxy._pyroTimeout = None
        _call(proxy)


def test_no_resolver_is_asked_for_an_address_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver(*args: object, **keywords: object) -> object:
        raise AssertionError("it was asked")

    with serving(blocking.Daemon()) as daemon:
        uri = daemon.register(Service(), "thing")
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        with blocking.Proxy(f"PYRO:thing@127.0.0.1:{uri.port}", settings=settings()) as proxy:
            assert proxy.echo(1) == 1


def test_a_call_waits_for_another_threads_connection_as_long_as_it_may(stopped: socket.socket) -> None:
    with facade(f"PYRO:{at(stopped)}") as proxy:
        proxy._pyroTimeout = None
        patient: list[BaseException] = []

        def wait() -> None:
            try:
                proxy.echo(1)
            except BaseException as error:
                patient.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        accepted, _ = stopped.accept()  # the other thread waits for the greeting
        proxy._pyroTimeout = SHORT
        with pytest.raises(TimeoutError) as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.NOT_SENT
        accepted.close()
        stopped.close()
        thread.join(WITHIN_S)
        assert len(patient) == 1


def test_whoever_has_the_turn_may_ask_for_it_again() -> None:
    """As a hook does that uses the proxy it belongs to; afterwards others have it."""
    turn = ConnectingTurn()
    done: list[str] = []
    other = threading.Thread(target=turn.during, args=(None, lambda: done.append("other")))

    def ask_again() -> None:
        turn.during(None, lambda: done.append("again"))
        other.start()
        while turn._turns[os.getpid()]._changed is None:  # it does not wait yet
            time.sleep(SHORT / 10)
        done.append("first")

    turn.during(None, ask_again)
    other.join(WITHIN_S)
    assert done == ["again", "first", "other"]
    with pytest.raises(ZeroDivisionError):
        turn.during(None, lambda: 1 / 0)
    assert turn.during(None, lambda: 5) == 5


async def test_trio_proxies(stopped: socket.socket, certificates: Certificates) -> None:
    """Each of their steps, by the call's own deadline, the proxy's, and that of another call."""
    context = certificates.client_context()
    for where, changed in (
        (f"PYRO:{at(stopped)}", settings()),
        (f"PYRO:{at(stopped)}", settings(protocol=48)),
        (f"PYRO:{at(stopped)}", settings(ssl_client_context=context)),
        (f"PYRONAME:{at(stopped)}", settings()),
    ):
        async with Proxy(where, settings=changed) as proxy, trio.open_nursery() as nursery:
            nursery.start_soon(_wait_for_ever, proxy)
            await until(lambda: proxy._pyroConnecting.locked())
            with pytest.raises(TimeoutError) as caught:
                await proxy.echo.options(deadline=SHORT)(1)
            assert caught.value.outcome is Outcome.NOT_SENT
            nursery.cancel_scope.cancel()
        async with Proxy(where, settings=changed.with_changes(call_timeout_s=SHORT)) as proxy:
            with pytest.raises(TimeoutError) as caught:
                await proxy.echo(1)
            assert caught.value.outcome is Outcome.NOT_SENT


async def _wait_for_ever(proxy: Proxy) -> None:
    with trio.fail_after(math.inf):
        await proxy.echo(1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("port", [-1, 70_000, 2**70])
async def test_a_port_that_does_not_exist(host: str, port: int) -> None:
    """A URI that came in a value may have one: nobody can be there, and another port is not tried for it."""
    uri = Uri.from_state(("PYRO", "thing", None, host, port))
    with pytest.raises(ConnectionClosedError, match="ports are 0 to 65535") as failed:
        await connect_socket(uri, 5)
    assert failed.value.outcome is Outcome.NOT_SENT
    with pytest.raises(ConnectionClosedError, match="ports are 0 to 65535"):
        connect(uri, time.monotonic() + 5)
