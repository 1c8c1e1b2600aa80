"""Calls between our own proxy and daemon: every kind of method, annotations, exceptions, batches, order."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from doubles import run, until

from pyroxfer_core import (
    BatchProxy,
    Daemon,
    Proxy,
    Settings,
    Uri,
    current_call,
    expose,
    oneway,
    serve,
)
from pyroxfer_core.errors import (
    CommunicationError,
    DaemonError,
    Outcome,
    PyroError,
    RefusedError,
    RemoteError,
    SerializeError,
)
from pyroxfer_core.serializers import register_dict_to_class, unregister_dict_to_class

SETTINGS = Settings(shutdown_grace_s=1)
OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


class CustomError(Exception):
    pass


@expose
class Service:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gate = trio.Event()
        self._value = 1

    async def add(self, first: int, second: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        return first + second

    def thread_name(self) -> str:
        return threading.current_thread().name

    @expose(inline=True)
    def inline(self) -> str:
        return threading.current_thread().name

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self, kind: str) -> None:
        raise {
            "value": ValueError("bad", 3),
            "custom": CustomError("own class"),
            "refused": RefusedError("of a nested call"),
            "lost": CommunicationError("nested", outcome=Outcome.NOT_SENT),
            "key": KeyError("x"),
        }[kind]

    async def unserialisable(self) -> Any:
        self.log.append("ran")
        return object()

    @oneway
    async def note(self, value: Any) -> None:
        self.log.append(value)

    @oneway
    async def note_slowly(self, value: Any) -> None:
        self.log.append(("begun", value))
        await self.gate.wait()
        self.log.append(("done", value))

    async def noted(self) -> list[Any]:
        return self.log

    @property
    def value(self) -> int:
        return self._value

    @value.setter
    def value(self, new: int) -> None:
        self._value = new

    @property
    def fixed(self) -> str:
        return "read only"

    async def annotations(self) -> dict[str, str]:
        current_call.response_annotations = {"RESP": b"back"}
        return {key: bytes(value).decode() for key, value in current_call.annotations.items()}

    async def correlation(self) -> uuid.UUID:
        found: uuid.UUID = current_call.correlation_id
        return found

    async def facts(self) -> list[Any]:
        return [current_call.seq, current_call.protocol, current_call.peer]

    async def _hidden(self) -> None:
        raise AssertionError("private")

    async def myself(self) -> Any:
        return self

    async def nested_correlation(self, uri: str) -> Any:
        async with Proxy(uri) as proxy:
            return await proxy.correlation()


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def daemon(service: Service) -> AsyncIterator[Daemon]:
    async with Daemon(settings=SETTINGS) as daemon:
        daemon.register(service, "service")
        yield daemon


@BOTH
async def test_every_kind_of_method(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        assert await proxy.add(1, 2) == 3
        assert await proxy.add(1, second=5) == 6
        loop_thread = threading.current_thread().name
        assert await proxy.inline() == loop_thread
        assert await proxy.thread_name() != loop_thread
        assert await proxy.echo({"a": [1, None, 2.5, "ü"]}) == {"a": [1, None, 2.5, "ü"]}


@BOTH
async def test_exceptions_come_back_as_they_were(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        with pytest.raises(ValueError, match="bad") as caught:
            await proxy.fail("value")
        assert caught.value.args == ("bad", 3)
        assert any("in fail" in line for line in caught.value._pyroTraceback)  # type: ignore[attr-defined]
        with pytest.raises(RemoteError) as foreign:
            await proxy.fail("custom")
        assert foreign.value.class_name.endswith("CustomError")
        assert foreign.value.remote_args == ("own class",)
        with pytest.raises(KeyError):
            await proxy.fail("key")
        with pytest.raises(TypeError):
            await proxy.add()
        assert await proxy.add(1) == 1


async def test_tracebacks_stay_here_when_asked_to(service: Service) -> None:
    async with Daemon(settings=Settings(remote_tracebacks=False)) as daemon:
        async with Proxy(daemon.register(service)) as proxy:
            with pytest.raises(ValueError, match="bad") as caught:
                await proxy.fail("value")
            assert caught.value._pyroTraceback == ["ValueError: ('bad', 3)\n"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["refused", "lost"])
async def test_what_a_nested_call_was_not_does_not_make_this_one_not_sent(daemon: Daemon, kind: str) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        with pytest.raises(CommunicationError) as caught:
            await proxy.fail(kind)
        assert caught.value.outcome is Outcome.EXECUTED
    async with Proxy(daemon.uri_for("service"), settings=STOCK) as proxy:
        with pytest.raises(PyroError) as told:
            await proxy.fail(kind)
        assert not str(told.value).startswith("NotSent")
        assert type(told.value) is PyroError, "a communication error would make a stock client repeat the call"


@BOTH
async def test_a_result_that_cannot_travel(daemon: Daemon, service: Service, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        with pytest.raises(SerializeError) as caught:
            await proxy.unserialisable()
        assert caught.value.outcome is Outcome.EXECUTED
        assert service.log == ["ran"]
        assert await proxy.add(1) == 1


@BOTH
async def test_an_argument_that_cannot_travel(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        with pytest.raises(SerializeError) as caught:
            await proxy.echo(range)
        assert caught.value.outcome is Outcome.NOT_SENT
        assert await proxy.echo(1) == 1


async def test_annotations_that_cannot_be_written_are_not_sent_and_spoil_nothing(daemon: Daemon) -> None:
    """The first call carries the confirmation of the features, which must not be lost when it cannot be written."""
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy._pyroBind()
        for _ in range(2):
            with pytest.raises(CommunicationError) as caught:
                await proxy.echo.options(annotations={"TOO LONG": b""})(1)
            assert caught.value.outcome is Outcome.NOT_SENT
        assert await proxy.echo((1, {2})) == (1, {2})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, proxy.note, 1)
            nursery.start_soon(run, proxy.echo, 1)
    async with Proxy(daemon.uri_for("service"), settings=STOCK) as proxy:
        with pytest.raises(CommunicationError) as caught:
            await proxy.echo.options(annotations={"BIGG": bytes(70_000)})(1)
        assert caught.value.outcome is Outcome.NOT_SENT
        assert await proxy.echo(1) == 1


@BOTH
async def test_attributes(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        await proxy._pyroBind()
        assert await proxy.value == 1
        await proxy._pyroSet("value", 5)
        assert await proxy.value == 5
        with pytest.raises(AttributeError):
            await proxy._pyroSet("fixed", 1)
        with pytest.raises(AttributeError, match="_pyroSet"):
            proxy.value = 3
        for name in ("missing", "gate", "log", "_hidden"):
            with pytest.raises(AttributeError):
                getattr(proxy, name)
        with pytest.raises(AttributeError):
            await proxy._pyroSet("missing", 1)


async def test_private_members_are_refused_by_the_daemon_itself(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy._pyroBind()
        for method in ("_hidden", "__init__", "__class__", "gate", "log"):
            with pytest.raises(AttributeError):
                await proxy._pyroInvoke(method, (), {}, member="add")
        for args in [("_value",), ("__class__",), ("log",), (1,), (), ("value", 1)]:
            with pytest.raises((AttributeError, TypeError)):
                await proxy._pyroInvoke("__getattr__", args, None, member="value")


async def test_metadata(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy._pyroBind()
        meta = proxy._pyroMetadata
        assert meta is not None
        assert {"add", "echo", "note"} <= meta.methods
        assert meta.oneway == {"note", "note_slowly"}
        assert meta.attrs == {"value", "fixed"}
    async with Proxy(f"PYRO:Pyro.Daemon@{daemon.location}") as proxy:
        assert await proxy.registered() == ["Pyro.Daemon", "service"]
        assert await proxy.ping() is None
        assert daemon.location in await proxy.info()
        as_lists = await proxy.get_metadata("service", as_lists=True)
        assert set(as_lists["methods"]) == meta.methods
        with pytest.raises(DaemonError, match="unknown object"):
            await proxy.get_metadata("nobody")


async def test_an_object_without_members_is_refused_by_the_proxy(daemon: Daemon) -> None:
    class Nothing:
        pass

    async with Proxy(daemon.register(Nothing())) as proxy:
        with pytest.raises(PyroError, match="doesn't expose any"):
            await proxy._pyroBind()


@BOTH
async def test_an_unknown_object_is_refused(daemon: Daemon, client: Settings) -> None:
    async with Proxy(f"PYRO:nobody@{daemon.location}", settings=client) as proxy:
        with pytest.raises(CommunicationError, match="unknown object") as caught:
            await proxy.add(1)
        assert caught.value.outcome is Outcome.NOT_SENT


@BOTH
async def test_annotations_both_ways_and_never_into_the_next_call(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        call = proxy.annotations.options(annotations={"AAAA": b"1", "BBBB": memoryview(b"2")})()
        assert await call == {"AAAA": "1", "BBBB": "2"}
        assert {key: bytes(value) for key, value in call.response_annotations.items()} == {"RESP": b"back"}
        plain = proxy.echo(1)
        await plain
        assert plain.response_annotations == {}
        assert await proxy.annotations() == {}


async def test_hop_annotations_are_hidden_from_handlers_whoever_sent_them(daemon: Daemon) -> None:
    stray = {"PXFT": b"stray", "PXDL": b"\0" * 8, "PXOC": b"....N", "USER": b"u"}
    for client in (OWN, STOCK):
        async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
            await proxy.echo(1)
            assert await proxy.annotations.options(annotations=stray)() == {"USER": "u"}


async def test_deadlines_are_hidden_from_handlers(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        assert await proxy.annotations.options(deadline=5)() == {}


async def test_annotations_of_the_daemon_and_of_the_call_add_up() -> None:
    class Talkative(Daemon):
        def annotations(self) -> dict[str, Any]:
            return {"DAEM": b"d", "RESP": b"overridden by the call"}

    async with Talkative() as daemon, Proxy(daemon.register(Service())) as proxy:
        call = proxy.annotations()
        await call
        assert {key: bytes(value) for key, value in call.response_annotations.items()} == {
            "DAEM": b"d",
            "RESP": b"back",
        }


@BOTH
async def test_correlation_ids(daemon: Daemon, client: Settings) -> None:
    mine = uuid.uuid4()
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        call = proxy.correlation.options(correlation_id=mine)()
        assert uuid.UUID(str(await call)) == mine
        assert call.correlation_id == mine
        assert uuid.UUID(str(await proxy.correlation())) != mine
        nested = await proxy.nested_correlation.options(correlation_id=mine)(str(daemon.uri_for("service")))
        assert uuid.UUID(str(nested)) == mine, "calls made by a method carry the id of the call they serve"
        with pytest.raises(PyroError, match="16 bytes"):
            proxy.correlation.options(correlation_id=b"short")


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
async def test_unusable_options_are_refused_at_once(daemon: Daemon, bad: float) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        with pytest.raises(PyroError, match="deadline"):
            proxy.add.options(deadline=bad)
        with pytest.raises(PyroError, match="read_ahead"):
            proxy.add.options(read_ahead=0)


@BOTH
async def test_facts_of_a_call(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        await proxy.echo(1)
        seq, protocol, peer = await proxy.facts()
        assert (seq, protocol) == (2, 48 if client is STOCK else 502)
        assert peer.startswith("127.0.0.1:")


async def test_a_call_object_can_be_outside_any_call() -> None:
    with pytest.raises(PyroError, match="outside"):
        current_call.get()


@pytest.mark.parametrize("round_", range(10))
async def test_one_way_calls_begin_in_order_and_before_what_follows(
    daemon: Daemon, service: Service, round_: int
) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(1)
        link = proxy._pyroLink
        assert link is not None
        async with trio.open_nursery() as nursery:
            for number in range(20):  # all in one segment: queued by tasks of one turn
                nursery.start_soon(run, proxy.note_slowly, number)
        begun = [value for state, value in await proxy.noted() if state == "begun"]
        assert len(begun) == 20, "a call that follows begins after them"
        assert not any(state == "done" for state, _ in service.log), "and nobody waits for them"
        service.gate.set()


async def test_one_way_calls_of_one_segment_keep_their_order(daemon: Daemon, service: Service) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        for _ in range(20):
            service.log.clear()
            for number in range(10):
                await proxy.note(number)
            assert await proxy.noted() == list(range(10))


async def test_a_flood_of_one_way_calls_is_slowed_down(service: Service) -> None:
    async with Daemon(settings=Settings(max_calls_in_flight=3)) as daemon:
        async with Proxy(daemon.register(service)) as proxy:
            for number in range(8):
                await proxy.note_slowly(number)
            await until(lambda: len(service.log) >= 4)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert [value for _, value in service.log] == [0, 1, 2, 3], "three at once, one in the reader itself"
            service.gate.set()
            await until(lambda: len(service.log) >= 16)


@BOTH
async def test_a_one_way_batch_keeps_its_order_with_later_calls(client: Settings) -> None:
    """Also with those that would not have had to wait for it."""

    @expose
    class Slow:
        def __init__(self) -> None:
            self.notes: list[int] = []

        async def note(self, value: int) -> None:
            await trio.sleep(0.01)
            self.notes.append(value)

        async def noted(self) -> list[int]:
            return self.notes

    async with Daemon() as daemon, Proxy(daemon.register(Slow()), settings=client) as proxy:
        batch = BatchProxy(proxy)
        batch.note(1)
        batch.note(2)
        await batch(oneway=True)
        assert await proxy.noted() == [1, 2]


@BOTH
async def test_batches(daemon: Daemon, service: Service, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        batch = BatchProxy(proxy)
        batch.add(1, 2)
        batch.note("in a batch")
        batch.add(3, second=4)
        assert [result async for result in batch()] == [3, None, 7]
        assert service.log == ["in a batch"], "one-way methods run in their place"
        batch.add(1)
        batch.fail("value")
        batch.note("never")
        seen = []
        with pytest.raises(ValueError, match="bad"):
            async for result in batch():
                seen.append(result)
        assert seen == [1]
        assert service.log == ["in a batch"], "nothing runs after the first failure"
        assert await batch() == [], "a batch is empty after it was sent"
        batch.note("quiet")
        assert await batch(oneway=True) is None
        await until(lambda: service.log == ["in a batch", "quiet"])
        batch.add(1)
        batch.add(2)
        async for result in batch():
            assert result == 1
            break  # leaving early leaks nothing


@BOTH
async def test_a_registered_object_travels_as_a_proxy(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        found = await proxy.myself()
        assert isinstance(found, Proxy)
        assert found._pyroUri == daemon.uri_for("service")
        async with found:
            assert await found.add(1, 1) == 2
        back = await proxy.echo(found)
        assert isinstance(back, Proxy)
        uri = await proxy.echo(Uri("PYRO:a@b:1"))
        assert uri == Uri("PYRO:a@b:1")


async def test_statistics(daemon: Daemon, service: Service) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy, Proxy(daemon.uri_for("service")) as other:
        await proxy.add(1)
        await other.add(1)
        stats = daemon.statistics()
        assert (stats.connections, stats.calls_in_flight, stats.busy_threads) == (2, 0, 0)
        assert (stats.streams, stats.objects) == (0, 2)


async def test_serve_tells_the_uris() -> None:
    async with trio.open_nursery() as nursery:
        uris = await nursery.start(serve, {"a": Service(), "b": Service})
        async with Proxy(uris["a"]) as first, Proxy(uris["b"]) as second:
            assert await first.add(1, 1) == 2
            assert await second.add(1, 2) == 3
        nursery.cancel_scope.cancel()


async def test_registration(daemon: Daemon, service: Service) -> None:
    with pytest.raises(DaemonError):
        daemon.register(service, "again")
    with pytest.raises(DaemonError):
        daemon.register(Service(), "service")
    with pytest.raises(DaemonError, match="no blanks"):
        daemon.register(Service(), "a b")
    other = Service()
    outside = Daemon()
    with pytest.raises(DaemonError, match="no address"):
        outside.register(other)
    daemon.register(other, "other")  # the attempt left no mark
    async with Proxy(daemon.uri_for(other)) as proxy:
        assert await proxy.add(1) == 1
        daemon.unregister(other)
        with pytest.raises(DaemonError, match="unknown object"):
            await proxy.add(1)


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack"])
async def test_others_are_served_while_a_large_request_is_read(daemon: Daemon, serializer: str) -> None:
    """Reading it may take seconds; it is the first request of its connection, too."""
    reading, go_on = threading.Event(), threading.Event()

    def revive(name: str, data: dict[str, Any]) -> str:
        reading.set()
        go_on.wait(60)
        return "read"

    @expose
    class Echo:
        async def echo(self, first: Any, *rest: Any) -> Any:
            return first

    uri = daemon.register(Echo())
    register_dict_to_class("tests.Slow", revive)
    results: list[Any] = []
    try:
        settings = Settings(serializer=serializer, compression=True)
        async with Proxy(uri, settings=settings) as large, Proxy(uri) as small, trio.open_nursery() as nursery:

            async def call() -> None:
                noise = "".join(map(str, range(100_000)))
                results.append(await large.echo({"__class__": "tests.Slow"}, noise))

            nursery.start_soon(call)
            await until(reading.is_set)
            assert await small.echo((1,)) == (1,)
            assert results == []
            go_on.set()
        assert results == ["read"]
    finally:
        unregister_dict_to_class("tests.Slow")


async def test_a_member_is_looked_for_anew_when_the_object_has_other_ones() -> None:
    """What a proxy remembers of a remote object lasts as long as the metadata it came with."""

    @expose
    class Before:
        async def old(self) -> str:
            return "old"

    @expose
    class After:
        async def new(self) -> str:
            return "new"

    async with Daemon() as daemon:
        uri = daemon.register(Before(), "thing")
        async with Proxy(uri) as proxy:
            assert await proxy.old() == "old"
            assert proxy.old is proxy.old, "remembered"
            daemon.unregister("thing")
            daemon.register(After(), "thing")
            proxy._pyroRelease()
            assert await proxy._pyroInvoke("new", (), {}) == "new"
            with pytest.raises(AttributeError):
                proxy.old  # noqa: B018  # looking for it is the test
            assert await proxy.new() == "new"
