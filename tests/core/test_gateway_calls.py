"""Calls over HTTP: paths, arguments, answers of every type, errors and their status, streams, headers."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import pytest
import trio
import trio.testing
from gateway_doubles import SOME_ID, Things, running

from pyroxfer_core import Daemon, Settings, Uri
from pyroxfer_core.errors import SerializeError
from pyroxfer_core.gateway import Gateway, GatewayOptions, app
from pyroxfer_core.gateway.names import Names
from pyroxfer_core.gateway.values import arguments_from_json, json_bytes
from pyroxfer_core.nameserver import RunningNameServer, start_ns

THINGS = "/pyro/http.things/"


async def test_arguments_come_as_query_form_object_or_array() -> None:
    """All four ways lead to the same call; texts from query and form, types from JSON, a repeated name is a list."""
    async with running() as up:
        assert (await up.get(THINGS + "add?a=40")).json() == 42
        assert (await up.post(THINGS + "add", data={"a": "40", "b": "3"})).json() == 43
        assert (await up.post(THINGS + "add", json={"a": 40})).json() == 42
        assert (await up.post(THINGS + "add", json=[40, 1])).json() == 41
        assert (await up.post(THINGS + "add?b=5", json={"a": 1})).json() == 6
        assert (await up.get(THINGS + "echo?message=a&message=b")).json() == ["a", "b"]
        assert (await up.get(THINGS + "echo?message=")).json() == ""
        assert (await up.post(THINGS + "kind", json={"value": None})).json() == "NoneType"


async def test_every_value_has_a_json_form() -> None:
    """Bytes, sets, dates, decimals, UUIDs, big integers, NaN and exceptions arrive as documented."""
    async with running({"tracebacks": False}) as up:
        found = (await up.get(THINGS + "types")).json()
        keys = (await up.get(THINGS + "keys")).json()
    assert found == {
        "bytes": {"data": "AP8=", "encoding": "base64"},
        "set": [1],
        "tuple": [1, "x"],
        "when": "2026-01-02T03:04:05",
        "date": "2026-01-02",
        "time": "03:04:05",
        "span": 1.5,
        "decimal": "1.50",
        "id": str(SOME_ID),
        "big": 2**70,
        "nan": None,
        "error": {"__class__": "builtins.KeyError", "__exception__": True, "args": ["inside"], "attributes": {}},
    }
    assert keys == {"1": 1, "null": 2, "[1, 2]": 3, "x": 4}


async def test_bytes_go_in_as_they_come_out() -> None:
    """The form in which bytes are answered is taken as bytes; objects with __class__ are not taken at all."""
    async with running() as up:
        form = {"data": "AP8=", "encoding": "base64"}
        assert (await up.post(THINGS + "kind", json=[form])).json() == "bytes"
        assert (await up.post(THINGS + "echo", json=[[form]])).json() == [form]
        refused = await up.post(THINGS + "echo", json=[{"x": {"__class__": "Pyro5.core.URI"}}])
        assert refused.status_code == 400
        assert "__class__" in refused.text


async def test_a_remote_exception_is_500_with_class_text_and_traceback() -> None:
    """In Pyro's own form, with the text beside it; the traceback only where it may go."""
    async with running() as up:
        answer = await up.get(THINGS + "fail?text=oh")
    assert answer.status_code == 500
    assert answer.headers["x-pyro-outcome"] == "Executed"
    assert "retry-after" not in answer.headers
    found = answer.json()
    assert (found["__class__"], found["__exception__"], found["args"]) == ("builtins.ValueError", True, ["oh", 3])
    assert found["text"] == "('oh', 3)"
    assert "ValueError: ('oh', 3)" in "".join(found["attributes"]["_pyroTraceback"])
    async with running({"tracebacks": False}) as up:
        assert (await up.get(THINGS + "fail")).json()["attributes"] == {}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/pyro/http.none/echo", 404),
        (THINGS + "nothing", 404),
        (THINGS + "__class__", 404),
        (THINGS + "__init__", 404),
        (THINGS + "_private", 404),
        (THINGS + "__getattr__", 404),
        (THINGS + "%5f%5fdict%5f%5f", 404),
        (THINGS + "add%2f..%2fecho", 404),
        (THINGS + "%3cbatch%3e", 404),
        (THINGS + "$other", 404),
        ("/pyro/http.plain/secret", 404),
        ("/pyro/private.things/echo?message=1", 403),
        ("/pyro/Pyro.NameServer/list", 403),
        ("/pyro/private.things%2fhttp.things/echo", 403),
        ("/pyro/%70rivate.things/echo", 403),
        ("/pyro/http.things", 404),
        ("/pyro/http.things/", 404),
        ("/pyro", 404),
        ("/nowhere", 404),
        ("/pyro/http.things/%ff", 400),
        ("/pyro/http.th%00ings/echo", 400),
        ("/pyro/http." + "x" * 600 + "/echo", 414),
        (THINGS + "colour?x=1", 400),
    ],
)
async def test_what_cannot_be_called_is_refused(path: str, status: int) -> None:
    """Unknown objects and members, private ones, other spellings of them, names outside of the pattern."""
    async with running() as up:
        assert (await up.get(path)).status_code == status


async def test_other_methods_are_not_allowed() -> None:
    """405 and what is allowed, in Pyro's words."""
    async with running() as up:
        for method in ("PUT", "DELETE", "PATCH", "HEAD"):
            answer = await up.client.request(method, THINGS + "add?a=1")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, OPTIONS")
        answer = await up.client.request("POST", "/")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_attributes_and_metadata() -> None:
    """An attribute is read by its name; $meta lists what there is, sorted."""
    async with running() as up:
        assert (await up.get(THINGS + "colour")).json() == "blue"
        assert (await up.get("/pyro/http.plain/$meta")).json() == {"methods": ["shown"], "attributes": []}
        assert (await up.get(THINGS + "%24meta")).json()["attributes"] == ["colour"]


async def test_the_correlation_id_goes_through() -> None:
    """The caller's id reaches the object and comes back, with an error too; without one a fresh one is made."""
    mine = str(uuid.uuid4())
    async with running() as up:
        for path in ("add?a=1", "fail", "nothing"):
            answer = await up.get(THINGS + path, headers={"X-Pyro-Correlation-Id": mine})
            assert answer.headers["x-pyro-correlation-id"] == mine
        first, second = [(await up.get(THINGS + "add?a=1")).headers["x-pyro-correlation-id"] for _ in range(2)]
        assert uuid.UUID(first) != uuid.UUID(second)
        bad = await up.get(THINGS + "add?a=1", headers={"X-Pyro-Correlation-Id": "mine"})
        assert bad.status_code == 400


async def test_one_way_calls_are_answered_before_they_run() -> None:
    """By the option in the header, or because the method says so: 200 and nothing in it."""
    async with running() as up:
        answer = await up.get(THINGS + "note?text=a")
        assert (answer.status_code, answer.content) == (200, b"")
        answer = await up.get(THINGS + "fail", headers={"X-Pyro-Options": "other, oneway"})
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await up.get(THINGS + "noted")).json() == ["a"]


async def test_an_item_stream_is_lines_or_events() -> None:
    """What the caller accepts decides; an error is the last line, or an event of its own."""
    events = {"Accept": "text/event-stream"}
    async with running({"tracebacks": False}) as up:
        lines = await up.get(THINGS + "count")
        assert lines.headers["content-type"] == "application/x-ndjson"
        assert lines.text == "0\n1\n2\n"
        answer = await up.get(THINGS + "count?to=2", headers=events)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.text == ": alive\n\ndata: 0\n\ndata: 1\n\nevent: end\ndata: null\n\n"
        first, last = (await up.get(THINGS + "count_and_fail")).text.splitlines()
        assert (first, json.loads(last)["text"]) == ("1", "no more")
        assert "event: error\ndata: {" in (await up.get(THINGS + "count_and_fail", headers=events)).text


async def test_a_stream_ends_when_its_reader_leaves() -> None:
    """The remote iterator is closed, and nothing keeps running in the gateway."""
    async with running() as up:
        for path in ("endless", "silent_items"):
            up.things.closed = trio.Event()
            async with await up.raw(f"GET {THINGS}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n") as caller:
                assert b"200 OK" in await caller.receive_some()
            with trio.fail_after(10):
                await up.things.closed.wait()
        with trio.fail_after(10):
            while "0 calls" not in repr(up.gateway):  # noqa: ASYNC110  # the last step happens inside the server
                await trio.sleep(0.05)


async def test_a_call_ends_when_its_caller_leaves() -> None:
    """The object is told: its method is cancelled."""
    async with running() as up:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(up.get, THINGS + "silence")
            await up.things.started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            await up.things.cancelled.wait()


async def test_a_call_out_of_time_is_504() -> None:
    """The object is cancelled, the outcome is said, and nothing invites to repeat what may have run."""
    async with running({"timeout_s": 0.2}) as up:
        while (await up.get(THINGS + "add?a=1")).status_code != 200:
            pass  # a busy machine may need longer to find the object and connect: nothing would have been sent
        answer = await up.get(THINGS + "silence")
        assert (answer.status_code, answer.headers["x-pyro-outcome"]) == (504, "Unknown")
        assert "retry-after" not in answer.headers
        with trio.fail_after(30):
            await up.things.cancelled.wait()
        assert '"text": "no item within 0.2 s"' in (await up.get(THINGS + "silent_items")).text.splitlines()[-1]


async def test_what_was_not_sent_is_503_with_a_hint() -> None:
    """A daemon that is not there, and a gateway with as many calls as it may have: both say when to try again."""
    async with running({"max_calls": 1}) as up:
        await up.ns.name_server.register("http.dead", "PYRO:x@localhost:1")
        answer = await up.get("/pyro/http.dead/echo")
        assert (answer.status_code, answer.headers["x-pyro-outcome"]) == (503, "NotSent")
        assert answer.headers["retry-after"] == "1"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(up.get, THINGS + "silence")
            await up.things.started.wait()
            busy = await up.get(THINGS + "add?a=1")
            nursery.cancel_scope.cancel()
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")


async def test_an_entry_whose_object_is_gone_is_404() -> None:
    """The daemon answers, and says that it has no such object."""
    async with running() as up:
        gone = str(up.daemon.uri_for("things")).replace("things", "gone")
        await up.ns.name_server.register("http.gone", gone)
        assert (await up.get("/pyro/http.gone/echo")).status_code == 404


async def test_connections_are_kept() -> None:
    """A hundred requests, alone and at once, and the daemon and the name server see one connection each."""
    async with running() as up:
        for _ in range(20):
            await up.get(THINGS + "add?a=1")
        async with trio.open_nursery() as nursery:
            for _ in range(80):
                nursery.start_soon(up.get, THINGS + "add?a=1")
        assert up.daemon.statistics().connections == 1
        assert up.ns.daemon.statistics().connections == 1


async def test_a_restarted_object_is_found_again() -> None:
    """After its daemon has gone and another has registered the name, calls reach the new one, and its members."""
    async with running({"lookup_ttl_s": 0.05}) as up:
        assert (await up.get("/pyro/http.plain/shown")).json() == 1
        async with Daemon() as other:
            await up.ns.name_server.register("http.plain", other.register(up.things.__class__(), "other"))
            await trio.sleep(0.1)
            assert (await up.get("/pyro/http.plain/add?a=1")).json() == 3
        await up.ns.name_server.remove("http.plain")
        await trio.sleep(0.1)
        assert (await up.get("/pyro/http.plain/add?a=1")).status_code == 404


@pytest.mark.parametrize(("moves", "status"), [(True, 200), (False, 404)])
async def test_an_object_that_has_moved_is_asked_for_anew_whatever_is_remembered(moves: bool, status: int) -> None:
    """The first call after the move reaches the new address; when the name is gone, it is 404, not 503."""
    async with running({"lookup_ttl_s": 60.0}) as up:
        async with Daemon() as old:
            await up.ns.name_server.register("http.mover", old.register(Things(), "mover"))
            assert (await up.get("/pyro/http.mover/add?a=1")).json() == 3
        if moves:
            await up.ns.name_server.register("http.mover", up.daemon.uri_for("things"))
        else:
            await up.ns.name_server.remove("http.mover")
        await trio.sleep(0.15)
        assert (await up.get("/pyro/http.mover/add?a=1")).status_code == status


async def test_without_the_name_server_known_objects_are_still_called() -> None:
    """The answer says that the address is an old one; unknown names are 503."""
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        ns: RunningNameServer = await nursery.start(name_server, stop)
        async with running({"lookup_ttl_s": 0.01, "ns_port": ns.uri.port}) as up:
            await ns.name_server.register("http.things", up.daemon.uri_for("things"))
            assert "x-pyro-lookup" not in (await up.get(THINGS + "add?a=1")).headers
            stop.set()
            await trio.sleep(0.1)
            answer = await up.get(THINGS + "add?a=1")
            assert (answer.json(), answer.headers["x-pyro-lookup"]) == (3, "stale")
            unknown = await up.get("/pyro/http.other/add")
            assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1")


async def test_an_address_that_is_confirmed_stays_the_same_object(autojump_clock: trio.testing.MockClock) -> None:
    """What is kept by address is found without a comparison; another address takes its place."""
    names, port = Names(GatewayOptions()), 1

    async def answer(method: str, *args: object) -> Uri:
        return Uri(f"PYRO:x@localhost:{port}")

    names._ask = answer  # type: ignore[method-assign]  # a name server
    first = (await names.lookup("x")).uri
    await trio.sleep(2)
    assert (await names.lookup("x")).uri is first
    port = 2
    await trio.sleep(2)
    assert str((await names.lookup("x")).uri) == "PYRO:x@localhost:2"


async def test_a_name_server_that_hangs_holds_nobody_up(autojump_clock: trio.testing.MockClock) -> None:
    """When it does not answer in a second, what it said before is used, and it is left alone for a while."""
    names = Names(GatewayOptions())
    asked = 0

    async def hang(method: str, *args: object) -> Uri:
        nonlocal asked
        asked += 1
        if asked > 1:
            await trio.sleep_forever()
        return Uri("PYRO:x@localhost:1")

    names._ask = hang  # type: ignore[method-assign]  # a name server that hangs
    assert not (await names.lookup("x")).stale
    await trio.sleep(2)
    before = trio.current_time()
    assert (await names.lookup("x")).stale
    assert (await names.lookup("x")).stale
    assert trio.current_time() - before == pytest.approx(1)
    assert asked == 2


async def name_server(
    stop: trio.Event, task_status: trio.TaskStatus[RunningNameServer] = trio.TASK_STATUS_IGNORED
) -> None:
    async with start_ns(port=0, broadcast=False) as ns:
        task_status.started(ns)
        await stop.wait()


async def test_answers_are_bounded() -> None:
    """One that is larger than allowed, or too deep for JSON, is 502: it ran, and cannot be told."""
    async with running({"max_answer_bytes": 2_000_000}) as up:
        assert len((await up.get(THINGS + "large?size=1000000")).content) == 1_000_002
        for path in ("large?size=3000000", "deep?levels=100000"):
            answer = await up.get(THINGS + path)
            assert answer.status_code in (500, 502), path
        assert (await up.get(THINGS + "add?a=1")).json() == 3


async def test_objects_of_one_call_at_a_time_get_few_connections() -> None:
    """Towards a peer without features a busy connection gets company, and not more than allowed."""
    settings = Settings(protocol=48)
    async with running({"settings": settings, "connections_per_object": 2}) as up:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(up.get, THINGS + "held")
            await up.things.started.wait()
            assert (await up.get(THINGS + "add?a=1")).json() == 3
            up.things.let_go.set()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(up.get, THINGS + "add?a=1")
        assert up.daemon.statistics().connections <= 2


def test_the_default_application_is_one() -> None:
    """``pyroxfer_core.gateway.app`` is there to be named to a server, with Pyro's own defaults."""
    assert isinstance(app, Gateway)
    assert app.options.expose == "http\\."
    assert not app.access.needs_key


@pytest.mark.parametrize(
    "options",
    [
        {"expose": "("},
        {"timeout_s": 0},
        {"timeout_s": math.nan},
        {"cors": ("example.org",)},
        {"max_calls": 0},
        {"connections_per_object": 0},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    """An unusable value is one clear error."""
    with pytest.raises(ValueError):
        GatewayOptions(**options)


@pytest.mark.parametrize(
    "text", ["{", "NaN", "[" * 100_000, '{"__class__": 1}', '{"data": "x", "encoding": "base64"}']
)
def test_unusable_json_is_one_error(text: str) -> None:
    """Malformed, without end, or with objects: a ValueError and nothing else."""
    with pytest.raises(ValueError):
        arguments_from_json(text)


def test_values_without_a_json_form_are_one_error() -> None:
    """So the caller gets an answer whatever an object returns; half a character is written as JSON escapes it."""
    assert json_bytes(["\ud800", 1]) == b'["\\ud800", 1]'
    with pytest.raises(SerializeError):
        json_bytes(object())
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializeError):
        json_bytes(loop)


def test_secrets_are_not_shown() -> None:
    """Options may end up in a log; the key does not."""
    assert "hush" not in repr(GatewayOptions(key="hush"))
