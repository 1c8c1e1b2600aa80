"""Servers that break the rules, against our proxy: only our errors, with the right outcome, and never a hang."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from doubles import RawClient, connectok_bytes, fake_server, result_bytes

from pyroxfer_core import Proxy, Settings, blocking
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    PyroError,
    RemoteError,
    SerializeError,
    TimeoutError,
)
from pyroxfer_core.wire import codec_for, features
from pyroxfer_core.wire.features import FEATURES_KEY, Feature, Grant
from pyroxfer_core.wire.message import Flags, Message, MessageType

SETTINGS = Settings(protocol=502, connect_timeout_s=5, max_message_bytes=1_000_000)
WELCOME = connectok_bytes("{'echo'}")


def play(*answers: bytes, then: Callable[[RawClient], Any] | None = None) -> Callable[[RawClient], Any]:
    """Answers each message with the next bytes, then closes."""

    async def run(client: RawClient) -> None:
        for answer in answers:
            if not await client.messages(502, 1):
                return
            await client.send(answer)
        if then is not None:
            await then(client)

    return run


async def silent(client: RawClient) -> None:
    await trio.sleep_forever()


def raw(kind: int, body: bytes = b"", seq: int = 0, serializer: str = "serpent", **rest: Any) -> bytes:
    return codec_for(502).encode(Message(kind, seq, serializer, rest.pop("flags", 0), body, **rest))


def serpent(text: str) -> bytes:
    return f"# serpent utf-8 python3.2\n{text}".encode()


RUBBISH_GREETINGS = {
    "nothing": b"",
    "one byte": b"P",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100,
    "zeros": bytes(1000),
    "half a header": WELCOME[:20],
    "half a body": WELCOME[:-3],
    "result": result_bytes("1", seq=0),
    "ping": raw(MessageType.PING),
    "goaway": raw(MessageType.GOAWAY),
    "unknown type": raw(77),
    "oversize": raw(MessageType.CONNECTOK)[:12] + b"\x7f\xff\xff\xff" + raw(MessageType.CONNECTOK)[16:],
    "not a dict": raw(MessageType.CONNECTOK, serpent("[1]")),
    "no meta": raw(MessageType.CONNECTOK, serpent("{'handshake':1}")),
    "meta is text": raw(MessageType.CONNECTOK, serpent("{'handshake':1,'meta':'x'}")),
    "names are numbers": raw(MessageType.CONNECTOK, serpent("{'handshake':1,'meta':{'methods':(1,2)}}")),
    "unreadable": raw(MessageType.CONNECTOK, b"\xff\xfe"),
    "unknown serializer": raw(MessageType.CONNECTOK, b"x", serializer="unknown-77"),
    "not zlib": raw(MessageType.CONNECTOK, b"x", flags=Flags.COMPRESSED),
    "a class": raw(MessageType.CONNECTOK, serpent("{'handshake':{'__class__':'os.system'},'meta':{}}")),
    "fail with rubbish": raw(MessageType.CONNECTFAIL, b"\xff"),
    "fail with a dict": raw(MessageType.CONNECTFAIL, serpent("{'a':1}")),
    "fail with a class": raw(MessageType.CONNECTFAIL, serpent("{'__class__':'a.__b__'}")),
}


@pytest.mark.parametrize("greeting", RUBBISH_GREETINGS.values(), ids=RUBBISH_GREETINGS.keys())
async def test_rubbish_instead_of_a_greeting(greeting: bytes) -> None:
    async with fake_server(play(greeting)) as location, Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
        with pytest.raises(PyroError) as caught:
            await proxy.echo(1)
        if isinstance(caught.value, CommunicationError):
            assert caught.value.outcome is Outcome.NOT_SENT
        assert proxy._pyroLink is None


@pytest.mark.parametrize("greeting", RUBBISH_GREETINGS.values(), ids=RUBBISH_GREETINGS.keys())
async def test_rubbish_and_then_silence(greeting: bytes) -> None:
    """Never longer than the time allowed for connecting, whichever protocols are tried."""
    settings = Settings(connect_timeout_s=0.1)
    server = play(greeting, then=silent)
    async with fake_server(server) as location, Proxy(f"PYRO:x@{location}", settings=settings) as proxy:
        with pytest.raises(PyroError) as caught:
            await proxy.echo(1)
        if isinstance(caught.value, CommunicationError):
            assert caught.value.outcome is Outcome.NOT_SENT


STOP = serpent("{'__class__':'builtins.StopIteration','__exception__':True,'args':(7,),'attributes':{}}")
SYSTEM = serpent("{'__class__':'builtins.SystemExit','__exception__':True,'args':(7,),'attributes':{}}")
NOT_SENT = serpent(
    "{'__class__':'Pyro5.errors.CommunicationError','__exception__':True,'args':('x',),"
    "'attributes':{'outcome':'NotSent'}}"
)

RUBBISH_ANSWERS: dict[str, tuple[bytes, Outcome | None]] = {
    "nothing": (b"", Outcome.UNKNOWN),
    "half a header": (result_bytes("1")[:20], Outcome.UNKNOWN),
    "half a body": (result_bytes("1")[:-1], Outcome.UNKNOWN),
    "wrong number": (result_bytes("1", seq=2), Outcome.UNKNOWN),
    "another greeting": (WELCOME, Outcome.UNKNOWN),
    "a request": (raw(MessageType.INVOKE, b"x", 1), Outcome.UNKNOWN),
    "goaway not agreed on": (raw(MessageType.GOAWAY), Outcome.UNKNOWN),
    "cancel": (raw(MessageType.CANCEL, b"", 1), Outcome.UNKNOWN),
    "unknown type": (raw(200, b"", 1), Outcome.UNKNOWN),
    "other protocol": (result_bytes("1", version=48), Outcome.UNKNOWN),
    "zeros": (bytes(100), Outcome.UNKNOWN),
    "oversize": (raw(MessageType.RESULT, b"", 1)[:12] + b"\xff" * 4 + raw(MessageType.RESULT)[16:], Outcome.UNKNOWN),
    "other serializer": (raw(MessageType.RESULT, b"1", 1, "json"), Outcome.EXECUTED),
    "unknown serializer": (raw(MessageType.RESULT, b"1", 1, "unknown-99"), Outcome.EXECUTED),
    "unreadable": (raw(MessageType.RESULT, b"\xff", 1), Outcome.EXECUTED),
    "a forbidden class": (raw(MessageType.RESULT, serpent("{'__class__':'a.__b__'}"), 1), Outcome.EXECUTED),
    "not zlib": (raw(MessageType.RESULT, b"x", 1, flags=Flags.COMPRESSED), Outcome.EXECUTED),
    "an exception that is none": (raw(MessageType.RESULT, serpent("5"), 1, flags=Flags.EXCEPTION), Outcome.EXECUTED),
    "a stream without a name": (raw(MessageType.RESULT, serpent("5"), 1, flags=Flags.ITEMSTREAM), Outcome.EXECUTED),
    "not sent, in a body": (raw(MessageType.RESULT, NOT_SENT, 1, flags=Flags.EXCEPTION), Outcome.EXECUTED),
    "stop iteration": (raw(MessageType.RESULT, STOP, 1, flags=Flags.EXCEPTION), None),
    "system exit": (raw(MessageType.RESULT, SYSTEM, 1, flags=Flags.EXCEPTION), None),
}


@pytest.mark.parametrize(("answer", "outcome"), RUBBISH_ANSWERS.values(), ids=RUBBISH_ANSWERS.keys())
async def test_rubbish_instead_of_an_answer(answer: bytes, outcome: Outcome | None) -> None:
    async with fake_server(play(WELCOME, answer)) as location:
        async with Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
            with pytest.raises(PyroError) as caught:
                await proxy.echo(1)
            if outcome is None:
                assert type(caught.value) is RemoteError
            else:
                assert isinstance(caught.value, CommunicationError)
                assert caught.value.outcome is outcome


@pytest.mark.parametrize("length", [0, 1, 20, len(result_bytes("1")) - 1])
async def test_an_end_within_an_answer_is_a_lost_connection(length: int) -> None:
    def call(uri: str) -> None:
        with blocking.Proxy(uri, settings=SETTINGS) as proxy:
            proxy.echo(1)

    async with fake_server(play(WELCOME, result_bytes("1")[:length])) as location:
        uri = f"PYRO:x@{location}"
        async with Proxy(uri, settings=SETTINGS) as proxy:
            with pytest.raises(ConnectionClosedError) as caught:
                await proxy.echo(1)
            assert caught.value.outcome is Outcome.UNKNOWN
        with pytest.raises(ConnectionClosedError) as caught:
            await trio.to_thread.run_sync(call, uri)
        assert caught.value.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_server_that_never_answers(stage: int) -> None:
    async with fake_server(play(*[WELCOME][:stage], then=silent)) as location:
        async with Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
            with pytest.raises(TimeoutError) as caught:
                await proxy.echo.options(deadline=0.1)(1)
            assert caught.value.outcome is [Outcome.NOT_SENT, Outcome.UNKNOWN][stage]


async def test_an_unknown_member_is_refused_here(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_server(play(WELCOME, then=silent)) as location:
        async with Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
            with pytest.raises(AttributeError):
                await proxy.nothing(1)


async def test_unasked_messages_between_calls_only_cost_the_connection() -> None:
    served = 0

    async def serve(client: RawClient) -> None:
        nonlocal served
        served += 1
        await play(WELCOME, result_bytes("1") + result_bytes("2", seq=9))(client)
        await silent(client)

    async with fake_server(serve) as location, Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
        assert await proxy.echo(1) == 1
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(CommunicationError):
            await proxy.echo.options(deadline=0.2)(1)
        assert served == 2, "the next call went over a fresh connection"


def granting(client_offer: bytes) -> bytes:
    """CONNECTOK that grants everything to the client that sent this CONNECT annotation."""
    offered = features.read_offer(client_offer)
    assert offered is not None
    grant = features.write_grant(Grant(Feature.ALL, b"d" * 16, b"e" * 16), offered[1])
    body = serpent("{'handshake':'hello','meta':{'methods':('echo',),'oneway':(),'attrs':()}}")
    return raw(MessageType.CONNECTOK, body, annotations={FEATURES_KEY: grant})


async def test_a_false_friend_that_answers_one_of_many_in_another_serializer() -> None:
    """Every waiting call ends, the one that was answered as Executed, the others as Unknown."""

    async def serve(client: RawClient) -> None:
        (hello,) = await client.messages(502, 1)
        await client.send(granting(bytes(hello.annotations[FEATURES_KEY])))
        requests = await client.messages(502, 4)
        await client.send(raw(MessageType.RESULT, b"1", requests[2].seq, "json"))
        await silent(client)

    outcomes: list[Outcome | None] = []
    async with fake_server(serve) as location, Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:

        async def call() -> None:
            with pytest.raises(SerializeError) as caught:
                await proxy.echo(1)
            outcomes.append(caught.value.outcome)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)
    assert sorted(map(str, outcomes)) == ["Outcome.EXECUTED"] + ["Outcome.UNKNOWN"] * 3


@pytest.mark.parametrize("letter", [b"N", b"U"])
@pytest.mark.parametrize("nonce", [b"dddd", b"zzzz"])
async def test_outcomes_count_only_with_the_nonce_of_the_connection(letter: bytes, nonce: bytes) -> None:
    error = "{'__class__':'Pyro5.errors.PyroError','__exception__':True,'args':('busy',),'attributes':{}}"

    async def serve(client: RawClient) -> None:
        (hello,) = await client.messages(502, 1)
        await client.send(granting(bytes(hello.annotations[FEATURES_KEY])))
        (request,) = await client.messages(502, 1)
        answer = raw(
            MessageType.RESULT,
            serpent(error),
            request.seq,
            flags=Flags.EXCEPTION,
            annotations={"PXOC": nonce + letter},
        )
        await client.send(answer)

    settings = SETTINGS.with_changes(serializer="serpent")
    async with fake_server(serve) as location, Proxy(f"PYRO:x@{location}", settings=settings) as proxy:
        with pytest.raises(PyroError, match="busy") as caught:
            await proxy.echo(1)
        outcome = getattr(caught.value, "outcome", None)
        expected = Outcome.NOT_SENT if letter == b"N" else Outcome.UNKNOWN
        assert outcome is (expected if nonce == b"dddd" else None)


async def test_mutated_conversations_end_in_our_errors() -> None:
    """A short slice of random damage to a whole conversation; longer ones are run by scripts/fuzz_daemon.py."""
    random_ = random.Random(4711)
    good = result_bytes("[1,2,3]")
    for _ in range(150):
        script = [bytearray(WELCOME), bytearray(good)]
        for _ in range(random_.randint(1, 4)):
            part = random_.choice(script)
            part[random_.randrange(len(part))] = random_.randrange(256)
        async with fake_server(play(*map(bytes, script))) as location:
            async with Proxy(f"PYRO:x@{location}", settings=SETTINGS) as proxy:
                try:
                    await proxy.echo.options(deadline=2)(1)
                except (PyroError, AttributeError):  # a damaged name in the metadata makes the member unknown
                    pass
