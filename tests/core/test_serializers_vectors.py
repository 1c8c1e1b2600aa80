"""Every recorded payload of stock Pyro4 and Pyro5 is read; requests are written back byte for byte."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pyroxfer_core.errors import PyroError
from pyroxfer_core.serializers import (
    ExceptionWrapper,
    ProxyState,
    SerializerContext,
    make_serializer,
)
from pyroxfer_core.uri import Uri

VECTORS = Path(__file__).parent.parent / "vectors"
SAFE = ("serpent", "json", "marshal", "msgpack")
CONNECT, CONNECTOK, INVOKE = 1, 2, 4


def load(library: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = json.loads((VECTORS / f"{library}-frames.json").read_text())["vectors"]
    return [frame for frame in frames if frame["payload"].get("serializer") in SAFE]


def body_of(frame: dict[str, Any]) -> bytes:
    if "decompressed_hex" in frame["payload"]:
        return bytes.fromhex(frame["payload"]["decompressed_hex"])
    data = bytes.fromhex(frame["hex"])
    size = frame["header"]["data_size"]
    return data[len(data) - size :]


ALL = [frame for library in ("pyro4", "pyro5") for frame in load(library)]
REQUESTS = [frame for frame in ALL if frame["header"]["type"] == INVOKE]
ANSWERS = [frame for frame in ALL if frame["header"]["type"] != INVOKE]


def named(name: str) -> dict[str, Any]:
    return next(frame for frame in ALL if frame["name"] == name)


def read(frame: dict[str, Any]) -> Any:
    serializer = make_serializer(frame["payload"]["serializer"], SerializerContext(frame["protocol_version"]))
    body = body_of(frame)
    return serializer.loads_call(body) if frame["header"]["type"] == INVOKE else serializer.loads(body)


def as_first_written(value: Any) -> Any:
    """serpent hands bytes out as dicts; what was written were bytes."""
    if isinstance(value, dict) and value.get("encoding") == "base64":
        return base64.b64decode(value["data"])
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_first_written, value))
    return value


def test_every_safe_payload_is_there() -> None:
    assert len(REQUESTS) + len(ANSWERS) == 742
    assert len(REQUESTS) == 261


@pytest.mark.parametrize("frame", REQUESTS, ids=lambda frame: frame["name"])
def test_requests_are_read(frame: dict[str, Any]) -> None:
    object_id, method, args, kwargs = read(frame)
    assert object_id
    assert method
    assert isinstance(args, (list, tuple))
    assert (kwargs is None) == (method in ("__getattr__", "__setattr__", "<batch>"))


@pytest.mark.parametrize("frame", ANSWERS, ids=lambda frame: frame["name"])
def test_answers_are_read(frame: dict[str, Any]) -> None:
    value = read(frame)
    kind = frame["header"]["type"]
    if frame["session"] == "p4.handshake-no-metadata" and kind == CONNECTOK:
        assert value == "hello"
    elif kind == CONNECTOK:
        assert value["handshake"]
        assert set(value["meta"]) == {"methods", "oneway", "attrs"}
    elif "EXCEPTION" in frame["header"]["flag_names"]:
        assert isinstance(value, Exception)
    elif kind == CONNECT:
        assert "handshake" in value


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_read(form: type) -> None:
    for name in SAFE:
        serializer = make_serializer(name, SerializerContext(502))
        body = serializer.dumps_call("object", "method", [Uri("PYRO:a@b:1")], {})
        assert serializer.loads_call(form(body))[2][0] == Uri("PYRO:a@b:1")


REWRITTEN = [frame for frame in REQUESTS if frame["payload"]["serializer"] != "marshal"]


def test_the_rewritten_requests_are_counted() -> None:
    assert len(REWRITTEN) == 227


@pytest.mark.parametrize("frame", REWRITTEN, ids=lambda frame: frame["name"])
def test_requests_are_written_as_stock_does(frame: dict[str, Any]) -> None:
    name = frame["payload"]["serializer"]
    own = "bytes-repr" in frame["session"]  # the stock option that writes bytes as we do between own peers
    serializer = make_serializer(name, SerializerContext(frame["protocol_version"], own=own))
    object_id, method, args, kwargs = serializer.loads_call(body_of(frame))
    if name == "serpent":
        args = as_first_written(args)
    assert serializer.dumps_call(object_id, method, args, kwargs) == body_of(frame)


@pytest.mark.parametrize("library", ["p4", "p5"])
@pytest.mark.parametrize("name", ["serpent", "json", "msgpack"])
def test_library_objects(library: str, name: str) -> None:
    assert isinstance(read(named(f"{library}.objects-{name}.uri.response")), Uri)
    proxy = read(named(f"{library}.objects-{name}.autoproxy.response"))
    assert isinstance(proxy, ProxyState)
    assert proxy.uri_text.startswith("PYRO:child-object@")
    assert (proxy.methods, proxy.oneway, proxy.attrs) == (frozenset({"hello"}), frozenset(), frozenset())
    argument = read(named(f"{library}.objects-{name}.proxyarg.request"))[2][0]
    assert argument == ProxyState("PYRO:other@example.com:4444")


@pytest.mark.parametrize("library", ["p4", "p5"])
@pytest.mark.parametrize("name", SAFE)
def test_exceptions_keep_class_arguments_attributes_and_traceback(library: str, name: str) -> None:
    failed = read(named(f"{library}.exception-{name}.fail.response"))
    assert type(failed) is ValueError
    assert failed.args == ("boom", 42)
    assert vars(failed)["detail"] == {"k": "v"}
    assert vars(failed)["_pyroTraceback"][0].startswith("Traceback")
    unwritable = read(named(f"{library}.exception-unserializable.fail.response"))
    assert type(unwritable) is PyroError
    assert "Error serializing exception" in str(unwritable)


@pytest.mark.parametrize("library", ["p4", "p5"])
def test_batch_results_hold_the_wrapped_exception(library: str) -> None:
    results = [read(frame) for frame in ALL if frame["name"] == f"{library}.batch-serpent.batch.response"]
    assert any(isinstance(item, ExceptionWrapper) for result in results for item in result)
