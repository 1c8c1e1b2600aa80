"""Tokens and identities: who is let in, how the handlers know, and what a listener on the wire learns."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from certificates import Certificates
from doubles import connect_bytes, fake_server, raw_client
from facade_doubles import serving
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import (
    Daemon,
    Hello,
    Identity,
    Proxy,
    Settings,
    Tokens,
    blocking,
    current_call,
    expose,
    load_token,
    open_side_stream,
    tls_server_context,
)
from pyroxfer_core.errors import AuthenticationError, CommunicationError, Outcome, PyroError, SecurityError
from pyroxfer_core.transport import connection as transport_connection
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Flags, Message, MessageType
from pyroxfer_core.wire.proof import AUTH_KEY, Challenge, Prover, is_denial

ALICE, BOB = "correct-horse-battery", "staple-something-else"
TOKENS = Tokens({"alice": ALICE, "bob": BOB})
GUARDED = Settings(tokens=TOKENS, shutdown_grace_s=0)


@expose
class Demo:
    def __init__(self) -> None:
        self.calls = 0

    async def who(self) -> str:
        self.calls += 1
        return str(current_call.identity)

    async def fail(self) -> None:
        raise ValueError("no")


@asynccontextmanager
async def guarded(settings: Settings = GUARDED) -> AsyncIterator[tuple[str, Demo]]:
    demo = Demo()
    async with Daemon(settings=settings) as daemon:
        yield str(daemon.register(demo, "demo")), demo


async def ask_trio(uri: str, settings: Settings, handshake: Any = "hello") -> str:
    async with Proxy(uri, settings=settings) as proxy:
        proxy._pyroHandshake = handshake
        return str(await proxy.who())


async def ask_blocking(uri: str, settings: Settings, handshake: Any = "hello") -> str:
    def ask() -> str:
        with blocking.Proxy(uri, settings=settings) as proxy:
            proxy._pyroHandshake = handshake
            return str(proxy.who())

    return await trio.to_thread.run_sync(ask)


both_clients = pytest.mark.parametrize("ask", [ask_trio, ask_blocking])
Ask = Callable[..., Any]


@both_clients
@pytest.mark.parametrize("protocol", [48, 502])
async def test_a_token_says_who_is_there(ask: Ask, protocol: int) -> None:
    """Handlers read the name that the token has at the daemon, and that it was a token."""
    async with guarded() as (uri, _):
        assert await ask(uri, Settings(token=ALICE, protocol=protocol)) == "alice (token)"
        assert await ask(uri, Settings(token=BOB, protocol=protocol)) == "bob (token)"


@both_clients
@pytest.mark.parametrize(
    ("token", "text"),
    [("wrong-horse-battery", "the token was not accepted"), (None, "authentication required: show a")],
)
async def test_who_has_none_or_another_is_refused(
    caplog: pytest.LogCaptureFixture, ask: Ask, token: str | None, text: str
) -> None:
    """The client learns what to do, the log says who it was, and nothing has run."""
    async with guarded() as (uri, demo):
        with pytest.raises(AuthenticationError, match=text) as caught:
            await ask(uri, Settings(token=token, protocol=502))
        assert demo.calls == 0
    assert caught.value.outcome is Outcome.NOT_SENT
    assert any("was refused: " + text[:20] in record.getMessage() for record in caplog.records)


async def test_a_token_where_nobody_asks_for_one() -> None:
    """It stays where it is, and calls work."""
    async with guarded(Settings()) as (uri, _):
        assert await ask_trio(uri, Settings(token=ALICE)) == "None"


@asynccontextmanager
async def recorded(uri: str) -> AsyncIterator[tuple[str, list[bytearray]]]:
    """A relay that writes down what clients send, a connection each."""
    place = uri.partition("@")[2]
    said: list[bytearray] = []

    async def relay(client: Any) -> None:
        async with await trio.open_tcp_stream("localhost", int(place.rpartition(":")[2])) as server:
            said.append(heard := bytearray())

            async def back() -> None:
                async for data in server:
                    await client.stream.send_all(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                async for data in client.stream:
                    heard += data
                    await server.send_all(data)
                nursery.cancel_scope.cancel()

    async with fake_server(relay) as location:
        yield uri.replace(place, location), said


async def test_a_listener_learns_nothing_it_can_use() -> None:
    """The token is not on the wire, and what is on the wire does not open another connection."""
    async with guarded() as (uri, demo):
        async with recorded(uri) as (over, said):
            assert await ask_trio(over, Settings(token=ALICE, protocol=502)) == "alice (token)"
        (heard,) = said
        assert ALICE.encode() not in heard
        assert hashlib.sha256(ALICE.encode()).digest() not in heard
        async with raw_client(uri.partition("@")[2]) as client:
            await client.send(bytes(heard))
            answer = await client.until_closed()
        assert demo.calls == 1
    assert b"the token was not accepted" in answer


async def test_a_proof_without_a_challenge_is_none() -> None:
    """Whoever begins with it is told what is wanted, as everybody else."""
    prover, codec = Prover(ALICE), codec_for(502)
    assert prover.is_challenge(_challenge_for(prover))
    hello = Message(MessageType.CONNECT, 0, "serpent", 0, b"{'handshake':'hello','object':'demo'}")
    hello.annotations = {AUTH_KEY: prover.annotation()}
    async with guarded() as (uri, _), raw_client(uri.partition("@")[2]) as client:
        await client.send(codec.encode(hello))
        assert b"authentication required" in await client.until_closed()


def _challenge_for(prover: Prover) -> bytes:
    challenge = Challenge.asked_for(prover.annotation())
    assert challenge is not None
    return challenge.annotation()


def test_a_client_answers_its_own_challenge_once() -> None:
    """One made for another connection, or a second one, gets no proof out of it."""
    mine, other = Prover(ALICE), Prover(ALICE)
    assert not mine.is_challenge(_challenge_for(other))
    assert mine.is_challenge(first := _challenge_for(mine))
    assert not mine.is_challenge(first)


@given(st.binary(max_size=60))
def test_rubbish_proves_nothing(data: bytes) -> None:
    """Any bytes in the annotation are read without an error, and let nobody in."""
    challenge = Challenge(secrets.token_bytes(16))
    assert not challenge.is_proof(data, ALICE)
    assert not Prover(ALICE).is_challenge(data)
    Challenge.asked_for(data)
    is_denial(data)


@both_clients
@pytest.mark.parametrize("data", [ALICE, {"token": ALICE}, {"token": ALICE, "more": 1}])
async def test_a_token_as_handshake_data(ask: Ask, data: object) -> None:
    """How stock clients do it, on this machine or over TLS."""
    async with guarded() as (uri, _):
        assert await ask(uri, Settings(), data) == "alice (token)"


@pytest.mark.parametrize("data", ["wrong", "", {"token": 5}, ["correct-horse-battery"], None])
async def test_handshake_data_that_is_no_token(data: object) -> None:
    """Whatever else is there is no token, and no error of another kind."""
    async with guarded() as (uri, _):
        with pytest.raises(AuthenticationError, match="authentication required"):
            await ask_trio(uri, Settings(), data)
    assert TOKENS.owner_of("\ud800") is None


async def test_a_token_as_handshake_data_over_a_plain_network(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another machine it is taken over TLS only: such a set-up must not seem to work."""
    monkeypatch.setattr(transport_connection, "is_local_address", lambda address: False)
    async with guarded() as (uri, _):
        with pytest.raises(AuthenticationError, match="over TLS only"):
            await ask_trio(uri, Settings(), ALICE)
    settings = certificates.settings(tokens=TOKENS)
    async with guarded(settings) as (uri, _):
        assert await ask_trio(uri, settings, ALICE) == "alice (token)"


@both_clients
async def test_a_certificate_says_who_is_there(certificates: Certificates, ask: Ask) -> None:
    """By its common name, else by its alternative name; a certificate or a token is enough."""
    settings = certificates.settings(mutual=True, tokens=TOKENS)
    either = settings.with_changes(
        ssl_server_context=tls_server_context(certificates.server, ca=certificates.ca, require_client=False)
    )
    async with guarded(either) as (uri, _):
        assert await ask(uri, settings) == "alice (mtls)"
        bob = certificates.client_context()
        bob.load_cert_chain(certificates.nameless)
        assert await ask(uri, Settings(ssl_client_context=bob)) == "bob@example.org (mtls)"
        nobody = Settings(ssl_client_context=certificates.client_context())
        assert await ask(uri, nobody.with_changes(token=BOB)) == "bob (token)"
        with pytest.raises(AuthenticationError, match="authentication required"):
            await ask(uri, nobody)


async def test_signatures_say_that_the_key_is_known() -> None:
    """Protocol 48's key has no names."""
    async with guarded(Settings(hmac_key=b"key")) as (uri, _):
        assert await ask_trio(uri, Settings(hmac_key=b"key")) == "hmac (hmac)"


async def test_the_key_cannot_be_gone_round(certificates: Certificates) -> None:
    """Protocol 502 has no signatures: it needs another proof. TLS alone says nothing about the client."""
    keyed = Settings(hmac_key=b"key", ssl_server_context=certificates.server_context())
    client = Settings(ssl_client_context=certificates.client_context(), protocol=502)
    async with guarded(keyed) as (uri, demo):
        with pytest.raises(CommunicationError, match="wants signed messages"):
            await ask_trio(uri, client)
        assert demo.calls == 0
    async with guarded(keyed.with_changes(tokens=TOKENS)) as (uri, _):
        assert await ask_trio(uri, client.with_changes(token=ALICE)) == "alice (token)"


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, False), ({"tokens": TOKENS}, True), ({"tls": True}, True)],
)
async def test_side_streams_where_calls_are_signed(
    certificates: Certificates, settings: dict[str, Any], passes: bool
) -> None:
    """Refused, unless under TLS or clients have tokens: their grants come from calls that were proven."""
    tls = certificates.server_context() if settings.pop("tls", False) else None
    daemon_settings = Settings(hmac_key=b"key", ssl_server_context=tls, **settings)

    async def take(stream: Any) -> None:
        await stream.send_all(b"taken")

    async with Daemon(settings=daemon_settings) as daemon:
        daemon.side_stream_handler = take
        client = Settings(ssl_client_context=certificates.client_context() if tls else None)
        async with await open_side_stream(daemon.location, b"", settings=client) as stream:
            try:
                assert await stream.receive_some() == (b"taken" if passes else b"")
            except CommunicationError:
                assert not passes


@both_clients
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_authenticator_of_the_program(ask: Ask, kind: str) -> None:
    """It sees what the client said and where it comes from; without an identity, or by an error, it refuses."""
    seen: list[str] = []

    def decide(hello: Hello) -> Identity | None:
        seen.append(hello.address.partition(":")[0])
        if hello.handshake == "raise":
            raise PyroError("not on Sundays")
        return Identity("carol", "ldap") if hello.handshake == "carol" else None

    async def decide_async(hello: Hello) -> Identity | None:
        return decide(hello)

    settings = Settings(authenticator=decide if kind == "sync" else decide_async)
    async with guarded(settings) as (uri, _):
        assert await ask(uri, Settings(), "carol") == "carol (ldap)"
        with pytest.raises(AuthenticationError, match="authentication required"):
            await ask(uri, Settings(), "mallory")
        with pytest.raises(CommunicationError, match="not on Sundays"):
            await ask(uri, Settings(), "raise")
    assert set(seen) == {"127.0.0.1"}


def test_the_facade_knows_the_caller() -> None:
    """In the validation hook and in methods."""
    seen: list[object] = []

    class Guarded(blocking.Daemon):
        def validateHandshake(self, conn: Any, data: object) -> object:
            seen.append(conn.identity)
            return "hello"

    @blocking.expose
    class Service:
        def who(self) -> str:
            return str(blocking.current_context.identity)

    with serving(Guarded(settings=GUARDED)) as daemon:
        with blocking.Proxy(daemon.register(Service()), settings=Settings(token=ALICE)) as proxy:
            assert proxy.who() == "alice (token)"
    assert seen == [Identity("alice", "token")]
    assert blocking.current_context.identity is None


@pytest.mark.parametrize(
    ("daemon", "client", "shown"),
    [
        (Settings(), Settings(), False),
        (GUARDED, Settings(token=ALICE), True),
        (GUARDED.with_changes(remote_tracebacks=False), Settings(token=ALICE), False),
        (Settings(remote_tracebacks=True), Settings(), True),
    ],
)
async def test_tracebacks_go_to_callers_that_are_known(
    monkeypatch: pytest.MonkeyPatch, daemon: Settings, client: Settings, shown: bool
) -> None:
    """From another machine nobody sees local paths unless it is known who asks, or the settings say so."""
    monkeypatch.setattr(transport_connection, "is_local_address", lambda address: False)
    async with guarded(daemon) as (uri, _), Proxy(uri, settings=client) as proxy:
        with pytest.raises(ValueError, match="no") as caught:
            await proxy.fail()
    assert ("test_access.py" in "".join(getattr(caught.value, "_pyroTraceback", []))) is shown


async def test_a_stock_client_that_hands_on_our_annotation_is_refused_and_nothing_more() -> None:
    """It takes the challenge for what it is to it: a refusal."""
    hello = Message(MessageType.CONNECT, 7, "serpent", Flags.META_ON_CONNECT, b"{'handshake':'x','object':'demo'}")
    hello.annotations = {AUTH_KEY: Prover(ALICE).annotation()}
    async with guarded() as (uri, _), raw_client(uri.partition("@")[2]) as client:
        await client.send(codec_for(48).encode(hello))
        (answer,) = await client.messages(48, 1)
        assert (answer.type, answer.seq) == (MessageType.CONNECTFAIL, 7)
        await client.send(connect_bytes(48, "demo"))  # it does not, but somebody may
        assert b"not accepted" in await client.until_closed()


def test_a_file_of_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name and a token a line; one file serves both ends, and is read again on demand."""
    path = tmp_path / "tokens"
    path.write_text(f"# who may come in\n\nalice {ALICE}\nbob\t{BOB}\n")
    path.chmod(0o600)
    tokens = Tokens.load(path)
    assert dict(tokens) == {"alice": ALICE, "bob": BOB}
    assert load_token(path) == ALICE
    assert "others can read" not in caplog.text
    path.write_text(f"{BOB}\n")
    path.chmod(0o644)
    tokens.reload()
    assert dict(tokens) == {"token": BOB}
    assert "others can read the tokens in" in caplog.text
    path.write_text("short\n")
    with pytest.raises(SecurityError, match="line 1: a token has 16 to 1024 characters"):
        tokens.reload()
    assert dict(tokens) == {"token": BOB}
    assert ALICE not in repr(Tokens({"alice": ALICE}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no token in it"),
        ("# nothing\n", "there is no token in it"),
        (f"alice {ALICE} more\n", "line 1 has more than a name and a token"),
        (f"alice {ALICE}\nalice {BOB}\n", "line 2 has a name that was there before"),
        (f"alice {ALICE}\nbob {ALICE}\n", "two names have the same token"),
        ("alice pässwörd-und-noch-mehr\n", "line 1: a token has printable ASCII characters"),
        ("\xff\xfe".encode("latin-1"), "not a text file in UTF-8"),
        (bytes(1024 * 1024 + 1), "larger than"),
    ],
)
def test_files_of_tokens_that_cannot_be_used(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """The line is named, its text is not: it may be a secret."""
    path = tmp_path / "tokens"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SecurityError, match=problem) as caught:
        Tokens.load(path)
    assert ALICE not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """For either end."""
    for read in (Tokens.load, load_token):
        with pytest.raises(SecurityError, match=r"cannot read .*none: No such file"):
            read(tmp_path / "none")


def test_secrets_are_not_printed() -> None:
    """Settings end up in logs."""
    settings = Settings(token=ALICE, tokens=TOKENS, hmac_key=b"staple")
    for secret in (ALICE, BOB, "staple"):
        assert secret not in repr(settings)
    with pytest.raises(SecurityError, match="16 to 1024"):
        Settings(token="short")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
