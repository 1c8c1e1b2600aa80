"""TLS and mutual TLS, for the trio and the blocking ends: what gets through, what is refused, and what is said."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import pytest
import trio
from certificates import Certificates
from doubles import raw_client, until
from facade_doubles import Service, serving

from pyroxfer_core import (
    Connection,
    Daemon,
    Proxy,
    Settings,
    SideStream,
    blocking,
    expose,
    open_connection,
    open_side_stream,
    tls_client_context,
    tls_server_context,
)
from pyroxfer_core.errors import (
    AuthenticationError,
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    SecurityError,
    TimeoutError,
)
from pyroxfer_core.transport import tls
from pyroxfer_core.transport.tls import TlsSocket, start_tls
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

LARGE = bytes(range(256)) * 12_000


@expose
class Demo:
    async def echo(self, value: object) -> object:
        return value

    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number


@asynccontextmanager
async def tls_daemon(settings: Settings) -> AsyncIterator[str]:
    async with Daemon(settings=settings.with_changes(shutdown_grace_s=0.5)) as daemon:
        yield str(daemon.register(Demo(), "demo"))


async def ask_trio(uri: str, settings: Settings, value: object = "hello") -> object:
    async with Proxy(uri, settings=settings) as proxy:
        return await proxy.echo(value)


async def ask_blocking(uri: str, settings: Settings, value: object = "hello") -> object:
    def ask() -> object:
        with blocking.Proxy(uri, settings=settings) as proxy:
            return proxy.echo(value)

    return await trio.to_thread.run_sync(ask)


Ask = Callable[..., object]
both_clients = pytest.mark.parametrize("ask", [ask_trio, ask_blocking])


@both_clients
@pytest.mark.parametrize("protocol", [48, 502])
@pytest.mark.parametrize("mutual", [False, True])
async def test_calls(certificates: Certificates, ask: Ask, protocol: int, mutual: bool) -> None:
    """Small and large calls go through, in both protocols, with and without a client certificate."""
    settings = certificates.settings(mutual=mutual, protocol=protocol)
    async with tls_daemon(settings) as uri:
        assert await ask(uri, settings) == "hello"  # type: ignore[misc]
        assert await ask(uri, settings.with_changes(serializer="msgpack"), LARGE) == LARGE  # type: ignore[misc]


async def test_many_calls_at_once_and_streams(certificates: Certificates) -> None:
    """Calls of many tasks share the one connection; messages beyond the kernel's buffers go both ways at once."""
    settings = certificates.settings()
    answers: list[object] = []
    async with tls_daemon(settings) as uri, Proxy(uri, settings=settings) as proxy:

        async def call(number: int) -> None:
            answers.append(len(await proxy.echo(bytes(number * 200_000))))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(call, number)
        assert sorted(answers) == [number * 200_000 for number in range(20)]  # type: ignore[type-var]
        assert [item async for item in proxy.count(5)] == [0, 1, 2, 3, 4]


def test_threads_share_a_connection(certificates: Certificates) -> None:
    """One thread reads for all while others send: OpenSSL sees one of them at a time."""
    settings = certificates.settings()
    answers: list[int] = []
    with serving(blocking.Daemon(settings=settings)) as daemon:
        uri = daemon.register(Service(), "service")
        with blocking.Proxy(uri, settings=settings) as proxy:
            proxy._pyroBind()

            def call(number: int) -> None:
                answers.extend(len(proxy.echo(bytes(number * 50_000))) for _ in range(5))

            threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(answers) == sorted(number * 50_000 for number in range(8) for _ in range(5))


def test_a_connection_closed_between_calls_is_noticed(certificates: Certificates) -> None:
    """The proxy looks before it sends: the call goes to the daemon that is there now, and is not lost."""
    settings = certificates.settings()
    with serving(blocking.Daemon(settings=settings)) as first:
        place = first.location
        first.register(Service(), "service")
        proxy = blocking.Proxy(f"PYRO:service@{place}", settings=settings)
        assert proxy.echo(1) == 1
        link = proxy._pyroConnection
        assert link is not None
    while not link.reading.poll.poll(0):
        pass
    with proxy, serving(blocking.Daemon(port=int(place.rpartition(":")[2]), settings=settings)) as second:
        second.register(Service(), "service")
        assert proxy.echo(2) == 2
        assert proxy._pyroConnection is not link


def certificates_of(name: str, certificates: Certificates) -> Settings:
    """A client's settings, and the daemon's, that do not go together."""
    good = certificates.settings()
    return {
        "unknown CA": good.with_changes(ssl_client_context=tls_client_context(certificates.other_ca)),
        "other name": good.with_changes(ssl_server_context=tls_server_context(certificates.elsewhere)),
        "expired": good.with_changes(ssl_server_context=tls_server_context(certificates.expired)),
        "no client certificate": good.with_changes(ssl_server_context=certificates.server_context(mutual=True)),
        "foreign client": good.with_changes(
            ssl_server_context=certificates.server_context(mutual=True),
            ssl_client_context=tls_client_context(certificates.ca, cert=certificates.stranger),
        ),
        "no client certificate, TLS 1.2": good.with_changes(
            ssl_server_context=_only_1_2(certificates.server_context(mutual=True))
        ),
    }[name]


def _only_1_2(context: ssl.SSLContext) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@both_clients
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("unknown CA", "a CA that is not known here: name the CA's file"),
        ("other name", "is for another name: connect to a name that stands in it"),
        ("expired", "has expired: it must be renewed there"),
        ("no client certificate", "it wants a certificate of this side: give one"),
        ("no client certificate, TLS 1.2", "it wants a certificate of this side"),
        ("foreign client", "does not know the CA of this side's certificate"),
    ],
)
async def test_certificates_that_do_not_fit(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, ask: Ask, case: str, text: str
) -> None:
    """The client learns in one line what is wrong and what to do, the daemon logs it, and nothing has run."""
    settings = certificates_of(case, certificates)
    async with tls_daemon(settings) as uri:
        with pytest.raises(AuthenticationError, match=text) as caught:
            await ask(uri, settings)  # type: ignore[misc]
        await until(lambda: "refused: TLS with 127.0.0.1:" in caplog.text or "ended: " in caplog.text or not case)
    assert caught.value.outcome is Outcome.NOT_SENT
    assert isinstance(caught.value, SecurityError)
    assert isinstance(caught.value, CommunicationError)


@both_clients
async def test_a_tls_client_and_a_plain_daemon(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, ask: Ask
) -> None:
    """Both ends are told: the client in its error, the operator in the log."""
    async with tls_daemon(Settings()) as uri:
        with pytest.raises(ProtocolError, match="does not speak TLS; turn TLS off here, or on there"):
            await ask(uri, certificates.settings())  # type: ignore[misc]
    assert "speaks TLS to a port that does not" in caplog.text


@both_clients
async def test_a_plain_client_and_a_tls_daemon(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, ask: Ask
) -> None:
    """Plain bytes are closed and logged; the daemon goes on with others."""
    settings = certificates.settings()
    async with tls_daemon(settings) as uri:
        with pytest.raises(CommunicationError) as caught:
            await ask(uri, Settings())  # type: ignore[misc]
        assert caught.value.outcome is Outcome.NOT_SENT
        assert await ask(uri, settings) == "hello"  # type: ignore[misc]
    assert "it does not speak TLS; closed" in caplog.text


async def test_first_bytes_are_judged_inside_tls(certificates: Certificates) -> None:
    """Rubbish, a version probe and a side stream, all inside TLS, get what they get on a plain port."""
    seen: list[bytes] = []

    async def take(stream: SideStream) -> None:
        seen.append(stream.token.rstrip(b"\0"))
        await stream.send_all(await stream.receive_exactly(5))

    settings = certificates.settings(connect_timeout_s=3)
    async with Daemon(settings=settings) as daemon:
        daemon.side_stream_handler = take
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"PYRO", b"\x16\x03\x01\x02\x00"):
            stream = await trio.open_tcp_stream("localhost", int(daemon.location.rpartition(":")[2]))
            client = trio.SSLStream(stream, certificates.client_context(), server_hostname="localhost")
            await client.send_all(data)
            assert (await client.receive_some(6))[:6] == b"PYRO\x01\xf6"
            await stream.aclose()
        async with await open_side_stream(daemon.location, b"token", settings=settings) as side:
            await side.send_all(b"hello")
            assert await side.receive_exactly(5) == b"hello"
            assert await side.receive_some() == b""  # with a goodbye
    assert seen == [b"token"]


async def test_files_through_a_side_stream(certificates: Certificates, tmp_path: Path) -> None:
    """The file operations of a side stream encrypt: the same bytes arrive, from and to any offset."""
    (tmp_path / "from").write_bytes(LARGE)
    source, target = os.open(tmp_path / "from", os.O_RDONLY), os.open(tmp_path / "to", os.O_RDWR | os.O_CREAT)
    received: list[int] = []

    async def take(stream: SideStream) -> None:
        received.append(await stream.splice_to_file(target, 3, len(LARGE)))

    settings = certificates.settings()
    try:
        async with Daemon(settings=settings) as daemon:
            daemon.side_stream_handler = take
            async with await open_side_stream(daemon.location, b"", settings=settings) as side:
                assert await side.send_file(source, 1000, 10 * len(LARGE)) == len(LARGE) - 1000
            await until(lambda: received)
    finally:
        os.close(source)
        os.close(target)
    assert received == [len(LARGE) - 1000]
    assert (tmp_path / "to").read_bytes() == bytes(3) + LARGE[1000:]


async def ends(certificates: Certificates) -> tuple[TlsSocket, TlsSocket]:
    """Two ends of one TLS connection."""
    here, there = socket.socketpair()
    found: dict[bool, TlsSocket] = {}

    async def start(sock: socket.socket, server_side: bool) -> None:
        context = certificates.server_context() if server_side else certificates.client_context()
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF  # as some versions of Python have it from the start
        name = None if server_side else "localhost"
        found[server_side] = await start_tls(sock, context, server_side=server_side, server_hostname=name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, here, False)
        nursery.start_soon(start, there, True)
    return found[False], found[True]


def test_a_cut_is_told_alike_by_all_versions() -> None:
    """Some raise no error of its own for it."""
    error = ssl.SSLError(1, "unexpected eof while reading")
    error.reason = "UNEXPECTED_EOF_WHILE_READING"
    for one in (error, ssl.SSLEOFError(8, "EOF occurred in violation of protocol")):
        assert "without a TLS close_notify" in str(tls._meaning(one, "peer"))


async def test_a_goodbye_is_an_end_and_a_cut_is_an_error(certificates: Certificates) -> None:
    """Whoever cuts the TCP connection cannot make a stream look finished."""
    for goodbye in (True, False):
        here, there = await ends(certificates)
        here.send(b"all")
        if goodbye:
            here.close()
        else:
            here.drop()
        reader = SideStream(there)
        assert await reader.receive_exactly(3) == b"all"
        if goodbye:
            assert await reader.receive_some() == b""
        else:
            for _ in range(2):
                with pytest.raises(ConnectionClosedError, match="without a TLS close_notify"):
                    await reader.receive_some()
        there.drop()


async def test_after_a_goodbye_the_other_end_may_still_speak(certificates: Certificates) -> None:
    """Half close: who has said goodbye is answered, and who answers is not cut off."""
    here, there = await ends(certificates)
    here.shutdown(socket.SHUT_WR)
    assert there.recv(10) == b""
    assert there.send(b"still here") == 10
    assert here.recv(100) != b""  # encrypted, and only good for dropping
    here.drop()
    there.drop()


async def test_every_message_is_a_record_of_its_own(certificates: Certificates) -> None:
    """What was queued together is sent at once but not put into one record: stock select loops would hang."""
    here, there = await ends(certificates)
    connection = Connection(here, Decoder(codec_for(502)))
    for seq in range(3):
        connection.queue(Message(MessageType.PING, seq, "ping", 0, bytes(100)))
    await connection.flush()
    record = there._tls.recv(65536)
    assert len(record) == len(there._tls.recv(65536)) == len(there._tls.recv(65536)) == 140
    connection.close()
    there.drop()


async def test_a_buffer_is_let_go_of_although_somebody_looks_at_the_stack(certificates: Certificates) -> None:
    """As the watchdog of a daemon does: the frames that it has got keep what is in them, and the buffer must grow."""
    here, there = await ends(certificates)
    frames: list[FrameType] = []
    buffer = bytearray(100)
    for data in (b"abc", b""):
        if data:
            here.send(data)
        sys.setprofile(lambda frame, event, _: frames.append(frame))
        try:
            with contextlib.suppress(BlockingIOError):
                assert there.recv_into(buffer) == 3
        finally:
            sys.setprofile(None)
        assert "recv_into" in {frame.f_code.co_name for frame in frames}
        buffer += b"more"
    here.drop()
    there.drop()


async def test_looking_at_an_idle_connection_loses_nothing(certificates: Certificates) -> None:
    """Peeking finds nothing, bytes, or the end, and what was peeked at is read next."""
    here, there = await ends(certificates)
    with pytest.raises(BlockingIOError):
        there.recv(1, socket.MSG_PEEK)
    here.send(b"abc")
    assert there.recv(1, socket.MSG_PEEK) == b"a"
    assert there.recv(1, socket.MSG_PEEK) == b"a"
    buffer = bytearray(2)
    assert there.recv_into(buffer) == 2
    assert (bytes(buffer), there.recv(10)) == (b"ab", b"c")
    here.close()
    assert there.recv(1, socket.MSG_PEEK) == b""
    there.drop()


async def test_what_was_not_taken_whole_does_not_count_as_sent(certificates: Certificates) -> None:
    """A request of which a record is missing cannot have run; offered again, the stream goes on without a gap."""
    here, there = await ends(certificates)
    data, done = LARGE, 0
    got = bytearray()
    while done < len(data):
        try:
            done += here.send(memoryview(data)[done:])
        except BlockingIOError:
            while True:
                try:
                    got += there.recv(100_000)
                except BlockingIOError:
                    break
            assert len(got) == done  # no more arrived than was reported, and no less
    got += there.recv(1_000_000)
    assert got == data
    here.drop()
    there.drop()


async def test_half_open_tls_connections_are_bounded(certificates: Certificates) -> None:
    """Peers that connect and never finish the TLS handshake give way to newer ones, and time out."""
    settings = certificates.settings(max_half_open=5, connect_timeout_s=2.0)
    async with tls_daemon(settings) as uri:
        port = int(uri.rpartition(":")[2])
        streams = [await trio.open_tcp_stream("localhost", port) for _ in range(20)]
        assert await ask_trio(uri, certificates.settings()) == "hello"
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(_until_closed, stream)


async def _until_closed(stream: trio.SocketStream) -> None:
    async with stream:
        try:
            assert await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            pass


@both_clients
async def test_a_daemon_that_never_answers_the_handshake(certificates: Certificates, ask: Ask) -> None:
    """The time limit of connecting holds for TLS, too, and the call was not sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = certificates.settings(connect_timeout_s=0.1)
        with pytest.raises(TimeoutError) as caught:
            await ask(f"PYRO:demo@127.0.0.1:{listener.getsockname()[1]}", settings)  # type: ignore[misc]
    assert caught.value.outcome is Outcome.NOT_SENT


async def test_bytes_that_are_no_tls_leave_the_daemon_alone(certificates: Certificates) -> None:
    """Handshakes cut and changed at every few bytes end that connection only."""
    settings = certificates.settings()
    hello = _client_hello()
    async with tls_daemon(settings) as uri:
        place = uri.partition("@")[2]
        for size in range(1, len(hello), 23):
            for data in (hello[:size], hello[:size] + bytes(64)):
                async with raw_client(place) as client:
                    await client.send(data)
                    await client.stream.send_eof()
                    await client.until_closed()
        assert await ask_trio(uri, settings) == "hello"


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def test_unix_sockets_are_plain(certificates: Certificates, tmp_path: Path) -> None:
    """Their file says who may connect; settings with TLS serve both kinds of place."""
    settings = certificates.settings()
    async with Daemon(unixsocket=str(tmp_path / "s"), settings=settings) as daemon:
        uri = str(daemon.register(Demo(), "demo"))
        assert await ask_trio(uri, settings) == "hello"
        assert await ask_blocking(uri, settings) == "hello"


async def test_cancelling_a_handshake_leaves_nothing(certificates: Certificates) -> None:
    """The socket is closed with it."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: open_connection(place, settings=certificates.settings()))
            accepted, _ = await listener.accept()
            nursery.cancel_scope.cancel()
        with accepted:
            while await accepted.recv(65536):
                pass


def test_certificate_hooks_find_the_peers_certificate(certificates: Certificates) -> None:
    """Programs written for Pyro look at it in both validation hooks."""
    seen: list[object] = []

    class Daemon(blocking.Daemon):
        def validateHandshake(self, conn: object, data: object) -> object:
            seen.append(conn.getpeercert()["subject"])  # type: ignore[attr-defined]
            return "hello"

    class Proxy(blocking.Proxy):
        def _pyroValidateHandshake(self, response: object) -> None:
            assert self._pyroConnection is not None
            seen.append(self._pyroConnection.getpeercert()["subjectAltName"][0])

    settings = certificates.settings(mutual=True)
    with serving(Daemon(settings=settings)) as daemon, Proxy(daemon.register(Service()), settings=settings) as proxy:
        assert proxy.echo(1) == 1
    assert ("commonName", "alice") in [pair for part in seen[0] for pair in part]  # type: ignore[attr-defined]
    assert seen[1] == ("DNS", "localhost")


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (lambda at: (at.ca.parent / "none.pem",), "cannot read .*none.pem: No such file"),
        (lambda at: (at.ca,), "no certificate with its private key"),
        (lambda at: (at.server, at.client), "the key in .*client.pem does not belong to the certificate in .*server"),
        (lambda at: (at.server, _encrypted(at)), "is encrypted: its password is needed"),
        (lambda at: (at.ca.parent,), "no certificate with its private key"),
    ],
)
def test_files_that_cannot_be_used(
    certificates: Certificates, files: Callable[[Certificates], tuple[Path, ...]], text: str
) -> None:
    """The error names the file and what is wrong with it; nobody is asked at the terminal."""
    with pytest.raises(SecurityError, match=text):
        tls_server_context(*files(certificates))


def _encrypted(certificates: Certificates) -> Path:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificates.server.read_bytes(), None)
    path = certificates.ca.parent / "encrypted.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    return path


def test_encrypted_keys(certificates: Certificates) -> None:
    """The right password opens it, a wrong one is an error."""
    key = _encrypted(certificates)
    tls_server_context(certificates.server, key, password="open sesame")
    with pytest.raises(SecurityError, match="cannot be read with this password"):
        tls_server_context(certificates.server, key, password="wrong")


def test_authorities_that_cannot_be_used(certificates: Certificates, tmp_path: Path) -> None:
    """For either side."""
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(SecurityError, match=r"empty.pem: no CA certificates"):
        tls_client_context(tmp_path / "empty.pem")
    with pytest.raises(SecurityError, match="cannot read"):
        tls_server_context(certificates.server, ca=tmp_path / "none.pem")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_call_that_takes_long_is_waited_for(certificates: Certificates) -> None:
    """Heartbeats work under TLS as without: the daemon is asked now and then whether it is still there."""
    settings = certificates.settings(heartbeat_s=0.1)
    service = Service()
    with serving(blocking.Daemon(settings=settings)) as daemon:
        uri = daemon.register(service, "service")
        with blocking.Proxy(uri, settings=settings) as proxy:
            timer = threading.Timer(0.5, service.release.set)
            timer.start()
            assert proxy.wait("done") == "done"
            timer.join()
