"""Registration, instance modes, the context of a call, and what requests and errors become."""

from __future__ import annotations

import gc
import threading
import uuid
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyroxfer_core import errors
from pyroxfer_core.access import Identity
from pyroxfer_core.errors import (
    DaemonError,
    NamingError,
    Outcome,
    PyroError,
    RefusedError,
    SecurityError,
    SerializeError,
)
from pyroxfer_core.objects.context import CallContext, TrackedResources, current_call, current_context_var
from pyroxfer_core.objects.expose import behavior, expose, exposed
from pyroxfer_core.objects.invoke import batch_calls, prepare, prepare_method, reply_for_exception
from pyroxfer_core.objects.table import ObjectTable
from pyroxfer_core.wire.message import Message, MessageType


@expose
class Service:
    def __init__(self) -> None:
        self.calls = 0
        self._level = 1

    def add(self, left: int, right: int) -> int:
        return left + right

    @property
    def level(self) -> int:
        return self._level

    @level.setter
    def level(self, value: int) -> None:
        self._level = value


def fresh(mode: str = "session", creator: Any = None) -> Any:
    @behavior(mode, creator)
    class Fresh(Service):
        def __len__(self) -> int:
            return 0  # falsy on purpose

    return Fresh


class TestRegistration:
    def test_default_id(self) -> None:
        table = ObjectTable("daemon")
        service = Service()
        object_id = table.register(service)
        assert object_id.startswith("obj_")
        assert uuid.UUID(hex=object_id[4:])
        assert (service._pyroId, service._pyroDaemon) == (object_id, "daemon")  # type: ignore[attr-defined]
        assert table.get(object_id).target is service
        assert table.ids() == [object_id]

    def test_taken(self) -> None:
        table = ObjectTable("daemon")
        service = Service()
        table.register(service, "a")
        with pytest.raises(DaemonError, match="already has a Pyro id"):
            table.register(service, "b")
        with pytest.raises(DaemonError, match="already registered with the id 'a'"):
            table.register(Service(), "a")
        other = Service()
        table.register(other, "a", force=True)
        assert table.get("a").target is other
        table.unregister(service)
        assert table.get("a").target is other

    def test_an_instance_and_a_subclass_of_a_registered_class_have_ids_of_their_own(self) -> None:
        """They see the mark of their class, which says nothing about them."""
        table = ObjectTable("daemon")
        base = fresh()
        derived = type("Derived", (base,), {})
        instance = base()
        table.register(base, "base")
        table.register(derived, "derived")
        table.register(instance, "instance")
        assert [table.id_of(thing) for thing in (instance, base(), derived())] == ["instance", "base", "derived"]
        for thing in (base, derived, instance):
            with pytest.raises(DaemonError, match="already has a Pyro id"):
                table.register(thing, "another")
        table.unregister(instance)
        assert table.id_of(instance) == "base"

    def test_an_id_is_given_once_whoever_comes_at_the_same_time(self) -> None:
        """Another thread registers while an object is being marked; a moment is enough for it if nothing stops it."""
        table = ObjectTable("daemon")
        refused: list[Exception] = []

        def register() -> None:
            try:
                table.register(Service(), "id")
            except DaemonError as error:
                refused.append(error)

        rival = threading.Thread(target=register)

        class Marked(Service):
            def __setattr__(self, name: str, value: Any) -> None:
                if name == "_pyroId":
                    rival.start()
                    rival.join(0.05)
                super().__setattr__(name, value)

        mine = Marked()
        table.register(mine, "id")
        rival.join()
        assert table.get("id").target is mine
        assert [str(error) for error in refused] == ["an object or class is already registered with the id 'id'"]

    @pytest.mark.parametrize("object_id", ["a b", "a@b", "a\n", "\t"])
    def test_ids_that_cannot_stand_in_a_uri(self, object_id: str) -> None:
        with pytest.raises(DaemonError):
            ObjectTable("daemon").register(Service(), object_id)

    def test_ids_are_text(self) -> None:
        with pytest.raises(TypeError):
            ObjectTable("daemon").register(Service(), 5)  # type: ignore[arg-type]  # what is refused

    def test_objects_that_cannot_be_marked(self) -> None:
        with pytest.raises(DaemonError, match="int cannot be registered"):
            ObjectTable("daemon").register(5)

    def test_unregister(self) -> None:
        table = ObjectTable("daemon")
        service, clazz = Service(), fresh()
        table.register(service, "a")
        table.register(clazz, "b")
        table.unregister(service)
        table.unregister("b")
        assert table.ids() == []
        assert not hasattr(service, "_pyroId")
        assert not hasattr(clazz, "_pyroDaemon")
        with pytest.raises(DaemonError, match="unknown object"):
            table.get("a")
        table.unregister("a")
        with pytest.raises(DaemonError, match="not registered"):
            table.unregister(service)
        with pytest.raises(ValueError, match="object id"):
            table.unregister(None)

    def test_the_daemon_itself_stays(self) -> None:
        table = ObjectTable("daemon")
        table.register(Service(), "Pyro.Daemon")
        table.unregister("Pyro.Daemon")
        assert table.ids() == ["Pyro.Daemon"]

    def test_ids_of_served_objects(self) -> None:
        table, other = ObjectTable("daemon"), ObjectTable("other")
        service, clazz = Service(), fresh()
        table.register(service, "a")
        table.register(clazz, "b")
        assert (table.id_of(service), table.id_of(clazz())) == ("a", "b")
        assert (table.id_of(clazz), table.id_of(Service()), table.id_of(5)) == ("b", None, None)
        assert other.id_of(service) is None


class TestInstances:
    def test_an_instance_serves_all(self) -> None:
        table = ObjectTable("daemon")
        service = Service()
        entry = table.get(table.register(service))
        assert table.instance(entry, {}) is table.instance(entry, {}) is service

    def test_session(self) -> None:
        table = ObjectTable("daemon")
        entry = table.get(table.register(fresh()))
        mine: dict[type, Any] = {}
        assert table.instance(entry, mine) is table.instance(entry, mine)
        assert table.instance(entry, mine) is not table.instance(entry, {})
        assert not entry.concurrent

    def test_single(self) -> None:
        table = ObjectTable("daemon")
        entry = table.get(table.register(fresh("single")))
        assert table.instance(entry, {}) is table.instance(entry, {})
        assert entry.concurrent

    def test_percall(self) -> None:
        table = ObjectTable("daemon")
        entry = table.get(table.register(fresh("percall")))
        session: dict[type, Any] = {}
        assert table.instance(entry, session) is not table.instance(entry, session)
        assert session == {}

    def test_session_is_the_default(self) -> None:
        class Plain: ...

        table = ObjectTable("daemon")
        assert table.get(table.register(Plain)).mode == "session"

    def test_a_single_ends_with_its_registration_under_every_id(self) -> None:
        table = ObjectTable("daemon")
        clazz = fresh("single")
        one, other = table.get(table.register(clazz, "one")), table.get(table.register(clazz, "other", force=True))
        first = table.instance(one, {})
        assert table.instance(other, {}) is first
        assert one.fixed is other.fixed is first, "calls need not look for it"
        table.unregister("other")
        assert one.fixed is None
        assert table.instance(one, {}) is not first

    def test_a_single_is_made_once_by_many_threads(self) -> None:
        made: list[Any] = []
        gate = threading.Barrier(8)

        def create(clazz: Any) -> Any:
            made.append(clazz())
            return made[-1]

        table = ObjectTable("daemon")
        entry = table.get(table.register(fresh("single", create)))
        found: list[Any] = []

        def ask() -> None:
            gate.wait()
            found.append(table.instance(entry, {}))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert all(instance is made[0] for instance in found)

    @pytest.mark.parametrize("mode", ["session", "single", "percall"])
    def test_the_creator_must_return_an_instance(self, mode: str) -> None:
        table = ObjectTable("daemon")
        entry = table.get(table.register(fresh(mode, lambda clazz: 5)))
        with pytest.raises(TypeError, match="returned a int"):
            table.instance(entry, {})


@dataclass
class FakeCaller:
    address: str = "peer"
    version: int = 502
    is_own: bool = False
    identity: Identity | None = None
    resources: TrackedResources = field(default_factory=TrackedResources)

    def room_for(self, size: int) -> AbstractAsyncContextManager[None]:
        return nullcontext()


def context_of(correlation_id: bytes | None = None, **annotations: bytes) -> CallContext:
    message = Message(MessageType.INVOKE, 3, "serpent", 0, b"", dict(annotations), correlation_id)
    return CallContext(FakeCaller(), message)


class TestContext:
    def test_outside_a_call(self) -> None:
        for ask in (lambda: current_call.seq, lambda: current_call.track_resource(1), current_call.get):
            with pytest.raises(PyroError, match="no call context"):
                ask()
        with pytest.raises(PyroError, match="no call context"):
            current_call.response_annotations = {}

    def test_inside_a_call(self) -> None:
        context = context_of(ABCD=b"x")
        token = current_context_var.set(context)
        try:
            assert current_call.get() is context
            assert (current_call.seq, current_call.client_sock_addr) == (3, "peer")
            assert current_call.annotations == {"ABCD": b"x"}
            current_call.response_annotations["EFGH"] = b"y"
            current_call.response_annotations = {**current_call.response_annotations, "IJKL": b"z"}
        finally:
            current_context_var.reset(token)
        assert context.response_annotations == {"EFGH": b"y", "IJKL": b"z"}

    def test_correlation_id(self) -> None:
        known = uuid.uuid4()
        assert context_of(known.bytes).correlation_id == known
        assert context_of(known.bytes).correlation_bytes == context_of(known.bytes).known_correlation == known.bytes
        unknown = context_of()
        assert unknown.known_correlation is None
        assert unknown.correlation_id == unknown.correlation_id
        assert unknown.correlation_bytes == unknown.correlation_id.bytes

    def test_contexts_do_not_share_annotations(self) -> None:
        first, second = context_of(), context_of()
        first.response_annotations["ABCD"] = b"x"
        first.annotations["ABCD"] = b"x"
        assert second.response_annotations == second.annotations == {}

    def test_tracked_resources_are_closed_once_and_held_weakly(self) -> None:
        class Resource:
            def __init__(self, fails: bool = False) -> None:
                self.closed, self.fails = 0, fails

            def __del__(self) -> None:
                gone.append(self.closed)

            def close(self) -> None:
                self.closed += 1
                if self.fails:
                    raise OSError("already gone")

        gone: list[int] = []
        context = context_of()
        resources = context.client.resources
        context.track_resource(Resource())
        gc.collect()
        assert gone == [0]
        bad = Resource(fails=True)
        good = Resource()
        kept = Resource()
        for resource in (bad, good, kept):
            context.track_resource(resource)
        context.untrack_resource(kept)
        del resource
        resources.close_all()
        resources.close_all()
        assert (bad.closed, good.closed, kept.closed) == (1, 1, 0)
        late = Resource()
        context.track_resource(late)  # by a thread that goes on after the client has left
        assert late.closed == 1


class TestPrepare:
    def setup_method(self) -> None:
        self.service = Service()
        self.exposed = exposed(Service)

    def run(self, method: str, args: Any, kwargs: Any) -> Any:
        call = prepare(self.exposed, self.service, method, args, kwargs)
        return call.function(*call.args, **call.kwargs)

    def test_a_method(self) -> None:
        assert self.run("add", [1], {"right": 2}) == 3

    def test_attributes(self) -> None:
        assert self.run("__setattr__", ["level", 8], None) is None
        assert self.run("__getattr__", ("level",), None) == 8

    @pytest.mark.parametrize(
        ("method", "args", "kwargs", "kind"),
        [
            ("__getattr__", [], None, TypeError),
            ("__getattr__", ["a", "b"], None, TypeError),
            ("__setattr__", ["level"], None, TypeError),
            ("__getattr__", ["_level"], None, AttributeError),
            ("add", [1, 2], None, TypeError),
            ("_level", [], {}, AttributeError),
        ],
    )
    def test_refused(self, method: str, args: Any, kwargs: Any, kind: type[Exception]) -> None:
        with pytest.raises(kind):
            self.run(method, args, kwargs)

    def test_attributes_are_private_names_in_a_batch(self) -> None:
        with pytest.raises(AttributeError, match="private attribute '__getattr__'"):
            prepare_method(self.exposed, self.service, "__getattr__", ["level"], {})

    def test_batches(self) -> None:
        class Text(str):
            """Not what most methods are."""

        for name in ("x", Text("x")):
            calls: list[Any] = [["add", [1, 2], {}], (name, (), {})]
            assert [(method, args, kwargs) for method, args, kwargs in batch_calls(calls)] == [
                ("add", [1, 2], {}),
                ("x", (), {}),
            ]

    @pytest.mark.parametrize("call", ["add", 1, ["add", [1]], [1, [], {}], ["a", "b", {}], ["a", [], None]])
    def test_malformed_batches(self, call: Any) -> None:
        with pytest.raises(TypeError, match="a batch is a list"):
            batch_calls([["add", [], {}], call])


class TestReplies:
    @pytest.mark.parametrize("own", [False, True])
    def test_ordinary_errors_are_answered(self, own: bool) -> None:
        for exc in (ValueError("x"), PyroError("x"), errors.NamingError("x"), DaemonError("x")):
            reply = reply_for_exception(exc, own=own, dispatched=True)
            assert (reply.exception, reply.close, reply.log) == (exc, False, False)

    @pytest.mark.parametrize("exc", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
    def test_what_is_no_exception_is_not_answered(self, exc: BaseException) -> None:
        reply = reply_for_exception(exc, own=True, dispatched=True)
        assert (reply.exception, reply.close) == (None, True)

    @pytest.mark.parametrize("exc", [SerializeError("x"), SecurityError("x")])
    def test_requests_that_cannot_be_read_end_a_stock_connection(self, exc: Exception) -> None:
        assert reply_for_exception(exc, own=False, dispatched=False).close
        assert not reply_for_exception(exc, own=True, dispatched=False).close
        assert reply_for_exception(exc, own=False, dispatched=False).exception is exc

    @pytest.mark.parametrize(
        ("exc", "dispatched", "text"),
        [
            (RefusedError("busy"), False, "NotSent: busy"),
            (errors.TimeoutError("late", outcome=Outcome.UNKNOWN), False, "Unknown: late"),
            (errors.TimeoutError("late", outcome=Outcome.UNKNOWN), True, "Unknown: late"),
            (errors.TimeoutError("late"), True, "TimeoutError: late"),
            (RefusedError("busy"), True, "RefusedError: busy"),
            (errors.ConnectionClosedError("no", outcome=Outcome.NOT_SENT), True, "ConnectionClosedError: no"),
        ],
    )
    def test_stock_peers_get_no_communication_error(self, exc: Exception, dispatched: bool, text: str) -> None:
        reply = reply_for_exception(exc, own=False, dispatched=dispatched)
        assert type(reply.exception) is PyroError
        assert str(reply.exception) == text
        assert not reply.close

    def test_a_nested_refusal_is_executed_for_the_caller(self) -> None:
        reply = reply_for_exception(RefusedError("busy"), own=True, dispatched=True)
        assert isinstance(reply.exception, RefusedError)
        assert reply.exception.outcome is Outcome.EXECUTED

    def test_a_refusal_of_this_call_keeps_its_outcome(self) -> None:
        reply = reply_for_exception(RefusedError("busy"), own=True, dispatched=False)
        assert isinstance(reply.exception, RefusedError)
        assert reply.exception.outcome is Outcome.NOT_SENT

    @pytest.mark.parametrize("own", [False, True])
    @pytest.mark.parametrize("error", [ValueError(), NamingError(), RefusedError(), SerializeError()])
    def test_callback_errors_are_logged_and_end_no_connection(self, error: Exception, own: bool) -> None:
        reply = reply_for_exception(error, own=own, dispatched=True, callback=True)
        assert (reply.close, reply.log) == (False, True)
