"""The blocking proxy: threads on one connection, deadlines, reconnecting, retries, Pyro's members."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from facade_doubles import WITHIN_S, Service, StockServer, plain_answer, serving

from pyroxfer_core import Settings, behavior, expose
from pyroxfer_core.blocking import BatchProxy, Daemon, Proxy, SerializedBlob, current_context
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, Outcome, PyroError, TimeoutError
from pyroxfer_core.transport.busypoll import BusyPoll
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Message, MessageType


def test_calls_of_many_threads_are_in_flight_together(service: Service, proxy: Proxy, daemon: Daemon) -> None:
    """All of them are inside the method at one time, over one connection, and each gets its own answer."""
    labels = [f"thread {number}" for number in range(8)]
    with ThreadPoolExecutor(len(labels)) as threads:
        answers = [threads.submit(proxy.wait, label) for label in labels]
        for _ in labels:
            assert service.entered.acquire(timeout=WITHIN_S)
        assert proxy.echo("while they wait") == "while they wait"
        assert daemon.statistics().connections == 1
        service.release.set()
        assert [answer.result(WITHIN_S) for answer in answers] == labels


def test_a_storm_of_threads_mixes_no_answers_up(proxy: Proxy) -> None:
    """Small and large answers, streams and attributes, in turns of reading that pass from thread to thread."""

    def calls(number: int) -> None:
        for turn in range(40):
            value = [number, turn, "x" * (100_000 if turn % 7 == 0 else 10)]
            assert proxy.echo(value) == value
            assert proxy.level == 7
        assert list(proxy.count(5)) == [0, 1, 2, 3, 4]

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(calls, number) for number in range(8)]:
            done.result(60)


def test_towards_a_stock_peer_threads_take_turns() -> None:
    """No second request before the answer to the first."""
    open_requests: list[int] = []
    most = 0

    def answers(request: Message) -> bytes:
        nonlocal most
        open_requests.append(request.seq)
        most = max(most, len(open_requests))
        time.sleep(0.002)
        open_requests.remove(request.seq)
        return plain_answer(request)

    with StockServer(answers) as server, server.proxy() as proxy, ThreadPoolExecutor(6) as threads:
        results = [threads.submit(proxy.echo, number) for number in range(30)]
        assert {result.result(WITHIN_S) for result in results} == {"answer"}
        assert (most, server.connections) == (1, 1)
        assert sorted(request.seq for request in server.requests) == list(range(1, 31))


def test_a_deadline_ends_a_call_as_unknown_and_leaves_the_connection(service: Service, proxy: Proxy) -> None:
    """The method was entered, so it may have run; the next calls have answers of their own."""
    proxy.echo(0)
    link = proxy._pyroConnection
    proxy._pyroTimeout = 0.1
    with pytest.raises(TimeoutError) as caught:
        proxy.wait("too long")
    assert caught.value.outcome is Outcome.UNKNOWN
    service.release.set()
    proxy._pyroTimeout = 0
    assert [proxy.echo(number) for number in range(3)] == [0, 1, 2]
    assert proxy._pyroConnection is link


def test_a_deadline_holds_while_another_thread_reads(service: Service, proxy: Proxy) -> None:
    """The sleeping thread wakes by itself; the reading one is not disturbed."""
    impatient = copy.copy(proxy)
    proxy.echo(0)
    impatient._pyroLink = proxy._pyroLink
    impatient._pyroTimeout = 0.1
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(proxy.wait, "patient")
        assert service.entered.acquire(timeout=WITHIN_S)
        with pytest.raises(TimeoutError):
            impatient.wait("impatient")
        service.release.set()
        assert patient.result(WITHIN_S) == "patient"
    assert impatient.echo(1) == 1
    impatient._pyroLink = None


def test_a_deadline_towards_a_stock_peer() -> None:
    """The connection is closed, the call is Unknown and never sent again, and the next one connects anew."""

    def answers(request: Message) -> bytes:
        if len(server.requests) == 1:
            time.sleep(0.3)
        return plain_answer(request)

    with StockServer(answers) as server, server.proxy() as proxy:
        proxy._pyroTimeout, proxy._pyroMaxRetries = 0.1, 5
        with pytest.raises(TimeoutError) as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.UNKNOWN
        proxy._pyroTimeout = 5
        assert proxy.echo(2) == "answer"
        assert len(server.requests) == 2


def test_no_setting_repeats_a_call_that_may_have_run() -> None:
    """Pyro repeats it MAX_RETRIES times; one call was seen to run four times."""
    with StockServer(lambda request: b"") as server, server.proxy() as proxy:
        proxy._pyroMaxRetries = 3
        with pytest.raises(ConnectionClosedError) as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.UNKNOWN
        assert len(server.requests) == 1


def test_what_was_not_sent_is_tried_again() -> None:
    """Nobody listens at first: with retries the call gets through once somebody does, and runs once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    service = Service()
    with Proxy(f"PYRO:service@127.0.0.1:{port}") as proxy:
        with pytest.raises(ConnectionClosedError) as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.NOT_SENT
        proxy._pyroMaxRetries = 100
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(lambda: proxy.echo("late"))
            time.sleep(0.1)
            daemon = Daemon("127.0.0.1", port)
            daemon.register(service, "service")
            with serving(daemon):
                assert answer.result(WITHIN_S) == "late"
                proxy._pyroRelease()
    assert service.ran == 1


def test_a_handshake_that_broke_does_not_make_a_place_speak_48_for_ever() -> None:
    """The next proxy tries the newer protocol first, as if nothing had happened."""
    first = threading.Event()

    class Breaking(Daemon):
        def validateHandshake(self, conn: object, data: object) -> str:
            if not first.is_set():
                first.set()
                conn.connection.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]  # a Peer
            return "hello"

    with serving(Breaking()) as daemon:
        uri = daemon.register(Service())
        with Proxy(uri) as proxy:
            assert proxy.echo(1) == 1
        with Proxy(uri) as proxy:
            assert proxy.echo(2) == 2
            assert proxy._pyroConnection is not None
            assert proxy._pyroConnection.version == 502


def test_an_idle_connection_that_was_lost_is_replaced() -> None:
    """The call had not left, so it goes over a fresh one without any retry setting."""

    def answers(request: Message) -> bytes:
        return plain_answer(request)

    with StockServer(answers) as server, server.proxy() as proxy:
        assert proxy.echo(1) == "answer"
        assert proxy._pyroConnection is not None
        proxy._pyroConnection.sock.shutdown(socket.SHUT_RDWR)
        assert proxy.echo(2) == "answer"
        assert server.connections == 2


def test_a_daemon_that_goes_away_is_left(service: Service) -> None:
    """After its goodbye the next call connects to the successor on the same port."""
    with serving(Daemon()) as first:
        port = int(first.location.rpartition(":")[2])
        with Proxy(first.register(service, "service")) as proxy:
            assert proxy.echo(1) == 1
            first.shutdown()
            first.unregister("service")
            deadline = time.monotonic() + WITHIN_S
            while first.listeners and time.monotonic() < deadline:
                time.sleep(0.01)
            with serving(Daemon(port=port)) as second:
                second.register(service, "service")
                assert proxy.echo(2) == 2
                proxy._pyroRelease()


def test_release_ends_calls_of_other_threads(service: Service, proxy: Proxy) -> None:
    """They are Unknown, not left hanging; the proxy can be used again."""
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(proxy.wait, "a"), threads.submit(proxy.wait, "b")]
        for _ in calls:
            assert service.entered.acquire(timeout=WITHIN_S)
        proxy._pyroRelease()
        for call in calls:
            with pytest.raises(ConnectionClosedError) as caught:
                call.result(WITHIN_S)
            assert caught.value.outcome is Outcome.UNKNOWN
        service.release.set()
    assert proxy.echo(1) == 1


def test_a_forked_child_has_a_connection_of_its_own(proxy: Proxy, daemon: Daemon) -> None:
    """Parent and child share no stream: the child connects anew and the parent's goes on."""
    assert proxy.echo("before") == "before"
    link = proxy._pyroConnection
    reading, writing = os.pipe()
    child = os.fork() if threading.active_count() else 0
    if child == 0:
        try:
            os.write(writing, str(proxy.echo("child")).encode() + (b" same" if proxy._pyroLink is link else b""))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"child"
    os.close(reading)
    os.close(writing)
    assert proxy.echo("after") == "after"
    assert proxy._pyroConnection is link


def test_dunder_methods_are_forwarded(proxy: Proxy) -> None:
    """As in Pyro5: length, items, iteration without a remote ``__iter__``; truth is local."""
    assert len(proxy) == 2
    assert proxy[1] == "one"
    proxy[2] = "two"
    assert list(proxy) == ["zero", "one", "two"]
    del proxy[2]
    assert len(proxy) == 2
    assert bool(proxy)


def test_dunder_methods_that_are_not_exposed_are_type_errors(daemon: Daemon) -> None:
    """As for a local object without them."""

    @expose
    class Plain:
        def touch(self) -> None: ...

    with Proxy(daemon.register(Plain())) as plain:
        with pytest.raises(TypeError):
            len(plain)
        with pytest.raises(TypeError):
            plain[0]
        assert bool(plain)


def test_copies_and_pickles_keep_what_is_not_the_connection(proxy: Proxy) -> None:
    """Same object and settings, a connection of its own."""
    proxy._pyroTimeout, proxy._pyroSerializer, proxy._pyroMaxRetries = 3, "json", 2
    proxy.echo(1)
    twin = copy.copy(proxy)
    assert twin == proxy
    assert (twin._pyroTimeout, twin._pyroSerializer, twin._pyroMaxRetries) == (3, "json", 2)
    assert twin._pyroConnection is None
    assert twin.echo([1]) == [1]
    twin._pyroRelease()
    revived = pickle.loads(pickle.dumps(proxy))
    assert (revived._pyroUri, revived._pyroSerializer) == (proxy._pyroUri, "json")


def test_the_number_of_the_last_request(daemon: Daemon) -> None:
    """It is what the daemon sees, and goes on over a reconnect."""

    @expose
    class Counted:
        def seq(self) -> int:
            return current_context.seq

    with Proxy(daemon.register(Counted)) as proxy:
        assert proxy._pyroSeq == 0
        numbers = []
        for _ in range(2):
            numbers += [proxy.seq(), proxy._pyroSeq, proxy.seq()]
            proxy._pyroRelease()
            numbers.append(proxy._pyroSeq)
    first = numbers[0]
    assert numbers[:4] == [first, first, first + 1, first + 1]
    second = numbers[4]
    assert second > first + 1
    assert numbers[4:] == [second, second, second + 1, second + 1]


def test_ownership_is_nothing(proxy: Proxy) -> None:
    """Pyro5 programs claim it when a proxy changes threads."""
    proxy._pyroClaimOwnership()
    BatchProxy(proxy)._pyroClaimOwnership()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(proxy.echo, 1).result(WITHIN_S) == 1


def test_a_call_that_cannot_be_written_costs_nothing(proxy: Proxy) -> None:
    """NotSent, and neither the connection nor the numbering suffers."""
    proxy.echo(0)
    link = proxy._pyroConnection
    current_context.annotations = {"TOO LONG": b"x"}
    try:
        with pytest.raises(PyroError) as caught:
            proxy.echo(1)
    finally:
        current_context.annotations = {}
    assert isinstance(caught.value, CommunicationError)
    assert caught.value.outcome is Outcome.NOT_SENT
    assert proxy.echo(2) == 2
    assert proxy._pyroConnection is link


def test_the_old_annotation_hooks(daemon: Daemon) -> None:
    """Pyro4's: a subclass adds annotations to each call, and sees those of each answer."""

    @expose
    class Mirror:
        def reflect(self) -> str:
            current_context.response_annotations = {"BACK": b"answer"}
            return bytes(current_context.annotations["MINE"]).decode()

    class Hooked(Proxy):
        def _pyroAnnotations(self) -> dict[str, bytes]:  # type: ignore[override]  # narrower on purpose
            return {"MINE": b"hook"}

        def _pyroResponseAnnotations(self, annotations: dict[str, object], msgtype: int) -> None:  # type: ignore[override]  # as above
            seen.append((sorted(annotations), msgtype))

    seen: list[object] = []
    with Hooked(daemon.register(Mirror())) as proxy:
        assert proxy.reflect() == "hook"
    assert seen == [(["BACK"], 5)]


def test_context_of_one_thread_is_not_that_of_another(daemon: Daemon) -> None:
    """Annotations and correlation ids are a thread's own, unless they are carried over."""

    @expose
    class Told:
        def told(self) -> list[str]:
            mine = [key for key in current_context.annotations if key.startswith("U")]
            return [*mine, str(current_context.correlation_id)]

    mine = uuid.uuid4()
    with Proxy(daemon.register(Told())) as proxy, ThreadPoolExecutor(1) as threads:
        current_context.annotations, current_context.correlation_id = {"UONE": b"1"}, mine
        try:
            assert proxy.told() == ["UONE", str(mine)]
            assert "UONE" not in threads.submit(proxy.told).result(WITHIN_S)
            carried = current_context.to_global()
            threads.submit(current_context.from_global, carried).result(WITHIN_S)
            assert threads.submit(proxy.told).result(WITHIN_S) == ["UONE", str(mine)]
        finally:
            current_context.annotations, current_context.correlation_id = {}, None


def test_facts_of_the_call_being_served(daemon: Daemon) -> None:
    """Every field has Pyro's type; outside of a call they are empty."""

    @expose
    class Facts:
        def facts(self) -> list[object]:
            context = current_context
            address = context.client_sock_addr
            return [context.seq, context.serializer_id, context.msg_flags, list(address), context.client.sock is None]

    with Proxy(daemon.register(Facts())) as proxy:
        proxy._pyroSerializer = "json"
        proxy._pyroBind()
        address = list(proxy._pyroLocalSocket)
        assert proxy.facts() == [1, 3, 0, address, False]
    assert (current_context.client, current_context.client_sock_addr, current_context.seq) == (None, None, 0)
    with pytest.raises(PyroError):
        current_context.track_resource(proxy)


def test_streams_are_closed_when_they_are_dropped(daemon: Daemon) -> None:
    """Early, by the end of their life or of their block; afterwards the proxy goes on."""
    closed = threading.Semaphore(0)

    @expose
    class Source:
        def endless(self) -> Iterator[int]:
            try:
                yield from iter(int, 1)
            finally:
                closed.release()

    with Proxy(daemon.register(Source())) as proxy:
        items = proxy.endless()
        assert next(items) == 0
        del items
        assert closed.acquire(timeout=WITHIN_S)
        with proxy.endless() as items:
            assert next(items) == 0
        assert closed.acquire(timeout=WITHIN_S)
        items = proxy.endless()
        next(items)
        proxy._pyroRelease()
        with pytest.raises(ConnectionClosedError):
            next(items)


def test_a_blob_over_a_connected_socket(service: Service) -> None:
    """No handshake on a socket that both ends were given, and nobody closes it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Daemon(connected_socket=ours) as daemon:
        daemon.register(service, "service")
        assert daemon.locationStr == "./u:<<not-bound>>"
        thread = threading.Thread(target=daemon.requestLoop)
        thread.start()
        proxy = Proxy("service", connected_socket=theirs)
        assert str(proxy._pyroUri) == "PYRO:service@<<connected-socket>>:0"
        assert proxy.echo({"key": [1, 2]}) == {"key": [1, 2]}
        assert list(proxy.count(3)) == [0, 1, 2]
        proxy._pyroRelease()
        assert proxy.echo("still") == "still"
        with pytest.raises(ValueError, match="blob"):
            proxy.fail(SerializedBlob("info", ["blob"]).deserialized()[0])
        with pytest.raises(PyroError, match="copied"):
            copy.copy(proxy)
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join(WITHIN_S)
        assert not thread.is_alive()
        assert min(ours.fileno(), theirs.fileno()) >= 0


@expose
class AtOnce:
    async def echo(self, value: object) -> object:
        return value


def _options_of(sock: socket.socket) -> tuple[bytes, float | None, bool]:
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
        sock.gettimeout(),
        os.get_blocking(sock.fileno()),
    )


@pytest.mark.parametrize("timeout", [None, 60.0, 0.0])
def test_a_connected_socket_is_given_back_as_it_was(timeout: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode and its options belong to who made it, also when its daemon had time to wait for nobody else."""
    monkeypatch.setattr(BusyPoll, "patience", lambda busy: 0.002)
    ours, theirs = socket.socketpair()
    ours.settimeout(timeout)
    before = _options_of(ours)
    with ours, theirs:
        with Daemon(connected_socket=ours) as daemon:
            daemon.register(AtOnce(), "service")
            thread = threading.Thread(target=daemon.requestLoop)
            thread.start()
            proxy = Proxy("service", connected_socket=theirs)
            for number in range(40):
                assert proxy.echo(number) == number
            daemon.shutdown()
            thread.join(WITHIN_S)
        assert _options_of(ours) == before


def test_sessions_belong_to_a_proxy(daemon: Daemon) -> None:
    """A copy has a connection, and so an instance, of its own."""

    @expose
    @behavior(instance_mode="session")
    class Counter:
        def __init__(self) -> None:
            self.value = 0

        def increment(self) -> int:
            self.value += 1
            return self.value

    with Proxy(daemon.register(Counter)) as proxy, copy.copy(proxy) as other:
        assert [proxy.increment(), proxy.increment(), other.increment()] == [1, 2, 1]


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack"])
def test_a_served_object_is_sent_as_a_proxy(daemon: Daemon, service: Service, serializer: str) -> None:
    """Anywhere in an argument, whatever daemon of this process serves it; that is how callbacks are handed over."""

    @expose
    class Caller:
        def call(self, targets: dict[str, Proxy]) -> object:
            with targets["one"] as target:
                return target.echo("called back")

    with serving(Daemon()) as other, Proxy(other.register(Caller())) as proxy:
        proxy._pyroSerializer = serializer
        assert proxy.call({"one": service}) == "called back"
        assert service.ran == 1


def test_one_class_may_be_served_by_two_daemons(daemon: Daemon) -> None:
    """As in Pyro5; twice in one daemon is an error."""

    @expose
    class Shared:
        def touch(self) -> str:
            return "touched"

    with serving(Daemon()) as other:
        for uri in (daemon.register(Shared, "here"), other.register(Shared, "there")):
            with Proxy(uri) as proxy:
                assert proxy.touch() == "touched"
        with pytest.raises(PyroError, match="already has a Pyro id"):
            other.register(Shared, "again")


def test_a_daemon_may_welcome_in_another_serializer_than_it_is_greeted_in() -> None:
    def seven(request: Message) -> bytes:
        return codec_for(502).encode(Message(MessageType.RESULT, request.seq, request.serializer, 0, b"7"))

    with StockServer(seven) as server:
        with Proxy(f"PYRO:thing@{server.location}", settings=Settings(serializer="json")) as proxy:
            assert proxy.echo(1) == 7
        assert [request.serializer for request in server.requests] == ["json"]


def test_the_protocol_of_one_proxy_is_not_that_of_others_at_the_same_place(daemon: Daemon) -> None:
    """What somebody asked for says nothing about what the daemon speaks best."""
    uri = daemon.uriFor("service")
    for told, spoken in ((48, 48), (None, 502)):
        with Proxy(uri, settings=Settings(protocol=told)) as proxy:
            assert proxy.echo(1) == 1
            assert proxy._pyroConnection is not None
            assert proxy._pyroConnection.version == spoken


def test_raw_messages_are_not_offered() -> None:
    """What says so is the setting, not a result that is none of a message's parts."""
    proxy = Proxy("PYRO:x@localhost:1")
    proxy._pyroRawWireResponse = False
    with pytest.raises(AttributeError, match="not offered"):
        proxy._pyroRawWireResponse = True
    assert proxy._pyroRawWireResponse is False
