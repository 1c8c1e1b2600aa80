"""Hostile HTTP: malformed, oversized, slow, smuggling; pages of other sites; keys; bounds on everything."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from gateway_doubles import Running, running
from hypothesis import given, settings
from hypothesis import strategies as st

from pyroxfer_core.gateway.access import Access
from pyroxfer_core.gateway.http.limits import Budget, HttpError, Limits
from pyroxfer_core.gateway.http.parser import RequestParser
from pyroxfer_core.gateway.http.server import HttpServer
from pyroxfer_core.gateway.options import GatewayOptions
from pyroxfer_core.transport.sockets import bind_tcp

THINGS = "/pyro/http.things/"
GET = b"GET /pyro/http.things/add?a=1 HTTP/1.1\r\nHost: localhost\r\n"


async def reply(up: Running, sent: bytes) -> bytes:
    """Everything that comes back until the connection ends."""
    async with await up.raw(sent) as caller:
        received = b""
        with trio.fail_after(10):
            async for data in caller:
                received += data
        return received


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400),
        (b"PYRO\x01\xf6" + bytes(34), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
    ],
)
async def test_malformed_requests_end_the_connection(sent: bytes, status: int) -> None:
    """One clear answer, then the end, and the next caller is served."""
    async with running() as up:
        received = await reply(up, sent)
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in received
        assert received.count(b"HTTP/1.1 ") == 1
        assert (await up.get(THINGS + "add?a=1")).json() == 3


async def test_a_body_in_chunks_is_bounded_too() -> None:
    """It is refused as soon as it is too long, whatever was announced."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = b"POST /pyro/http.things/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with running({"max_body_bytes": 100_000}) as up:
        received = await reply(up, head + chunk * 2)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert up.served.server._budget.left == Limits().buffered_bytes


CHUNKED = b"POST /pyro/http.things/add HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n"


@pytest.mark.parametrize("name", [b"Host: evil.example", b"Origin: https://evil.example", b"X-Pyro-Options: oneway"])
async def test_trailers_are_no_headers(name: bytes) -> None:
    """What comes behind a body is not what a proxy before the gateway has looked at."""
    async with (
        running() as up,
        await up.raw(CHUNKED + b"0\r\n" + name + b"\r\n\r\n" + GET + b"Connection: close\r\n\r\n") as caller,
    ):
        with trio.fail_after(10):
            received = b"".join([data async for data in caller])
    assert [part[-1:] for part in received.split(b"HTTP/1.1 200")[1:]] == [b"3", b"3"]


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"0\r\n", b"0;", b"00000"])
def test_what_stands_between_bodies_is_bounded(endless: bytes) -> None:
    """A trailer, a chunk's extension or its size without an end: refused after as much as headers may be."""
    parser = RequestParser(Limits(), Budget(1_000_000))
    parser.feed(CHUNKED + endless)
    fed, more = 0, b"0" * 1_000 if endless.startswith(b"00") else b"X: " + b"x" * 995 + b"\r\n"
    with pytest.raises(HttpError) as refused:
        while fed < 1_000_000:
            fed += len(more)
            parser.feed(more if endless == b"0\r\n" else more.rstrip())
    assert refused.value.status in (400, 431)
    assert fed <= Limits().header_bytes + 2_000
    assert not parser.ready


async def test_bodies_of_all_connections_together_are_bounded() -> None:
    """What goes beyond is refused for now, and the room comes back."""
    head = b"POST /pyro/http.things/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000\r\n\r\n"
    async with running(limits=Limits(buffered_bytes=10_000)) as up:
        async with await up.raw(head + b"x" * 5_500):
            await trio.testing.wait_all_tasks_blocked(0.05)
            received = await reply(up, head + b"x" * 5_500)
            assert received.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in received
        with trio.fail_after(30):
            while up.served.server._budget.left != 10_000:  # noqa: ASYNC110  # the end of a connection tells nobody
                await trio.sleep(0.02)


async def test_slow_requests_are_cut() -> None:
    """Headers or a body that trickle in: 408 in time. A silent connection just ends."""
    quick = Limits(idle_s=0.2, request_s=0.3)
    async with running(limits=quick) as up:
        assert await reply(up, b"") == b""
        assert (await reply(up, b"GET / HT")).startswith(b"HTTP/1.1 408 ")
        slow = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nxxx"
        assert (await reply(up, slow)).startswith(b"HTTP/1.1 408 ")


async def test_a_caller_that_does_not_read_is_dropped() -> None:
    """A large answer that nobody takes does not stay in memory, and the server stops at once all the same."""
    async with running({"max_answer_bytes": 16_000_000}, limits=Limits(send_s=0.2)) as up:
        request = GET.replace(b"add?a=1", b"large?size=12000000") + b"\r\n"
        async with await up.raw(request) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with trio.fail_after(10):
                while up.served.server.connections == 0:  # noqa: ASYNC110  # see above
                    await trio.sleep(0.02)
                while up.served.server.connections:  # noqa: ASYNC110
                    await trio.sleep(0.02)


async def test_callers_that_tear_their_connection_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of streams, calls and requests, many at once: the server goes on, and says nothing of it."""
    paths = (b"endless", b"silent_items", b"large?size=900000", b"held", b"count?to=1000")
    async with running() as up, trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(tear, up, GET.replace(b"add?a=1", paths[number % 5]) + b"\r\n", number)
        nursery.cancel_scope.deadline = trio.current_time() + 20
        await trio.sleep(1)
        up.things.let_go.set()
        assert (await up.get(THINGS + "add?a=1")).json() == 3
    assert not [record for record in caplog.records if record.name.startswith("pyroxfer_core.gateway")]


async def tear(up: Running, request: bytes, number: int) -> None:
    """Reset the connection at some moment after the request."""
    caller = await up.raw(request)
    await trio.sleep(0.01 * number)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.socket.close()


async def test_connections_are_bounded_and_idle_ones_give_way() -> None:
    """With as many as may be, the one that is silent for the longest time is closed for the newcomer."""
    async with running(limits=Limits(connections=3)) as up:
        idle = [await up.raw(b"GET / H") for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert b"200 OK" in await reply(up, GET + b"Connection: close\r\n\r\n")
        with trio.fail_after(30):
            assert await idle[0].receive_some() == b""
        for stream in idle:
            await stream.aclose()


async def test_a_tls_handshake_that_does_not_come_gives_way() -> None:
    """Callers that connect and say nothing do not keep others out until the handshake has to be over."""
    stop = trio.Event()
    listener = bind_tcp("127.0.0.1", 0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with trio.open_nursery() as nursery:
        server = HttpServer(app_not_reached, Limits(connections=1, handshake_s=3_600))
        nursery.start_soon(server.serve, [listener], stop, context)
        first = await trio.open_tcp_stream(*listener.getsockname())
        second = await trio.open_tcp_stream(*listener.getsockname())
        with trio.fail_after(10):
            assert await first.receive_some() == b""
        await first.aclose()
        await second.aclose()
        stop.set()


async def app_not_reached(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


async def test_two_listeners_both_go_on_when_there_is_room_again() -> None:
    """None is forgotten of those that waited for it."""
    let_go = trio.Event()

    async def app(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await let_go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    stop = trio.Event()
    listeners = [bind_tcp("127.0.0.1", 0), bind_tcp("127.0.0.1", 0)]
    async with trio.open_nursery() as nursery:
        server = HttpServer(app, Limits(connections=2))
        nursery.start_soon(server.serve, listeners, stop)
        callers = []
        for listener in listeners * 2:  # two that run, two that wait
            callers.append(await trio.open_tcp_stream(*listener.getsockname()))
            await callers[-1].send_all(GET + b"Connection: close\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(server._running) == 2
        let_go.set()
        for caller in callers:
            async with caller:
                with trio.fail_after(10):
                    assert (await caller.receive_some()).startswith(b"HTTP/1.1 204 ")
        stop.set()


async def test_a_connection_that_gets_idle_gives_way_to_one_that_waits() -> None:
    """Although there was none to give way when that one came; and nobody is closed before somebody comes."""
    async with (
        running(limits=Limits(connections=1)) as up,
        await up.raw(GET.replace(b"add?a=1", b"held") + b"\r\n") as first,
    ):
        with trio.fail_after(10):
            await up.things.started.wait()
            async with await up.raw(GET + b"Connection: close\r\n\r\n") as second:
                await trio.testing.wait_all_tasks_blocked(0.05)
                up.things.let_go.set()
                assert b"200 OK" in await first.receive_some()
                assert b"200 OK" in await second.receive_some()


async def test_requests_may_follow_each_other_closely() -> None:
    """Several requests in one packet are answered in order; so are those of old clients, each on its own terms."""
    old = b"GET /pyro/http.things/add?a=5 HTTP/1.0\r\n\r\n"
    async with running() as up:
        received = await reply(up, GET + b"\r\n" + GET.replace(b"a=1", b"a=2") + b"\r\n" + old)
        assert [part[-1:] for part in received.split(b"HTTP/1.1 200")[1:]] == [b"3", b"4", b"7"]
        received = await reply(up, old.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n") + old)
        assert received.count(b"connection: keep-alive") == 1
        assert b"chunked" not in await reply(up, old.replace(b"add?a=5", b"count"))


async def test_upgrades_are_not_taken_up_and_expectations_are_met() -> None:
    """An offer of HTTP/2 gets an answer in HTTP/1.1; who asks whether to go on is told to."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    post = b"POST /pyro/http.things/add HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with running() as up:
        assert b"200 OK" in await reply(up, GET + offer)
        async with await up.raw(
            post + b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        ) as caller:
            assert await caller.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await caller.send_all(b"[1]")
            assert (await caller.receive_some()).endswith(b"\r\n3")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://{host}"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://{host}.evil.example"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
    ],
)
async def test_pages_of_other_sites_cannot_call(headers: dict[str, str], status: int) -> None:
    """A browser that another site sends here is refused, also under a name that leads here (DNS rebinding)."""
    async with running({"allowed_hosts": ("localhost", "127.0.0.1", "::1")}) as up:
        host = f"127.0.0.1:{up.served.port}"
        sent = {name: value.replace("{host}", host) for name, value in headers.items()}
        for path in (THINGS + "add?a=1", "/api/names", "/openapi.json"):
            answer = await up.get(path, headers=sent)
            assert answer.status_code == status, path
            assert "access-control-allow-origin" not in answer.headers


async def test_a_link_from_elsewhere_leads_to_the_page() -> None:
    """Only to the page, which calls nothing by itself."""
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with running() as up:
        assert (await up.get("/", headers=link)).status_code == 200
        assert (await up.get("/", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert (await up.get(THINGS + "add?a=1", headers=link)).status_code == 403


async def test_cors_is_for_those_who_were_named() -> None:
    """The named origin may call and read, with the headers of this gateway; others may not."""
    async with running({"cors": ("https://app.example",)}) as up:
        answer = await up.get(THINGS + "add?a=1", headers={"Origin": "https://app.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
        before = await up.client.request("OPTIONS", THINGS + "add", headers={"Origin": "https://app.example"})
        assert "X-Pyro-Gateway-Key" in before.headers["access-control-allow-headers"]
        other = await up.get(THINGS + "add?a=1", headers={"Origin": "https://other.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers
    async with running({"cors": ("*",)}) as up:
        answer = await up.get(THINGS + "add?a=1", headers={"Origin": "https://any.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_the_key_is_needed_everywhere() -> None:
    """By header, in the query, the form or the JSON; never passed on to the object; checked before the pattern."""
    async with running({"key": "hüsh"}) as up:
        for path in (THINGS + "add?a=1", "/pyro/private.things/echo", THINGS + "$meta", "/pyro/http.none/x"):
            answer = await up.get(path)
            assert (answer.status_code, answer.text) == (403, "403 Forbidden - incorrect gateway api key")
        for path in ("/api/names", "/api/events", "/api/objects/http.things", "/openapi.json"):
            assert (await up.get(path)).status_code == 403
        assert (await up.get("/")).status_code == 200
        good = {"X-Pyro-Gateway-Key": "hüsh".encode()}
        assert (await up.get(THINGS + "add?a=1", headers=good)).json() == 3
        assert (await up.get("/api/names", headers=good)).status_code == 200
        assert (await up.get(THINGS + "add?a=1&$key=h%C3%BCsh")).json() == 3
        assert (await up.post(THINGS + "add", data={"a": "1", "$key": "hüsh"})).json() == 3
        assert (await up.post(THINGS + "add", json={"a": 1, "$key": "hüsh"})).json() == 3
        assert (await up.post(THINGS + "add", json={"a": 1, "$key": ["hüsh"]})).status_code == 403
        wrong = await up.get(THINGS + "add?a=1&$key=h%C3%BCsh", headers={"X-Pyro-Gateway-Key": "wrong"})
        assert wrong.status_code == 403


async def test_keys_are_not_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the outcome of the request."""
    caplog.set_level(logging.DEBUG)
    async with running({"key": "open sesame"}) as up:
        for key in ("open%20sesame", "open%20barley"):
            await up.get(THINGS + f"fail?$key={key}")
            await up.get(THINGS + f"add?a=x&$key={key}")
            await reply(up, f"GET /?{key} HTTP/9.9\r\nX-Pyro-Gateway-Key: {key}\r\n\r\n".encode())
    captured = capfd.readouterr()
    for text in (*(record.getMessage() for record in caplog.records if "httpx" not in record.name), *captured):
        assert "sesame" not in text
        assert "barley" not in text


def test_a_key_is_compared_as_digests_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees 64 bytes on both sides whatever was given, by a function that takes constant time."""
    seen: list[tuple[int, int]] = []

    def compare(first: bytes, second: bytes) -> bool:
        seen.append((len(first), len(second)))
        return first == second

    monkeypatch.setattr("pyroxfer_core.gateway.access.hmac.compare_digest", compare)
    access = Access(GatewayOptions(key="secret"))
    assert [access.key_fits(given) for given in ("secret", "", "secre", "x" * 10_000, "\udcff")] == [True] + [
        False
    ] * 4
    assert seen == [(64, 64)] * 5


async def test_the_page_is_locked_down() -> None:
    """No script but its own, no frame around it, nothing sniffed, nothing kept."""
    async with running() as up:
        for path in ("/", "/page.js", "/page.css"):
            answer = await up.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "://" not in (await up.get("/")).text.replace("http://www.w3.org/2000/svg", "")
        assert (await up.client.head("/")).content == b""


async def test_addresses_are_for_those_who_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller from elsewhere without a key gets names, no addresses and no tracebacks."""
    monkeypatch.setattr("pyroxfer_core.gateway.access._is_loopback", lambda client: False)
    async with running() as up:
        listed = (await up.get("/api/names")).text
        assert "http.things" in listed
        assert "PYRO:" not in listed
        assert "nameserver" not in listed
        assert (await up.get(THINGS + "fail")).json()["attributes"] == {}


async def test_pages_and_parameters_are_bounded() -> None:
    """More watchers, or more parameters, than allowed are refused."""
    async with running({"max_watchers": 1, "max_parameters": 3}) as up:
        async with await up.raw(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n") as page:
            assert b"200 OK" in await page.receive_some()
            assert (await up.get("/api/events")).status_code == 503
        assert (await up.get(THINGS + "echo?message=1&message=2&message=3&message=4")).status_code == 400
        assert (await up.post(THINGS + "echo", content=b"x", headers={"content-type": "text/xml"})).status_code == 415
        packed = {"content-type": "application/json", "content-encoding": "gzip"}
        assert (await up.post(THINGS + "echo", content=b"[1]", headers=packed)).status_code == 415
        json = {"content-type": "application/json"}
        assert (await up.post(THINGS + "echo", content=b"[1e999]", headers=json)).status_code == 400
        assert (
            await up.post(THINGS + "echo", content=b"\xff", headers={"content-type": "application/json"})
        ).status_code == 400
        assert (await up.get(THINGS + "echo?message=%ff")).status_code == 400
        assert (await up.post(THINGS + "echo", json="text")).status_code == 400


async def test_the_server_stops_although_a_page_is_open() -> None:
    """An endless answer does not hold it up; a call that runs gets its time."""
    with trio.fail_after(30):
        async with running(limits=Limits(grace_s=1000)) as up:
            page = await up.raw(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await page.receive_some()
        await page.aclose()


PIECES = [
    GET + b"\r\n",
    b"\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\n",
    b"Content-Length: 5\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
]


@given(st.lists(st.binary(max_size=60) | st.sampled_from(PIECES), max_size=8))
@settings(max_examples=300, deadline=None)
def test_the_parser_knows_one_error(parts: list[bytes]) -> None:
    """Whatever comes, in whatever pieces: requests within bounds, or HttpError, and no byte of the budget is lost."""
    budget = Budget(10_000)
    parser = RequestParser(Limits(body_bytes=1000), budget)
    try:
        for part in parts:
            if part:
                parser.feed(part)
    except HttpError as error:
        assert error.status in (400, 413, 431, 503)
    for request in parser.ready:
        assert len(request.body) <= 1000
    parser.close()
    assert budget.left == 10_000


@pytest.mark.parametrize("size", [1, 7, 100])
def test_requests_are_the_same_in_any_pieces(size: int) -> None:
    """Cut anywhere, the same two requests come out."""
    data = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + GET + b"\r\n"
    parser = RequestParser(Limits(), Budget(100))
    for start in range(0, len(data), size):
        parser.feed(data[start : start + size])
    first, second = parser.ready
    assert (first.method, first.path, first.query, bytes(first.body)) == ("POST", b"/a", b"b=c", b"hello")
    assert (second.method, second.target, second.keep_alive) == ("GET", b"/pyro/http.things/add?a=1", True)


@pytest.mark.parametrize("early", [True, False])
async def test_an_application_that_fails_is_500_or_a_cut(early: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Before the answer began the caller is told; afterwards it sees that the answer is not whole."""

    async def broken(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if not early:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise RuntimeError("broken")

    stop = trio.Event()
    listener = bind_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(broken).serve, [listener], stop)
        async with await trio.open_tcp_stream("127.0.0.1", port) as caller:
            await caller.send_all(GET + b"\r\n")
            received = b"".join([data async for data in caller])
        stop.set()
    assert received.startswith(b"HTTP/1.1 500 " if early else b"HTTP/1.1 200 ")
    assert not received.endswith(b"0\r\n\r\n")
    assert "the application failed" in caplog.text


async def test_an_application_that_fails_while_it_is_cancelled_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its error comes out together with the cancellation; that connection ends, the server goes on."""
    calls = 0

    async def broken(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise BrokenPipeError(32, "Broken pipe")

    stop = trio.Event()
    listener = bind_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with trio.open_nursery() as nursery:
        server = HttpServer(broken)
        nursery.start_soon(server.serve, [listener], stop)
        async with await trio.open_tcp_stream("127.0.0.1", port) as caller:
            await caller.send_all(GET + b"\r\n")
        with trio.fail_after(30):
            while not calls or server.connections:  # noqa: ASYNC110  # the end of a connection tells nobody
                await trio.sleep(0.02)
        async with await trio.open_tcp_stream("127.0.0.1", port) as caller:
            await caller.send_all(GET + b"\r\n")
            assert (await caller.receive_some()).startswith(b"HTTP/1.1 204 ")
        stop.set()
    assert "a connection failed" in caplog.text
