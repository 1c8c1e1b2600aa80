"""Classes on the wire: what peers call them, what may be built, and whose converters apply."""

from __future__ import annotations

import sqlite3
import struct
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pyroxfer_core import errors
from pyroxfer_core.errors import Outcome, PyroError, RefusedError, RemoteError, SecurityError, SerializeError
from pyroxfer_core.serializers import (
    DEFAULT_REGISTRY,
    ClassRegistry,
    DaemonState,
    ExceptionWrapper,
    ProxyState,
    SerializedBlob,
    Serializer,
    SerializerContext,
    make_serializer,
    register_class_to_dict,
    register_dict_to_class,
    traceback_lines,
    unregister_class_to_dict,
    unregister_dict_to_class,
)
from pyroxfer_core.uri import Uri
from pyroxfer_core.wire.message import Message, MessageType

SAFE = ("serpent", "json", "marshal", "msgpack")
PEERS = {"48": SerializerContext(48), "502": SerializerContext(502), "own": SerializerContext(502, own=True)}
every_serializer = pytest.mark.parametrize("name", SAFE)
every_peer = pytest.mark.parametrize("peer", PEERS)


def there_and_back(one: Serializer, value: Any) -> Any:
    return one.loads(one.dumps(value))


def raw(one: Serializer, value: Any) -> Any:
    """What is on the wire for a value: read by a registry that gives every class as its dict."""
    names = ClassRegistry()
    for name in (f"{module}.{kind}" for module in MODULES for kind in KINDS):
        names.register_dict_to_class(name, lambda _, data: data)
    return make_serializer(one.name, replace(one.context, registry=names)).loads(one.dumps(value))


MODULES = ("Pyro4.core", "Pyro5.core", "Pyro5.client", "Pyro5.server", "Pyro4.errors", "Pyro5.errors",
           "Pyro4.futures", "pyroxfer_core.errors", "builtins", __name__, "somewhere")  # fmt: skip
KINDS = ("URI", "Proxy", "Daemon", "_ExceptionWrapper", "PyroError", "NamingError", "TimeoutError", "RefusedError",
         "ValueError", "Thing", "Slotted", "Stateful", "Error")  # fmt: skip


@dataclass
class Thing:
    name: str


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.left = 1


class Stateful:
    def __getstate__(self) -> dict[str, Any]:
        return {"state": 5}


class TestWords:
    @every_serializer
    def test_uri(self, name: str) -> None:
        uri = Uri("PYRO:thing@host:9")
        names = {"48": "Pyro4.core.URI", "502": "Pyro5.core.URI", "own": "Pyro5.core.URI"}
        for peer, context in PEERS.items():
            one = make_serializer(name, context)
            assert raw(one, uri)["__class__"] == names[peer]
            assert there_and_back(one, [uri, {"k": uri}] if name != "marshal" else uri) in (uri, [uri, {"k": uri}])

    @every_serializer
    @every_peer
    @pytest.mark.parametrize(
        "state",
        [
            ("PYRO", "thing", None, "::1", 9),
            ("PYRO", "thing", "/tmp/it's", None, None),
            ("PYRO", "both \"and' quotes", None, "", 2**70),
            ("PYRO", "thing", None, "host", True),
            ("PYRONAME", "\u00fc.thing", None, None, None),
        ],
    )
    def test_every_uri_arrives_as_it_was(self, name: str, peer: str, state: Any) -> None:
        uri, one = Uri.from_state(state), make_serializer(name, PEERS[peer])
        assert there_and_back(one, uri) == uri
        assert there_and_back(one, {"deep": [uri]} if name != "marshal" else uri) in (uri, {"deep": [uri]})

    def test_tags_of_a_uri_arrive_at_a_peer_of_ours(self) -> None:
        one, uri = make_serializer("msgpack", PEERS["own"]), Uri("PYROMETA:a,b@host:9090")
        assert there_and_back(one, [uri, {"k": uri}]) == [uri, {"k": uri}]
        assert there_and_back(one, uri) == uri

    @every_serializer
    def test_proxy_has_nine_values_for_pyro4_and_six_for_pyro5(self, name: str) -> None:
        proxy = ProxyState("PYRO:a@b:1", frozenset({"o"}), frozenset({"m"}), frozenset({"a"}), {"k": 1}, "json")
        old, new = (raw(make_serializer(name, PEERS[peer]), proxy) for peer in ("48", "502"))
        assert (old["__class__"], len(old["state"])) == ("Pyro4.core.Proxy", 9)
        assert (new["__class__"], len(new["state"])) == ("Pyro5.client.Proxy", 6)
        assert old["state"][5] is None
        for context in PEERS.values():
            assert there_and_back(make_serializer(name, context), proxy) == proxy

    @every_serializer
    @pytest.mark.parametrize("version", [48, 502])
    def test_both_vocabularies_are_read_whatever_the_protocol(self, name: str, version: int) -> None:
        one = make_serializer(name, SerializerContext(version))
        for library, proxy_name in (("Pyro4", "Pyro4.core.Proxy"), ("Pyro5", "Pyro5.client.Proxy")):
            state: list[Any] = ["PYRO:a@b:1", [], [], []]
            state += [0.0, None, "hello", 0] if library == "Pyro4" else ["hello", None]
            assert there_and_back(one, {"__class__": proxy_name, "state": state}) == ProxyState("PYRO:a@b:1")
            uri = {"__class__": f"{library}.core.URI", "state": ["PYROMETA", ["a", "b"], None, None, None]}
            assert there_and_back(one, uri) == Uri("PYROMETA:a,b")
            error = {"__class__": f"{library}.errors.NamingError", "args": ["unknown name"]}
            assert type(there_and_back(one, error)) is errors.NamingError

    @every_serializer
    def test_daemon_and_wrapped_exception(self, name: str) -> None:
        for context in PEERS.values():
            one = make_serializer(name, context)
            assert there_and_back(one, DaemonState()) == DaemonState()
            wrapped = there_and_back(one, ExceptionWrapper(KeyError("x")))
            with pytest.raises(KeyError, match="x"):
                raise wrapped.exception

    @pytest.mark.parametrize(
        "state",
        [
            None,
            [],
            ["PYRO:a@b:1", [], [], [], "hello"],
            [1, [], [], [], "hello", None],
            ["PYRO:a@b:1", [1], [], [], "hello", None],
            ["PYRO:a@b:1", [], "text", [], "hello", None],
            ["PYRO:a@b:1", [], [], [], "hello", 5],
        ],
    )
    def test_malformed_proxies(self, state: Any) -> None:
        with pytest.raises(SerializeError):
            there_and_back(
                make_serializer("serpent", PEERS["502"]), {"__class__": "Pyro5.client.Proxy", "state": state}
            )

    @pytest.mark.parametrize("state", [None, [], [1, 2, 3, 4, 5], ["PYRO", "a", None, 5, None], "PYRO:a@b:1"])
    def test_malformed_uris(self, state: Any) -> None:
        with pytest.raises(SerializeError):
            there_and_back(make_serializer("json", PEERS["502"]), {"__class__": "Pyro5.core.URI", "state": state})


class TestExceptions:
    @every_serializer
    @every_peer
    def test_come_back_with_their_attributes(self, name: str, peer: str) -> None:
        one = make_serializer(name, PEERS[peer])
        try:
            raise ValueError("boom", 42)
        except ValueError as exc:
            exc.add_note("a note")
            exc.detail = {"k": 1}  # type: ignore[attr-defined]  # what the test is about
            body = one.dumps_exception(exc, traceback_lines(exc))
        arrived = one.loads(body)
        assert (type(arrived), arrived.args) == (ValueError, ("boom", 42))
        assert (arrived.detail, arrived.__notes__) == ({"k": 1}, ["a note"])
        assert arrived._pyroTraceback[-2:] == ["ValueError: ('boom', 42)\n", "a note\n"]

    @every_serializer
    @every_peer
    def test_errors_of_this_library_are_the_peers_own(self, name: str, peer: str) -> None:
        one = make_serializer(name, PEERS[peer])
        library = "Pyro4" if peer == "48" else "Pyro5"
        assert raw(one, errors.TimeoutError("late"))["__class__"] == f"{library}.errors.TimeoutError"
        assert type(there_and_back(one, errors.TimeoutError("late"))) is errors.TimeoutError

    @every_serializer
    def test_what_pyro_has_not_becomes_its_pyroerror(self, name: str) -> None:
        for peer in ("48", "502"):
            one = make_serializer(name, PEERS[peer])
            refused = there_and_back(one, RefusedError("busy"))
            assert (type(refused), str(refused)) == (PyroError, "NotSent: busy")
            foreign = there_and_back(one, RemoteError("their.Error", ("bad", 1)))
            assert (type(foreign), str(foreign)) == (PyroError, "their.Error: bad, 1")

    @every_serializer
    def test_between_own_peers_class_and_outcome_travel(self, name: str) -> None:
        one = make_serializer(name, PEERS["own"])
        refused = there_and_back(one, RefusedError("busy"))
        assert (type(refused), refused.outcome) == (RefusedError, Outcome.NOT_SENT)
        lost = there_and_back(one, errors.ConnectionClosedError("gone", outcome=Outcome.UNKNOWN))
        assert lost.outcome is Outcome.UNKNOWN
        foreign = there_and_back(one, RemoteError("their.Error", ("bad", 1)))
        assert (foreign.class_name, foreign.remote_args) == ("their.Error", ("bad", 1))

    @every_serializer
    @pytest.mark.parametrize(
        "classname", ["their.Error", "__main__.Error", "asyncio.CancelledError", "exceptions.Gone"]
    )
    def test_unknown_classes_are_remote_errors(self, name: str, classname: str) -> None:
        data = {
            "__class__": classname,
            "__exception__": True,
            "args": ["bad", {"__class__": "their.Thing"}],
            "attributes": {"_pyroTraceback": ["line\n"], "code": 7, "class_name": "lie"},
        }
        error = there_and_back(make_serializer(name, PEERS["502"]), data)
        assert type(error) is RemoteError
        assert (error.class_name, error.remote_args[0]) == (classname, "bad")
        assert (vars(error)["_pyroTraceback"], vars(error)["code"]) == (["line\n"], 7)

    @every_serializer
    @pytest.mark.parametrize(
        "kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "int", "eval"]
    )
    def test_a_server_cannot_end_its_client(self, name: str, kind: str) -> None:
        data = {"__class__": f"builtins.{kind}", "__exception__": True, "args": [], "attributes": {}}
        error = there_and_back(make_serializer(name, PEERS["502"]), data)
        assert (type(error), error.class_name) == (RemoteError, f"builtins.{kind}")

    @every_serializer
    def test_attributes_cannot_replace_what_an_exception_is_made_of(self, name: str) -> None:
        attributes = {"__dict__": {}, "__cause__": 1, "with_traceback": 1, "add_note": 2, "fine": 3,
                      "__notes__": [1], "characters_written": "x"}  # fmt: skip
        data = {"__class__": "builtins.OSError", "__exception__": True, "args": [], "attributes": attributes}
        error = there_and_back(make_serializer(name, PEERS["502"]), data)
        assert vars(error) == {"fine": 3}

    @every_serializer
    def test_constructors_that_refuse_their_arguments(self, name: str) -> None:
        one = make_serializer(name, PEERS["502"])
        data = {"__class__": "builtins.UnicodeDecodeError", "__exception__": True, "args": [1], "attributes": {}}
        error = there_and_back(one, data)
        assert (type(error), error.class_name) == (RemoteError, "builtins.UnicodeDecodeError")

    @every_serializer
    @pytest.mark.parametrize(
        ("classname", "kind"),
        [
            ("ValueError", ValueError),
            ("builtins.KeyError", KeyError),
            ("exceptions.IOError", OSError),
            ("builtins.StopIteration", StopIteration),
            ("sqlite3.OperationalError", sqlite3.OperationalError),
            ("struct.error", struct.error),
            ("Pyro4.errors.ConnectionClosedError", errors.ConnectionClosedError),
        ],
    )
    def test_names_of_exceptions(self, name: str, classname: str, kind: type) -> None:
        data = {"__class__": classname, "__exception__": True, "args": ["x"], "attributes": {}}
        error = there_and_back(make_serializer(name, PEERS["48"]), data)
        assert (type(error), error.args) == (kind, ("x",))

    @every_serializer
    def test_one_that_cannot_be_written_is_described(self, name: str) -> None:
        one = make_serializer(name, PEERS["502"])
        error = one.loads(one.dumps_exception(ValueError(range(3)), ["trace\n"]))
        assert type(error) is PyroError
        assert "Error serializing exception: " in str(error)
        assert "range(0, 3)" in str(error)
        assert vars(error)["_pyroTraceback"] == ["trace\n"]

    def test_key_order_on_the_wire(self) -> None:
        body = bytes(make_serializer("serpent", PEERS["48"]).dumps_exception(ValueError("x"), ["t"]))
        assert body.endswith(
            b"{'__class__':'builtins.ValueError','__exception__':True,'args':('x',),"
            b"'attributes':{'_pyroTraceback':['t']}}"
        )

    def test_exceptions_in_exceptions(self) -> None:
        one = make_serializer("serpent", PEERS["502"])
        group = there_and_back(one, ExceptionGroup("both", [ValueError(1), PyroError("bad")]))
        assert [type(error) for error in group.exceptions] == [ValueError, PyroError]


class TestRules:
    @every_serializer
    def test_names_with_double_underscores_are_refused(self, name: str) -> None:
        one = make_serializer(name, PEERS["502"])
        for data in ({"__class__": "os.__import__"}, {"__class__": "a.__b", "__exception__": True}):
            with pytest.raises(SecurityError):
                there_and_back(one, [data])

    @every_serializer
    @pytest.mark.parametrize(
        "classname", ["their.Thing", "builtins.ValueError", "Pyro5.errors.Outcome", "float", 5, None]
    )
    def test_other_classes_are_unsupported(self, name: str, classname: Any) -> None:
        with pytest.raises(SerializeError, match="unsupported serialized class"):
            there_and_back(make_serializer(name, PEERS["502"]), {"__class__": classname})

    @every_serializer
    def test_a_converter_comes_before_every_rule(self, name: str) -> None:
        registry = ClassRegistry()
        for classname in ("a.__b", "Pyro5.core.URI", "builtins.ValueError"):
            registry.register_dict_to_class(classname, lambda classname, data: (classname, len(data)))
            one = make_serializer(name, SerializerContext(502, registry=registry))
            assert there_and_back(one, {"__class__": classname, "x": 1}) == (classname, 2)

    @every_serializer
    @every_peer
    def test_state_of_objects(self, name: str, peer: str) -> None:
        one = make_serializer(name, PEERS[peer])
        assert raw(one, Thing("x")) == {"name": "x", "__class__": f"{__name__}.Thing"}
        assert raw(one, Slotted()) == {"left": 1, "__class__": f"{__name__}.Slotted"}
        with_class = {"state": 5, "__class__": f"{__name__}.Stateful"}
        assert raw(one, Stateful()) == (with_class if name == "serpent" else {"state": 5})

    @every_serializer
    def test_objects_inside_containers_arrive_at_any_depth(self, name: str) -> None:
        registry = ClassRegistry()
        registry.register_dict_to_class("somewhere.Thing", lambda _, data: Thing(data["name"]))
        one = make_serializer(name, SerializerContext(502, registry=registry))
        data = {"__class__": "somewhere.Thing", "name": "x"}
        arrived = one.loads_call(one.dumps_call("o", "m", ([{"k": data}], (data,)), {"key": [data]}))
        assert arrived[2][0][0]["k"] == Thing("x")
        assert arrived[2][1][0] == Thing("x")
        assert arrived[3] == {"key": [Thing("x")]}

    def test_objects_as_members_of_sets_between_own_peers(self) -> None:
        one = make_serializer("msgpack", PEERS["own"])
        uris = {Uri("PYRO:a@b:1"), Uri("PYRO:a@b:2")}
        assert there_and_back(one, uris) == uris
        assert there_and_back(one, [frozenset({(1, Uri("PYRO:a@b:1"))})]) == [frozenset({(1, Uri("PYRO:a@b:1"))})]


class TestRegistry:
    @every_serializer
    @every_peer
    def test_a_converter_for_uris_comes_before_our_own_form(self, name: str, peer: str) -> None:
        registry = ClassRegistry()
        registry.register_class_to_dict(Uri, lambda uri: {"__class__": "somewhere.Thing", "state": uri.port})
        registry.register_dict_to_class("somewhere.Thing", lambda _, data: data["state"])
        one = make_serializer(name, replace(PEERS[peer], registry=registry))
        assert there_and_back(one, Uri("PYRO:a@b:7")) == 7
        if name != "marshal":
            assert there_and_back(one, [Uri("PYRO:a@b:7")]) == [7]

    @every_serializer
    def test_a_reader_that_fails_is_asked_once(self, name: str) -> None:
        registry, asked = ClassRegistry(), []

        def read(classname: str, data: dict[str, Any]) -> Any:
            asked.append(classname)
            return data["missing"]

        registry.register_dict_to_class("somewhere.Thing", read)
        one = make_serializer(name, replace(PEERS["own"], registry=registry))
        with pytest.raises(SerializeError, match="KeyError: 'missing'"):
            there_and_back(one, {"__class__": "somewhere.Thing"})
        assert asked == ["somewhere.Thing"]

    @every_serializer
    def test_both_ways(self, name: str) -> None:
        registry = ClassRegistry()
        registry.register_class_to_dict(Thing, lambda thing: {"__class__": "somewhere.Thing", "n": thing.name})
        registry.register_dict_to_class("somewhere.Thing", lambda _, data: Thing(data["n"]))
        one = make_serializer(name, SerializerContext(502, registry=registry))
        assert there_and_back(one, Thing("x")) == Thing("x")

    @every_serializer
    def test_registries_do_not_leak(self, name: str) -> None:
        mine, theirs = ClassRegistry(), ClassRegistry()
        mine.register_class_to_dict(Thing, lambda thing: {"__class__": "somewhere.Thing", "mine": True})
        assert raw(make_serializer(name, SerializerContext(502, registry=mine)), Thing("x"))["mine"]
        other = raw(make_serializer(name, SerializerContext(502, registry=theirs)), Thing("x"))
        assert other == {"name": "x", "__class__": f"{__name__}.Thing"}

    def test_subclasses_follow_the_class_registered_first(self) -> None:
        registry = ClassRegistry()
        one = make_serializer("json", SerializerContext(502, registry=registry))
        registry.register_class_to_dict(Exception, lambda _: {"by": "Exception"})
        registry.register_class_to_dict(ValueError, lambda _: {"by": "ValueError"})
        assert there_and_back(one, UnicodeError()) == {"by": "Exception"}
        registry.unregister_class_to_dict(Exception)
        assert there_and_back(one, UnicodeError()) == {"by": "ValueError"}

    def test_serpent_can_be_left_out(self) -> None:
        registry = ClassRegistry()
        registry.register_class_to_dict(Thing, lambda _: {"converted": True}, serpent_too=False)
        context = SerializerContext(502, registry=registry)
        assert raw(make_serializer("serpent", context), Thing("x")) == {"name": "x", "__class__": f"{__name__}.Thing"}
        assert there_and_back(make_serializer("json", context), Thing("x")) == {"converted": True}

    def test_the_functions_act_on_the_default(self) -> None:
        one = make_serializer("msgpack", SerializerContext(502))
        register_class_to_dict(Thing, lambda thing: {"__class__": "somewhere.Thing"})
        register_dict_to_class("somewhere.Thing", lambda name, _: name)
        try:
            assert there_and_back(one, Thing("x")) == "somewhere.Thing"
        finally:
            unregister_class_to_dict(Thing)
            unregister_dict_to_class("somewhere.Thing")
        unregister_class_to_dict(Thing)
        assert DEFAULT_REGISTRY.reader("somewhere.Thing") is None

    def test_misuse(self) -> None:
        registry = ClassRegistry()
        with pytest.raises(TypeError):
            registry.register_class_to_dict("Thing", dict)  # type: ignore[arg-type]  # what is refused
        with pytest.raises(TypeError):
            registry.register_dict_to_class(Thing, dict)  # type: ignore[arg-type]  # what is refused

    @every_serializer
    def test_failing_converters_are_serialize_errors(self, name: str) -> None:
        registry = ClassRegistry()
        registry.register_class_to_dict(Thing, lambda thing: thing.missing)
        registry.register_class_to_dict(Slotted, lambda thing: 5)  # type: ignore[arg-type,return-value]  # what is refused
        registry.register_dict_to_class("x", lambda _, data: data["missing"])
        one = make_serializer(name, SerializerContext(502, registry=registry))
        for value in (Thing("x"), Slotted()):
            with pytest.raises(SerializeError):
                one.dumps(value)
        with pytest.raises(SerializeError):
            there_and_back(one, {"__class__": "x"})


class TestHooks:
    @every_serializer
    def test_proxies_and_served_objects(self, name: str) -> None:
        state = ProxyState("PYRO:thing@host:9")
        context = SerializerContext(
            502,
            proxy_factory=lambda state: ("proxy", state.uri_text),
            proxy_state_of=lambda value: state if isinstance(value, Slotted) else None,
            autoproxy=lambda value: state if isinstance(value, Thing) else None,
        )
        one = make_serializer(name, context)
        for value in (Thing("x"), Slotted(), state):
            assert there_and_back(one, value) == ("proxy", "PYRO:thing@host:9")

    def test_the_daemon_of_an_object_does_not_travel(self) -> None:
        thing = Thing("x")
        thing._pyroDaemon = object()  # type: ignore[attr-defined]  # Pyro's mark
        assert raw(make_serializer("json", PEERS["502"]), thing)["_pyroDaemon"] is None


class TestBlob:
    @every_serializer
    @every_peer
    def test_data_are_right_with_every_serializer(self, name: str, peer: str) -> None:
        one = make_serializer(name, PEERS[peer])
        body = one.dumps_call("object", "method", [1, 2, "three"], {})
        message = Message(MessageType.INVOKE, 1, name, 0, body)
        blob = SerializedBlob.from_message("label", message, body, one)
        assert list(blob.deserialized()) == [1, 2, "three"]
        assert (blob.info, blob.serializer_name) == ("label", name)
        assert blob.message is message
        assert blob.message.body is body

    def test_made_here(self) -> None:
        blob = SerializedBlob("label", [1, 2])
        assert blob.deserialized() == [1, 2]
        assert (blob.message, blob.serializer_name) == (None, None)
        with pytest.raises(TypeError):
            SerializedBlob("label", [1, 2], is_blob=True)

    @every_serializer
    @every_peer
    def test_is_no_ordinary_value(self, name: str, peer: str) -> None:
        with pytest.raises(SerializeError, match="only positional argument"):
            make_serializer(name, PEERS[peer]).dumps_call("o", "m", [SerializedBlob("x", [1])], {})


def test_a_converter_registered_while_its_class_is_looked_for_is_found_from_then_on() -> None:
    registry = ClassRegistry()

    class Subclassed(type):
        def __subclasscheck__(cls, other: type) -> bool:
            registry.register_class_to_dict(Thing, lambda thing: {"__class__": "somewhere.Thing"})
            return False

    class Other(metaclass=Subclassed):
        pass

    registry.register_class_to_dict(Other, lambda other: {"__class__": "somewhere.Other"})
    assert registry.to_dict(Thing("one")) is None
    assert registry.to_dict(Thing("one")) == {"__class__": "somewhere.Thing"}
