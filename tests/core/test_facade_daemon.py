"""The blocking daemon: its loop, the program's own loop, combining, weak objects, interfaces, name servers."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future as ThreadResult
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from facade_doubles import WITHIN_S, Service, serving

from pyroxfer_core import CutCall, expose
from pyroxfer_core.blocking import (
    URI,
    Daemon,
    DaemonObject,
    Proxy,
    SerializerBase,
    config,
    current_context,
    locate_ns,
    resolve,
    serve,
    start_ns,
    type_meta,
)
from pyroxfer_core.blocking.nameserver import BroadcastServer, NameServerDaemon
from pyroxfer_core.blocking.ownloop import OwnLoop
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, DaemonError, NamingError, PyroError


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def call(uri: Any, value: object) -> object:
    with Proxy(uri) as proxy:
        return proxy.echo(value)


def run_own_loop(daemon: Daemon, until: ThreadResult[Any]) -> Any:
    """A program's own loop around ``daemon.sockets`` and ``daemon.events``."""
    deadline = time.monotonic() + WITHIN_S
    while not until.done():
        assert time.monotonic() < deadline
        ready, _, _ = select.select(daemon.sockets, [], [], 0.05)
        daemon.events(ready)
    return until.result()


def test_the_programs_own_loop(threads: ThreadPoolExecutor) -> None:
    """Methods run in its thread and at its time only; afterwards the daemon can be closed."""

    @expose
    class Where:
        def here(self) -> int:
            return threading.get_ident()

    def ask() -> int:
        with Proxy(where) as proxy:
            return int(proxy.here())

    with Daemon() as daemon:
        where = daemon.register(Where, "where")
        assert run_own_loop(daemon, threads.submit(ask)) == threading.get_ident()
        asked = threads.submit(ask)
        daemon.requestLoop(lambda: not asked.done())
        assert asked.result() == threading.get_ident(), "it goes on with the loop that was begun"
        uri = daemon.register(Service(), "service")
        answers = [threads.submit(call, uri, number) for number in range(3)]
        assert [run_own_loop(daemon, answer) for answer in answers] == [0, 1, 2]
    with pytest.raises(CommunicationError):
        call(uri, 4)


@expose
class Ends:
    """Its methods do what ends a thread, or a program."""

    def leave(self) -> None:
        raise SystemExit(3)

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    def here(self) -> str:
        return "here"


def test_a_method_that_would_end_the_program_in_its_own_loop(threads: ThreadPoolExecutor) -> None:
    """Its caller's connection ends, as with requestLoop; only Ctrl-C goes on to the program, which may go on, too."""

    def ask(method: str) -> object:
        with Proxy(uri) as proxy:
            return getattr(proxy, method)()

    with Daemon() as daemon:
        uri = daemon.register(Ends(), "ends")
        with pytest.raises(ConnectionClosedError):
            run_own_loop(daemon, threads.submit(ask, "leave"))
        interrupted = threads.submit(ask, "interrupt")
        with pytest.raises(KeyboardInterrupt):
            run_own_loop(daemon, interrupted)
        with pytest.raises(ConnectionClosedError):
            run_own_loop(daemon, interrupted)
        assert run_own_loop(daemon, threads.submit(ask, "here")) == "here"


@expose
class Wanderer:
    """Tells which thread each part of it ran in, and how many calls were in it at once."""

    seen: ClassVar[set[int]] = set()
    inside = most = 0

    def __init__(self) -> None:
        self.seen.add(threading.get_ident())

    def work(self) -> None:
        clazz = type(self)
        clazz.inside += 1
        clazz.most = max(clazz.most, clazz.inside)
        self.seen.add(threading.get_ident())
        time.sleep(0.001)
        clazz.inside -= 1

    def items(self) -> Iterator[int]:
        for number in range(3):
            self.work()
            yield number

    @property
    def level(self) -> int:
        self.work()
        return 1


class Multiplexed(Daemon):
    def validateHandshake(self, conn: Any, data: Any) -> Any:
        Wanderer.seen.add(threading.get_ident())
        return "hello"


class Beside:
    """Something else to be served with a daemon."""

    sockets: ClassVar[list[socket.socket]] = []

    def __init__(self) -> None:
        self.ended = threading.Event()

    def events(self, eventsockets: Sequence[Any]) -> None:
        pass

    async def serve_beside(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()


@pytest.fixture
def multiplex() -> Iterator[None]:
    config.SERVERTYPE = "multiplex"
    yield
    config.reset()


def test_the_multiplex_server_has_one_thread(multiplex: None, threads: ThreadPoolExecutor) -> None:
    """The code of objects runs in that of requestLoop, a call at a time; combined daemons share it."""
    Wanderer.seen, Wanderer.most = set(), 0

    def visit(uri: Any) -> list[int]:
        with Proxy(uri) as proxy:
            for _ in range(5):
                proxy.work()
            return [*proxy.items(), proxy.level]

    with Multiplexed() as first, Daemon() as second:
        uris = [first.register(Wanderer), second.register(Wanderer)]
        beside = Beside()
        first.combine(second)
        first.combine(beside)
        visits = [threads.submit(visit, uri) for uri in uris * 2]
        first.requestLoop(lambda: not all(each.done() for each in visits))
        assert [each.result() for each in visits] == [[0, 1, 2, 1]] * 4
        assert beside.ended.is_set()
    assert (Wanderer.seen, Wanderer.most) == ({threading.get_ident()}, 1)


def test_the_multiplex_server_ends_and_begins_again(multiplex: None, threads: ThreadPoolExecutor) -> None:
    """By shutdown from inside a call, which is answered, and from another thread; before it began, too."""

    @expose
    class Switch:
        def off(self) -> str:
            daemon.shutdown()
            return "bye"

    def turn_off() -> object:
        with Proxy(uri) as proxy:
            return proxy.off()

    with Daemon() as daemon:
        uri = daemon.register(Switch())
        daemon.shutdown()
        daemon.requestLoop()
    with Daemon() as daemon:
        uri = daemon.register(Switch())
        daemon.requestLoop(lambda: False)
        answer = threads.submit(turn_off)
        daemon.requestLoop()
        assert answer.result(WITHIN_S) == "bye"
    with Daemon() as daemon:
        echo = daemon.register(Service())
        ended = threads.submit(call, echo, 1)
        ended.add_done_callback(lambda _: daemon.shutdown())
        daemon.requestLoop()
        assert ended.result(WITHIN_S) == 1


def test_looking_at_the_sockets_first(threads: ThreadPoolExecutor) -> None:
    """What is combined with a daemon is served all the same when requestLoop comes afterwards."""
    with Daemon() as first, Daemon() as second:
        first.combine(second)
        assert len(first.sockets) == 2
        answers = [threads.submit(call, daemon.register(Service(), "service"), 1) for daemon in (first, second)]
        first.requestLoop(lambda: not all(answer.done() for answer in answers))
        assert [answer.result() for answer in answers] == [1, 1]


def test_a_class_stands_for_its_id() -> None:
    """As its objects do; but a class that is sent is no proxy."""
    with Daemon() as daemon:
        uri = daemon.register(Service, "service")
        assert daemon.uriFor(Service) == daemon.uriFor(Service()) == uri
        assert daemon.proxyFor(Service)._pyroUri == uri
        assert daemon.autoproxy(Service()) is not None
        assert daemon.autoproxy(Service) is None
        with pytest.raises(DaemonError):
            daemon.uriFor(type("Special", (Service,), {}))


def test_an_id_that_was_taken_by_force() -> None:
    """The object that had it leads to the one that has it, as in Pyro, until nothing is served there."""
    first, second = Service(), Service()
    with Daemon() as daemon, Daemon() as other:
        uri = daemon.register(first, "service")
        daemon.register(second, "service", force=True)
        assert daemon.uriFor(first) == daemon.uriFor(second) == daemon.proxyFor(first)._pyroUri == uri
        other.register(Service(), "service")
        with pytest.raises(DaemonError, match="not registered"):
            other.uriFor(first)
        daemon.unregister("service")
        with pytest.raises(DaemonError, match="not registered"):
            daemon.uriFor(first)


def test_members_are_looked_at_anew() -> None:
    """Of what is registered; an id that nobody knows is left in peace, as in Pyro."""

    class Growing:
        @expose
        def one(self) -> int:
            return 1

    with serving(Daemon()) as daemon:
        uri = daemon.register(Growing(), "growing")
        with Proxy(uri) as proxy:
            assert proxy.one() == 1
        Growing.two = expose(lambda _: 2)  # type: ignore[attr-defined]  # as programs do at runtime
        daemon.resetMetadataCache("unknown")
        daemon.resetMetadataCache("growing")
        with Proxy(uri) as proxy:
            assert proxy.two() == 2
        with pytest.raises(DaemonError, match="not registered"):
            daemon.resetMetadataCache(Growing())


def test_combined_daemons_share_a_loop(threads: ThreadPoolExecutor) -> None:
    """With requestLoop, and with the program's own."""
    with Daemon() as first, Daemon() as second:
        first.combine(second)
        uris = [first.register(Service(), "one"), second.register(Service(), "two")]
        with pytest.raises(TypeError):
            first.combine(first)
        assert [run_own_loop(first, threads.submit(call, uri, str(uri))) for uri in uris] == list(map(str, uris))
    with Daemon() as second:
        uri = second.register(Service(), "two")
        first = Daemon()
        first.combine(second)
        with serving(first):
            assert call(uri, 2) == 2


def test_the_loop_ends_when_its_condition_says_so() -> None:
    """And can be run again, on the same port; a shutdown ends it too, also one from inside a call."""

    @expose
    class Switch:
        def off(self) -> str:
            daemon.shutdown()
            return "bye"

    turns = iter([True, True, False])
    with Daemon() as daemon:
        uri = daemon.register(Switch(), "switch")
        daemon.requestLoop(lambda: next(turns))
        with ThreadPoolExecutor(1) as pool:
            loop = pool.submit(daemon.requestLoop)
            while daemon._stop is None:
                time.sleep(0.001)
            with Proxy(uri) as proxy:
                assert proxy.off() == "bye"
            loop.result(WITHIN_S)


def test_close_ends_the_loop_of_another_thread() -> None:
    """As in Pyro, where close from anywhere stops the server."""
    daemon = Daemon()
    uri = daemon.register(Service(), "service")
    thread = threading.Thread(target=daemon.requestLoop)
    thread.start()
    assert call(uri, 1) == 1
    daemon.close()
    thread.join(WITHIN_S)
    assert not thread.is_alive()
    with pytest.raises(CommunicationError):
        call(uri, 2)


def test_housekeeping_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again while requests are served; errors of it would end the loop and be seen."""
    from pyroxfer_core.blocking import daemon as module

    monkeypatch.setattr(module, "HOUSEKEEPING_PERIOD_S", 0.01)
    called = threading.Semaphore(0)

    class Tidy(Daemon):
        def housekeeping(self) -> None:
            called.release()

    with serving(Tidy()):
        for _ in range(3):
            assert called.acquire(timeout=WITHIN_S)


def test_hooks_of_the_handshake() -> None:
    """They may block, see who connects and who leaves, and their result reaches the client; a refusal is told."""
    left = threading.Event()
    addresses: list[Any] = []

    class Careful(Daemon):
        def validateHandshake(self, conn: Any, data: Any) -> Any:
            addresses.append(conn.sock.getpeername())
            assert current_context.client is conn
            if data == "wrong":
                raise ValueError("go away")
            return [data, "accepted"]

        def clientDisconnect(self, conn: Any) -> None:
            addresses.append(conn.sock.getpeername())
            left.set()

    class Polite(Proxy):
        def _pyroValidateHandshake(self, response: Any) -> None:
            answers.append(response)

    answers: list[Any] = []
    with serving(Careful()) as daemon:
        uri = daemon.register(Service(), "service")
        with Polite(uri) as proxy:
            proxy._pyroHandshake = "right"
            assert proxy.echo(1) == 1
        assert answers == [["right", "accepted"]]
        assert left.wait(WITHIN_S)
        assert addresses[0] == addresses[1]  # who left is known when the socket is closed already
        with Polite(uri) as proxy:
            proxy._pyroHandshake = "wrong"
            with pytest.raises(CommunicationError, match="go away"):
                proxy.echo(1)


def test_hooks_that_one_daemon_was_given() -> None:
    """They count as those of a class do, also when they are set while it is served."""

    def refuse(conn: Any, data: Any) -> Any:
        raise ValueError("nobody comes in")

    class Listening(Proxy):
        def _pyroResponseAnnotations(self, annotations: Any, msgtype: int) -> None:
            heard.append({key: bytes(value) for key, value in annotations.items()})

    heard: list[dict[str, bytes]] = []
    with serving(Daemon()) as daemon:
        uri = daemon.register(Service(), "service")
        assert call(uri, 1) == 1
        daemon.annotations = lambda: {"TOLD": b"yes"}  # type: ignore[method-assign]  # what is tested
        with Listening(uri) as proxy:
            assert proxy.echo(2) == 2
        assert heard == [{"TOLD": b"yes"}] * 2, "the welcome, and the answer"
        daemon.validateHandshake = refuse  # type: ignore[method-assign]  # what is tested
        with pytest.raises(CommunicationError, match="nobody comes in"):
            call(uri, 3)


def test_an_interface_of_its_own() -> None:
    """A subclass of DaemonObject answers more under ``Pyro.Daemon``."""

    class More(DaemonObject):
        @expose
        def motto(self) -> str:
            return f"serving {len(self.daemon.objectsById)}"

    with serving(Daemon(interface=More)) as daemon, Proxy(daemon.uriFor("Pyro.Daemon")) as proxy:
        assert proxy.motto() == "serving 1"
        assert proxy.registered() == ["Pyro.Daemon"]
        assert proxy.ping() is None


def test_a_weak_registration_ends_with_its_object() -> None:
    """While the object lives it is served as itself, autoproxied, and can be unregistered."""
    with serving(Daemon()) as daemon:
        service = Service()
        uri = daemon.register(service, "weak", weak=True)
        assert call(uri, 1) == 1
        assert service.ran == 1
        with daemon.proxyFor(service) as proxy:
            assert proxy.level == 7
        daemon.unregister(service)
        assert "weak" not in daemon.objectsById
        assert str(daemon.register(service, "again", weak=True)).startswith("PYRO:again@")
        del service
        gc.collect()
        assert "again" not in daemon.objectsById
        with pytest.raises(CommunicationError, match="unknown object"):
            call(daemon.uriFor("again"), 1)
        with pytest.raises(TypeError):
            daemon.register(Service, "class", weak=True)
        with pytest.raises(DaemonError):
            daemon.proxyFor("again")


def test_places_come_from_config() -> None:
    """Host, and the address outside of a NAT with its port."""
    config.NATHOST, config.NATPORT = "outside", 4711
    try:
        with Daemon() as daemon:
            assert daemon.natLocationStr == "outside:4711"
            assert str(daemon.register(Service(), "x")) == "PYRO:x@outside:4711"
            assert daemon.uriFor("x", nat=False).host == "localhost"
    finally:
        config.reset()


def test_a_daemon_for_everybody_is_warned_about() -> None:
    """Old programs name such hosts; they go on, loudly."""
    with pytest.warns(UserWarning, match="everybody"), Daemon("0.0.0.0"):
        pass


def test_serve_prints_and_registers(capsys: pytest.CaptureFixture[str], threads: ThreadPoolExecutor) -> None:
    """Without a name server names are ids; both spellings take what they take in Pyro."""
    daemon = Daemon()
    uri = f"PYRO:service@{daemon.location}"
    running = threads.submit(serve, {Service(): "service"}, daemon=daemon, use_ns=False)
    assert call(uri, 5) == 5
    daemon.shutdown()
    running.result(WITHIN_S)
    assert f"uri = {uri}" in capsys.readouterr().out

    @expose
    class Other(Service):
        pass

    quiet = Daemon()
    uri = f"PYRO:service@{quiet.location}"
    running = threads.submit(Daemon.serveSimple, {Other: "service"}, daemon=quiet, ns=False, verbose=False)
    assert call(uri, 6) == 6
    quiet.shutdown()
    running.result(WITHIN_S)
    assert capsys.readouterr().out == ""


@pytest.fixture
def name_server(tmp_path: Path) -> Iterator[NameServerDaemon]:
    uri, daemon, broadcast = start_ns(port=0, storage=f"sql:{tmp_path / 'names.sql'}")
    assert broadcast is None  # localhost hears no broadcasts
    assert uri == daemon.uriFor("Pyro.NameServer")
    with serving(daemon):
        config.NS_PORT = uri.port
        try:
            yield daemon
        finally:
            config.reset()
    daemon.__exit__(None, None, None)


def test_a_name_server_in_the_program(name_server: NameServerDaemon, threads: ThreadPoolExecutor) -> None:
    """Found where config says, it registers, resolves, and waits for names as long as it is told to."""
    with locate_ns(broadcast=False) as ns, serving(Daemon()) as daemon:
        uri = daemon.register(Service(), "service")
        assert ns._pyroConnection is not None
        ns.register("my.service", uri, metadata=type_meta(Service))
        assert resolve("PYRONAME:my.service") == uri
        assert call("PYRONAME:my.service", 1) == 1
        assert list(ns.yplookup(meta_any=type_meta(Service))) == ["my.service"]
        with pytest.raises(NamingError):
            resolve("PYRONAME:late")
        late = threads.submit(resolve, "PYRONAME:late", 10)
        time.sleep(0.05)
        ns.register("late", uri)
        assert late.result(WITHIN_S) == uri
        with Proxy("PYRONAME:my.service") as proxy:
            assert proxy._pyroBind()
            assert proxy._pyroUri == uri
            assert not proxy._pyroBind()


def test_broadcasts_are_answered_in_every_way(threads: ThreadPoolExecutor) -> None:
    """In a thread, in the program's loop, and beside a daemon."""
    uri = URI("PYRO:Pyro.NameServer@127.0.0.1:9999")

    def ask(server: BroadcastServer) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(WITHIN_S)
            asking.sendto(b"GET_NSURI", ("127.0.0.1", server.getPort()))
            return asking.recv(100)

    with BroadcastServer(uri, "127.0.0.1", 0) as server:
        thread = server.runInThread()
        assert ask(server) == str(uri).encode()
    thread.join(WITHIN_S)
    with BroadcastServer(uri, "127.0.0.1", 0) as server, Daemon() as daemon:
        daemon.combine(server)
        assert run_own_loop(daemon, threads.submit(ask, server)) == str(uri).encode()
    with BroadcastServer(uri, "127.0.0.1", 0) as server:
        daemon = Daemon()
        daemon.combine(server)
        with serving(daemon):
            assert ask(server) == str(uri).encode()
    with BroadcastServer(uri, "127.0.0.1", 0) as server, pytest.raises(NamingError, match="broadcasts"):
        BroadcastServer(uri, "127.0.0.1", server.getPort())


def test_type_metadata() -> None:
    """Names of a class, or an object's class, and its bases, without the builtin ones."""

    class Base:
        pass

    class Derived(Base, dict[str, int]):
        pass

    names = {f"class:{__name__}.Base", f"class:{__name__}.Derived"}
    assert type_meta(Derived) == type_meta(Derived()) == names
    assert type_meta(3) == set()
    assert type_meta(Base, "is:") == {f"is:{__name__}.Base"}


def test_the_base_of_serializers() -> None:
    """Registers converters like the functions, and turns objects into dicts and back."""

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    SerializerBase.register_class_to_dict(Point, lambda point: {"__class__": "Point", "x": point.x})
    SerializerBase.register_dict_to_class("Point", lambda name, data: Point(data["x"]))
    try:
        data = SerializerBase.class_to_dict(Point(3))
        assert data == {"__class__": "Point", "x": 3}
        assert SerializerBase.dict_to_class(data).x == 3
    finally:
        SerializerBase.unregister_class_to_dict(Point)
        SerializerBase.unregister_dict_to_class("Point")
    with pytest.raises(PyroError):
        SerializerBase.dict_to_class(data)


def test_a_host_may_be_an_address_object() -> None:
    """As the type hints of Pyro5 say."""
    with Daemon(ip_address("127.0.0.1")) as daemon:
        assert daemon.locationStr.startswith("127.0.0.1:")
    with Daemon([ip_address("127.0.0.1")]) as daemon:
        assert daemon.locationStr.startswith("127.0.0.1:")


def test_an_error_of_the_condition_arrives_as_it_is() -> None:
    """Not in a group, which an ``except`` of an old program would not catch."""
    with Daemon() as daemon, pytest.raises(ZeroDivisionError):
        daemon.requestLoop(lambda: bool(1 // 0))


@pytest.mark.parametrize("kind", ["thread", "multiplex"])
def test_clients_wait_from_one_loop_to_the_next(kind: str, multiplex: None, threads: ThreadPoolExecutor) -> None:
    """A condition ends a loop, not the daemon: it can still be reached, and take objects. A shutdown ends both."""
    config.SERVERTYPE = kind
    with Daemon() as daemon:
        for number in range(3):
            uri = daemon.register(Service())
            asked = threads.submit(call, uri, number)
            daemon.requestLoop(lambda asked=asked: not asked.done())  # type: ignore[misc]  # no type for the default
            assert asked.result(WITHIN_S) == number
        socket.create_connection(("localhost", int(daemon.locationStr.rpartition(":")[2]))).close()
        daemon.shutdown()
        daemon.requestLoop()
        with pytest.raises(CommunicationError):
            call(uri, 1)


def test_a_loop_of_ones_own_that_another_thread_has_ended_does_nothing() -> None:
    loop, ran = OwnLoop(lambda: None), list[str]()
    loop.start()
    loop.post(loop.turn)  # as if another thread took the rest meanwhile
    loop.post(lambda: ran.append("second"))
    loop.turn()
    assert ran == ["second"]
    loop.join()
    loop.turn()


def test_who_closes_a_multiplex_server_does_not_run_its_methods(multiplex: None, threads: ThreadPoolExecutor) -> None:
    """They run in the thread of requestLoop to the last."""
    seen, begun, gate = set[int](), threading.Event(), threading.Event()

    @expose
    class Seen:
        def hold(self) -> None:
            seen.add(threading.get_ident())
            begun.set()
            gate.wait(WITHIN_S)

    def hold() -> None:
        with Proxy(uri) as proxy, contextlib.suppress(CommunicationError):
            proxy.hold()

    with Daemon() as daemon:
        uri = daemon.register(Seen())
        loop = threading.Thread(target=daemon.requestLoop)
        loop.start()
        calls = [threads.submit(hold) for _ in range(2)]
        assert begun.wait(WITHIN_S)
        while daemon.pool.own_loop is None or len(daemon.pool.own_loop) < 1:
            time.sleep(0.001)
        daemon.close()
        gate.set()
        loop.join(WITHIN_S)
        assert not loop.is_alive()
        for each in calls:
            each.result(WITHIN_S)
    assert seen == {loop.ident}


def test_a_daemon_that_is_just_ending_may_be_closed_by_another_thread(threads: ThreadPoolExecutor) -> None:
    closed: list[object] = []

    class Closed(Daemon):
        async def aclose(self) -> list[CutCall]:
            closed.append(threads.submit(self.close).exception(WITHIN_S))
            return await super().aclose()

    with Closed() as daemon:
        daemon.requestLoop(lambda: False)
    assert closed == [None]
