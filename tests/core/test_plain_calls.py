"""The short way of a plain call: the same bytes, values, errors and certainty as the long way, whatever happens."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from doubles import until
from facade_doubles import Service, serving
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from own_doubles import CODEC, OWN, OwnServer, own_server, result

from pyroxfer_core import BatchProxy as TrioBatchProxy
from pyroxfer_core import Proxy as TrioProxy
from pyroxfer_core import Settings, expose
from pyroxfer_core.blocking import BatchProxy, Daemon, Proxy, SerializedBlob, current_context
from pyroxfer_core.blocking.waiting import Waiter
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    SerializeError,
    TimeoutError,
)
from pyroxfer_core.wire import Decoder
from pyroxfer_core.wire.message import Flags, Message, MessageType
from pyroxfer_core.wire.plain import HEAD_SIZE, plain_calls
from pyroxfer_core.wire.session import heartbeat

MOST_CALLS = 10_000
SERIALIZERS = ("serpent", "marshal", "json", "msgpack")
serializers = st.sampled_from(SERIALIZERS)
numbers = st.integers(0, 0xFFFF)
bodies = st.binary(max_size=40)


kinds = st.sampled_from([0, Flags.BATCH])


@given(serializers, kinds, numbers, bodies)
def test_a_plain_request_is_written_as_any(serializer: str, flags: int, seq: int, body: bytes) -> None:
    message = Message(MessageType.INVOKE, seq, serializer, flags, body)
    assert plain_calls(serializer, flags).request(seq, body) == CODEC.encode(message)


def test_a_serializer_that_the_protocol_does_not_have_has_no_plain_calls() -> None:
    with pytest.raises(ProtocolError):
        plain_calls("pickle")


answers = st.builds(
    Message,
    st.sampled_from([MessageType.RESULT, MessageType.RESULT, MessageType.INVOKE, MessageType.GOAWAY]),
    numbers,
    serializers,
    st.sampled_from([0, 0, Flags.BATCH, Flags.BATCH, Flags.EXCEPTION, Flags.COMPRESSED, Flags.ITEMSTREAM]),
    bodies,
    st.sampled_from([{}, {}, {"ABCD": b"x"}]),
    st.sampled_from([None, None, bytes(16), b"c" * 16]),
)


@given(answers, serializers, kinds, st.booleans(), st.binary(max_size=3), st.integers(0, 60))
def test_an_answer_is_recognised_exactly_if_the_decoder_finds_it_and_nothing_else(
    answer: Message, serializer: str, flags: int, same: bool, tail: bytes, missing: int
) -> None:
    """Alone, with something behind it, and cut short."""
    whole = CODEC.encode(answer)
    data = (whole + tail)[: len(whole) + len(tail) - missing] if missing < len(whole) else whole
    seq, serializer = (answer.seq, answer.serializer) if same else (answer.seq ^ 1, serializer)
    decoder = Decoder(CODEC)
    decoder.feed(data)
    event = decoder.next_event()
    plain = Message(MessageType.RESULT, seq, serializer, flags, answer.body)
    assert plain_calls(serializer, flags).is_answer(bytearray(data) + bytes(9), len(data), seq) == (
        event == plain and not decoder.buffered
    )


@given(st.integers(0, HEAD_SIZE * 8 - 1), serializers)
def test_no_other_header_is_taken_for_that_of_a_plain_answer(bit: int, serializer: str) -> None:
    data = bytearray(CODEC.encode(Message(MessageType.RESULT, 7, serializer, 0, b"body")))
    assert plain_calls(serializer).is_answer(data, len(data), 7)
    data[bit // 8] ^= 1 << bit % 8
    assert not plain_calls(serializer).is_answer(data, len(data), 7)


@given(
    st.lists(answers, max_size=5), serializers, kinds, st.binary(max_size=3), st.integers(0, 60), st.integers(10, 50)
)
def test_the_plain_answers_in_a_row_are_those_that_the_decoder_finds(
    row: list[Message], serializer: str, flags: int, tail: bytes, missing: int, longest: int
) -> None:
    """Up to the first one that is more, or not all there, or too long; the rest is left as it is."""
    data = b"".join(map(CODEC.encode, row)) + tail
    data = data[: len(data) - missing] if missing < len(data) else data
    calls, quick, usual = plain_calls(serializer, flags), Decoder(CODEC), Decoder(CODEC)
    quick.max_message = usual.max_message = longest
    quick.feed(data)
    usual.feed(data)
    found = quick.take_plain(calls)
    for seq, body in found:
        assert usual.next_event() == Message(MessageType.RESULT, seq, serializer, flags, body)
    assert quick.buffered == usual.buffered
    try:
        event = usual.next_event()
    except PyroError:  # too long, or the tail
        return
    if type(event) is Message:
        encoded = CODEC.encode(event)
        assert not calls.is_answer(encoded, len(encoded), event.seq)


def test_nothing_is_taken_for_an_answer_inside_of_a_message_that_is_not_complete() -> None:
    answer = CODEC.encode(Message(MessageType.RESULT, 7, "msgpack", 0, b"\x01"))
    large = CODEC.encode(Message(MessageType.RESULT, 6, "msgpack", 0, answer * 5_000))
    decoder = Decoder(CODEC)
    decoder.feed(large[: CODEC.header_size])
    assert decoder.next_event() is None
    decoder.feed(answer)
    assert decoder.take_plain(plain_calls("msgpack")) == []


@expose
class Told(Service):
    def info(self, blob: SerializedBlob) -> str:
        return str(blob.info)

    def noted(self) -> list[str]:
        return list(current_context.annotations)

    def total(self, numbers: Iterator[int]) -> int:
        return sum(numbers)


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with serving(Daemon()) as daemon:
        yield str(daemon.register(Told(), "service"))


@pytest.fixture(scope="module")
def proxies(uri: str) -> Iterator[dict[tuple[int, str | None], Proxy]]:
    """One for each protocol and serializer, connected already."""
    kinds = [(version, name) for version in (502, 48) for name in (*SERIALIZERS, None)]
    made = {kind: Proxy(uri, settings=Settings(protocol=kind[0], serializer=kind[1])) for kind in kinds}
    for proxy in made.values():
        assert proxy.echo(1) == 1
    yield made
    for proxy in made.values():
        proxy._pyroRelease()


def what_comes_of(call: Callable[[], Any]) -> tuple[object, ...]:
    try:
        value = call()
    except Exception as error:
        return type(error), str(error), getattr(error, "outcome", None)
    return type(value), repr(value)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8))
values = st.recursive(
    st.one_of(scalars, st.dates(), st.uuids(), st.decimals(allow_nan=False), st.builds(object)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@limits(max_examples=60)
@given(values, st.sampled_from([502, 48]), st.sampled_from([*SERIALIZERS, None]))
@example(bytes(70_000), 502, "msgpack")
@example("x" * 70_000, 502, "marshal")
def test_a_call_gives_the_same_as_one_with_options(
    proxies: dict[tuple[int, str | None], Proxy], value: object, version: int, serializer: str | None
) -> None:
    """Values and errors of plain arguments and of others: an option, here for a stream, takes the long way."""
    proxy = proxies[version, serializer]
    long_way = proxy.echo.options(read_ahead=2)
    assert what_comes_of(lambda: proxy.echo(value)) == what_comes_of(lambda: long_way(value))
    assert what_comes_of(lambda: proxy.echo(value=value)) == what_comes_of(lambda: long_way(value=value))


@pytest.mark.parametrize("serializer", [*SERIALIZERS, None])
async def test_a_call_of_the_trio_proxy_gives_the_same_as_one_with_options(uri: str, serializer: str | None) -> None:
    values = [None, 1, 2**70, "text", b"bytes", bytearray(b"more"), [1, (2,)], {"key": {3}}, object(), bytes(70_000)]
    async with TrioProxy(uri, settings=Settings(serializer=serializer)) as proxy:
        assert await proxy.echo(0) == 0
        long_way = proxy.echo.options(read_ahead=2)
        for value in values:
            outcomes = []
            for member in (proxy.echo, long_way):
                for arguments in ({}, {"value": value}):
                    try:
                        answer = await member(*(() if arguments else (value,)), **arguments)
                        outcomes.append((type(answer), repr(answer)))
                    except PyroError as error:
                        outcomes.append((type(error), str(error)))
            assert len(set(outcomes)) == 1
        assert [number async for number in proxy.count(2)] == [0, 1]
        with pytest.raises(ValueError, match="so"):
            await proxy.fail("so")
        assert await proxy.info(SerializedBlob("told", [1])) == "told"


@pytest.mark.parametrize("serializer", [*SERIALIZERS, None])
def test_what_a_plain_call_has_no_place_for_travels_all_the_same(uri: str, serializer: str | None) -> None:
    """Annotations of the thread, a blob, a compressed body, a deadline; answers that are streams and errors."""
    with Proxy(uri, settings=Settings(serializer=serializer)) as proxy:
        assert proxy.echo(0) == 0
        assert proxy.info(SerializedBlob("told", [1])) == "told"
        assert list(proxy.count(2)) == [0, 1]
        with pytest.raises(ValueError, match="so"):
            proxy.fail("so")
        proxy._pyroTimeout = 10
        assert proxy.echo(1) == 1
        proxy._pyroTimeout = 0
        current_context.annotations = {"NOTE": b"x"}
        try:
            assert proxy.noted() == ["NOTE"]
        finally:
            current_context.annotations = {}
    with Proxy(uri, settings=Settings(serializer=serializer, compression=True)) as proxy:
        assert [proxy.echo("x" * 2000) for _ in range(2)] == ["x" * 2000] * 2


def results(batch: BatchProxy) -> Iterator[Any]:
    answer = batch()
    assert isinstance(answer, Iterator)
    return answer


@pytest.mark.parametrize("serializer", [*SERIALIZERS, None])
def test_batches_one_after_the_other_give_the_same(uri: str, serializer: str | None) -> None:
    """The first one of a connection takes the long way; plain values and others, errors, and nothing."""
    with Proxy(uri, settings=Settings(serializer=serializer)) as proxy:
        batch = BatchProxy(proxy)
        echo = batch.echo
        for _ in range(2):
            for value in (1, "text", [2, 3], None):
                echo(value)
                batch.echo(value=value)
            assert list(results(batch)) == [1, 1, "text", "text", [2, 3], [2, 3], None, None]
            echo("x" * 70_000)
            assert list(results(batch)) == ["x" * 70_000]
            assert list(results(batch)) == []
            if serializer != "marshal":  # it has no place for an error among results
                echo(1)
                batch.fail("so")
                echo(2)
                until_failure = results(batch)
                assert next(until_failure) == 1
                with pytest.raises(ValueError, match="so"):
                    next(until_failure)
            echo("nobody waits")
            assert batch(oneway=True) is None
            echo(3)
            assert list(results(copy.copy(batch))) == list(results(batch)) == [3]


async def test_what_was_taken_from_a_batch_notes_for_the_next_one_too(uri: str) -> None:
    async with TrioProxy(uri) as proxy:
        batch = TrioBatchProxy(proxy)
        echo = batch.echo
        for number in range(3):
            echo(number)
            batch.echo(number)
            assert await batch() == [number] * 2


def test_an_iterator_may_be_the_argument_of_any_call(uri: str) -> None:
    with Proxy(uri, settings=Settings()) as proxy:
        assert [proxy.total(iter([1, 2])) for _ in range(2)] == [3, 3]


def test_an_argument_that_cannot_travel_is_known_not_to_have_been_sent(uri: str) -> None:
    with Proxy(uri, settings=Settings(serializer="json")) as proxy:
        proxy.echo(0)
        with pytest.raises(SerializeError) as caught:
            proxy.echo({1, "set"}, more={(): object()})
        assert caught.value.outcome is Outcome.NOT_SENT
        assert proxy.echo(1) == 1


Say = Callable[[OwnServer, Message], Awaitable[None]]


async def in_two_halves(server: OwnServer, request: Message) -> None:
    data = CODEC.encode(result(request.seq, OWN.dumps("answer")))
    await server.stream.send_all(data[:20])
    await trio.sleep(0.01)
    await server.stream.send_all(data[20:])


async def behind_another_message(server: OwnServer, request: Message) -> None:
    await server.say(heartbeat(), result(request.seq, OWN.dumps("answer")))


async def before_another_message(server: OwnServer, request: Message) -> None:
    await server.say(result(request.seq, OWN.dumps("answer")), heartbeat())


async def with_an_annotation(server: OwnServer, request: Message) -> None:
    answer = result(request.seq, OWN.dumps("answer"))
    answer.annotations["NOTE"] = b"x"
    await server.say(answer)


async def with_a_correlation_id(server: OwnServer, request: Message) -> None:
    answer = result(request.seq, OWN.dumps("answer"))
    answer.correlation_id = bytes(16)
    await server.say(answer)


async def large(server: OwnServer, request: Message) -> None:
    await server.answer(request, "answer" * 50_000)


async def echoed(proxy: Proxy, **options: Any) -> object:
    return await trio.to_thread.run_sync(lambda: (proxy.echo.options(**options) if options else proxy.echo)(1))


Echo = Callable[..., Awaitable[object]]


@asynccontextmanager
async def blocking_echo(uri: str) -> AsyncIterator[Echo]:
    with Proxy(uri, settings=Settings()) as proxy:
        yield partial(echoed, proxy)


@asynccontextmanager
async def trio_echo(uri: str) -> AsyncIterator[Echo]:
    async with TrioProxy(uri) as proxy:

        async def echo(**options: Any) -> object:
            return await (proxy.echo.options(**options) if options else proxy.echo)(1)

        yield echo


both_proxies = pytest.mark.parametrize("echo_at", [blocking_echo, trio_echo])
EchoAt = Callable[[str], AbstractAsyncContextManager[Echo]]


async def play(say: Say, server: OwnServer) -> None:
    while (request := await server.hear()) is not None:
        if request.type == MessageType.INVOKE:
            await say(server, request)


@both_proxies
@pytest.mark.parametrize(
    "say", [in_two_halves, behind_another_message, before_another_message, with_an_annotation, with_a_correlation_id]
)
async def test_an_answer_may_come_in_any_way(say: Say, echo_at: EchoAt) -> None:
    """And the next call has its own."""
    async with own_server(partial(play, say), {"echo"}) as uri, echo_at(uri) as echo:
        assert [await echo() for _ in range(3)] == ["answer"] * 3


@both_proxies
async def test_an_answer_may_be_longer_than_what_is_received_at_once(echo_at: EchoAt) -> None:
    async with own_server(partial(play, large), {"echo"}) as uri, echo_at(uri) as echo:
        assert [await echo() for _ in range(3)] == ["answer" * 50_000] * 3


async def with_another_number(server: OwnServer, request: Message) -> None:
    await server.answer(Message(MessageType.INVOKE, request.seq + 1, "msgpack", 0, b""), "answer")


async def in_another_serializer(server: OwnServer, request: Message) -> None:
    await server.say(Message(MessageType.RESULT, request.seq, "json", 0, b"1"))


async def not_at_all(server: OwnServer, request: Message) -> None:
    await server.stream.aclose()


async def unreadable(server: OwnServer, request: Message) -> None:
    await server.say(result(request.seq, b"\xc1"))


@both_proxies
@pytest.mark.parametrize(
    ("say", "error", "outcome"),
    [
        (with_another_number, ProtocolError, Outcome.UNKNOWN),
        (in_another_serializer, SerializeError, Outcome.EXECUTED),
        (not_at_all, ConnectionClosedError, Outcome.UNKNOWN),
        (unreadable, SerializeError, Outcome.EXECUTED),
    ],
)
async def test_a_wrong_answer_is_an_error_that_says_what_is_certain(
    say: Say, error: type[CommunicationError], outcome: Outcome, echo_at: EchoAt
) -> None:
    """As one with options has it; both are made after one that was right."""
    for options in ({}, {"read_ahead": 2}):
        said = [partial(OwnServer.answer, value=1), say]

        async def in_turn(server: OwnServer, request: Message, said: list[Any] = said) -> None:
            await said.pop(0)(server, request)

        async with own_server(partial(play, in_turn), {"echo"}) as uri, echo_at(uri) as echo:
            assert await echo() == 1
            with pytest.raises(error) as caught:
                await echo(**options)
            assert caught.value.outcome is outcome


@both_proxies
async def test_an_answer_is_not_looked_for_inside_of_another_one(echo_at: EchoAt) -> None:
    """The rest of what was given up comes first, whatever it looks like; it is as long as an answer of its own."""
    given_up: list[Message] = []

    async def answer(server: OwnServer, request: Message) -> None:
        inside = CODEC.encode(result(request.seq, OWN.dumps("inside")))
        if given_up:
            await server.stream.send_all(inside)
            await trio.sleep(0.01)
            await server.answer(request, "answer")
        elif request.seq == 2:
            given_up.append(request)
            whole = CODEC.encode(result(request.seq, OWN.dumps(inside)))
            await server.stream.send_all(whole[: -len(inside)])
        else:
            await server.answer(request, "answer")

    async with own_server(partial(play, answer), {"echo"}) as uri, echo_at(uri) as echo:
        assert await echo() == "answer"
        with pytest.raises(TimeoutError):
            await echo(deadline=0.05)
        assert await echo() == "answer"


async def test_the_last_answer_after_a_goodbye_ends_the_connection() -> None:
    """Also when another thread has read the goodbye, between the steps of this call."""
    may_answer = trio.Event()

    async def answer(server: OwnServer, request: Message) -> None:
        if request.seq > 1:
            await server.say(Message(MessageType.GOAWAY, 0, "ping", 0, b""))
            await may_answer.wait()
        await server.answer(request, "answer")

    async with own_server(partial(play, answer), {"echo"}) as uri:
        with Proxy(uri, settings=Settings()) as proxy:
            assert await echoed(proxy) == "answer"
            link = proxy._pyroLink
            assert link is not None
            waiter, calls = Waiter(), plain_calls("msgpack")
            seq = link.sending.post_plain(waiter, calls, bytes(OWN.dumps_call("thing", "echo", [1], {})))
            assert seq is not None
            await trio.to_thread.run_sync(link.reading.poll.poll, 10_000)
            link.reading.look()
            may_answer.set()
            assert await trio.to_thread.run_sync(link.reading.wait_plain, waiter, calls, seq) == OWN.dumps("answer")
            assert link.closed


@pytest.mark.parametrize("cancelled", [False, True])
async def test_calls_that_begin_while_one_is_alone_are_read_with_it(cancelled: bool) -> None:
    """In whatever order they are answered, and also when the first one is cancelled."""
    waiting: list[Message] = []
    results: dict[str, object] = {}

    async def answer(server: OwnServer, request: Message) -> None:
        if request.seq == 1:
            await server.answer(request, "first")
            return
        waiting.append(request)
        if len(waiting) == 3:
            await server.say(*(result(request.seq, OWN.dumps(request.seq)) for request in reversed(waiting)))

    async def call(name: str, scope: trio.CancelScope) -> None:
        with scope:
            results[name] = await proxy.echo(1)

    async with own_server(partial(play, answer), {"echo"}) as uri, TrioProxy(uri) as proxy:
        assert await proxy.echo(0) == "first"
        async with trio.open_nursery() as nursery:
            alone = trio.CancelScope()
            nursery.start_soon(call, "alone", alone)
            await until(lambda: len(waiting) == 1)
            nursery.start_soon(call, "second", trio.CancelScope())
            await until(lambda: len(waiting) == 2)
            if cancelled:
                alone.cancel()
            nursery.start_soon(call, "third", trio.CancelScope())
        assert results == ({} if cancelled else {"alone": 2}) | {"second": 3, "third": 4}


async def test_answers_that_come_together_are_taken_each_as_it_is() -> None:
    """Those behind one that was given up, or is an error, as well; what comes behind a wrong one is lost with it."""
    waiting: list[Message] = []
    outcomes: dict[int, object] = {}

    async def answer(server: OwnServer, request: Message) -> None:
        if request.seq == 1:
            await server.answer(request, 0)
            return
        waiting.append(request)
        if len(waiting) == 8:
            answers = [result(request.seq, OWN.dumps(request.seq)) for request in waiting]
            answers[2] = result(waiting[2].seq, OWN.dumps_exception(ValueError("no")), Flags.EXCEPTION)
            answers[3].annotations["NOTE"] = b"x"
            answers[4].body = b"\xc1"
            answers[6].serializer = "json"
            await server.say(*answers)

    async def call(number: int, scope: trio.CancelScope) -> None:
        with scope:
            try:
                outcomes[number] = await proxy.echo(number)
            except CommunicationError as error:
                outcomes[number] = type(error), error.outcome
            except ValueError as error:
                outcomes[number] = str(error)

    async with own_server(partial(play, answer), {"echo"}) as uri, TrioProxy(uri) as proxy:
        await proxy.echo(0)
        given_up = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            for seq in range(2, 10):
                scope = given_up if seq == 3 else trio.CancelScope()
                nursery.start_soon(call, seq, scope)
                await until(lambda: len(waiting) == seq - 1)  # noqa: B023  # it is done before the next one
                if seq == 8:
                    given_up.cancel()
        wrong = SerializeError, Outcome.EXECUTED
        assert outcomes == {
            2: 2, 4: "no", 5: 5, 6: wrong, 7: 7, 8: wrong, 9: (SerializeError, Outcome.UNKNOWN),
        }  # fmt: skip


async def test_many_calls_in_flight_are_logged_like_one(caplog: pytest.LogCaptureFixture, uri: str) -> None:
    async with TrioProxy(uri, settings=Settings(log_wire=True)) as proxy:
        await proxy.echo(0)
        with caplog.at_level("DEBUG", "pyroxfer.wire"):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(proxy.echo, number)
        assert sum("RESULT" in record.getMessage() for record in caplog.records) == 20


class Mine(Proxy):
    """A class of somebody's own."""


def test_a_proxy_is_still_what_it_was_once_it_knows_its_methods(uri: str) -> None:
    with Proxy(uri) as proxy, Mine(uri) as mine:
        before = repr(type(proxy)), type(proxy).__doc__
        proxy._pyroBind()
        mine._pyroBind()
        assert (repr(type(proxy)), type(proxy).__doc__) == before
        assert type(mine) is Mine
        assert "echo" not in vars(Proxy) | vars(Mine)
        assert proxy == mine == copy.copy(proxy) == pickle.loads(pickle.dumps(proxy))
        assert [other.echo(1) for other in (proxy, mine)] == [1, 1]
        assert proxy.echo.options(deadline=5)(2) == 2
        proxy._pyroAsync()
        assert proxy.echo(3).value == 3
        assert not any(hasattr(other, "nothing_like_that") for other in (proxy, mine))


def test_dropping_a_proxy_closes_its_connection_at_once() -> None:
    with serving(Daemon()) as daemon:
        proxy = Proxy(daemon.register(Service(), "service"))
        batch = BatchProxy(proxy)
        batch.echo(1)
        assert list(results(batch)) == [1]
        link = proxy._pyroLink
        assert link is not None
        del proxy, batch
        assert link.closed


async def test_no_name_of_a_method_changes_more_than_the_search_for_it() -> None:
    """Whatever a daemon says its object has."""
    names = {"echo", "mro", "options", "not a name", "_hidden", "_pyroRelease", "_pyroOrigin"}
    names |= {"__del__", "__slots__", "__init__", "__class__", "__call__", "__getattribute__", "__set_name__"}
    async with own_server(partial(play, partial(OwnServer.answer, value="answer")), names) as uri:
        proxy = Proxy(uri, settings=Settings())
        assert await echoed(proxy) == "answer"
        assert await trio.to_thread.run_sync(lambda: getattr(proxy, "not a name")()) == "answer"
        assert await trio.to_thread.run_sync(lambda: proxy.mro()) == "answer"
        assert not callable(proxy)
        proxy._pyroRelease()
        assert proxy._pyroLink is None


def interrupt_at(step: int) -> Callable[..., None]:
    """Raise at a step of those after which Python may run a signal handler: a function begins, or one in C ended."""
    left = [step]

    def at(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_return"):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    return at


def test_an_interrupt_at_any_step_of_a_call_spoils_no_other_call(uri: str) -> None:
    """Nothing stays locked, and no answer is taken for that of another call."""
    step, done = 0, False
    with Proxy(uri) as proxy:
        while not done:
            step += 1
            assert proxy.echo("before") == "before"
            try:
                sys.setprofile(interrupt_at(step))
                value = proxy.echo(step)
                sys.setprofile(None)
                assert value == step
                done = True
            except KeyboardInterrupt:
                sys.setprofile(None)
            link = proxy._pyroLink
            assert link is not None
            assert not link.sending.lock.locked()
            assert link.reading.duty.reader is None
            assert [proxy.echo(text) for text in ("after", "later")] == ["after", "later"]
            for _ in range(MOST_CALLS):  # the interrupted call may be answered after others
                assert proxy._pyroLink is not None
                if not proxy._pyroLink.session.pending:
                    break
                assert proxy.echo("last") == "last"
            else:
                raise AssertionError("a call is still waited for")
    assert step > 20, "it was the call that was interrupted"
