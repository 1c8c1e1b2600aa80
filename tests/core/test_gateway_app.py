"""The gateway in other servers, over TLS, as a document, and as a command."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest
import trio
import trustme
from certificates import Certificates
from click.testing import CliRunner
from gateway_doubles import Things, running
from hypercorn.config import Config
from hypercorn.trio import serve
from openapi_spec_validator import validate
from starlette.applications import Starlette
from starlette.routing import Mount

from pyroxfer_core import Daemon, Settings, Tokens
from pyroxfer_core.cli.gateway import gateway as command
from pyroxfer_core.errors import SecurityError
from pyroxfer_core.gateway import Gateway, GatewayOptions
from pyroxfer_core.gateway.describe import described
from pyroxfer_core.gateway.openapi import document
from pyroxfer_core.gateway.serving import serve_gateway, tls_context
from pyroxfer_core.nameserver import start_ns
from pyroxfer_core.objects.documentation import describe_members

GATEWAY = (sys.executable, "-c", "from pyroxfer_core.cli.gateway import gateway; gateway()")
WITHIN_S = 60


async def test_the_application_runs_in_hypercorn_below_a_path() -> None:
    """Mounted in a Starlette application: calls, streams and the page work below the mount point."""
    async with running() as up:
        app = Starlette(routes=[Mount("/api/gateway", up.gateway)])
        config, stop = Config(), trio.Event()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = None
        async with trio.open_nursery() as nursery:
            start = functools.partial(serve, app, config, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]  # ASGI's types are named twice
            (url,) = await nursery.start(start)
            async with httpx2.AsyncClient(base_url=url + "/api/gateway") as client:
                assert (await client.get("/pyro/http.things/add?a=40")).json() == 42
                assert (await client.post("/pyro/http.things/echo", json=["x" * 100_000])).json() == "x" * 100_000
                assert (await client.get("/pyro/http.things/count")).text == "0\n1\n2\n"
                assert (await client.get("/pyro/http.things/nothing")).status_code == 404
                assert "page.js" in (await client.get("/")).text
                assert (await client.get("/pyro/")).headers["location"] == "/api/gateway/"
                assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/api/gateway"}]
            stop.set()


async def test_hypercorn_callers_that_leave_end_their_streams() -> None:
    """The news that a caller is gone comes from any server."""
    async with running() as up:
        config, stop = Config(), trio.Event()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = None
        async with trio.open_nursery() as nursery:
            start = functools.partial(serve, up.gateway, config, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]  # as above
            (url,) = await nursery.start(start)
            port = int(url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as caller:
                await caller.send_all(b"GET /pyro/http.things/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200" in await caller.receive_some()
            with trio.fail_after(10):
                await up.things.closed.wait()
            stop.set()


async def test_another_event_loop_is_refused_clearly() -> None:
    """Where trio does not run, the answer says what to do."""
    import asyncio

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    await trio.to_thread.run_sync(lambda: asyncio.run(Gateway()(scope, receive, send)))
    assert sent[0]["status"] == 500
    assert b"hypercorn -k trio" in sent[1]["body"]


async def test_websockets_are_refused_and_the_lifespan_is_kept() -> None:
    """The server's shutdown closes the connections."""
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": next(events)}

    async def send(event: Any) -> None:
        sent.append(event["type"])

    await Gateway()({"type": "lifespan"}, receive, send)
    await Gateway()({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


async def test_tls(tmp_path: Path) -> None:
    """The gateway speaks HTTPS with a certificate, keeps connections, and outlives rubbish on them."""
    authority = trustme.CA()
    certificate = tmp_path / "certificate.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    async with running() as up, trio.open_nursery() as nursery:
        stop = trio.Event()
        start = functools.partial(
            serve_gateway, up.gateway, port=0, ssl_context=tls_context(str(certificate), None), stop=stop
        )
        served = await nursery.start(start)
        context = httpx2.create_ssl_context(verify=False)
        authority.configure_trust(context)
        async with httpx2.AsyncClient(verify=context, base_url=f"https://localhost:{served.port}") as client:
            for _ in range(3):
                assert (await client.get("/pyro/http.things/add?a=1")).json() == 3
            assert served.server.connections == 1
            async with await trio.open_tcp_stream("127.0.0.1", served.port) as caller:
                await caller.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with trio.fail_after(30):
                    assert b"HTTP" not in b"".join([data async for data in caller])
            assert len((await client.get("/pyro/http.things/large?size=3000000")).content) == 3_000_002
        stop.set()


def test_a_certificate_that_is_none_is_one_error(tmp_path: Path) -> None:
    """Whether it is missing or something else."""
    (tmp_path / "rubbish.pem").write_text("rubbish")
    for name in ("missing.pem", "rubbish.pem"):
        with pytest.raises(SecurityError, match=name):
            tls_context(str(tmp_path / name), None)


# --- the document ---------------------------------------------------------------------------------------------------


async def test_the_openapi_document_is_valid_and_says_what_there_is() -> None:
    """Made of live metadata: paths, parameters, types, documentation; exposed objects only."""
    async with running({"key": "k"}) as up:
        await up.ns.name_server.register("http.dead", "PYRO:x@localhost:1")
        found = (await up.get("/openapi.json", headers={"X-Pyro-Gateway-Key": "k"})).json()
    validate(found)
    assert not [path for path in found["paths"] if "private" in path or "dead" in path]
    add = found["paths"]["/pyro/http.things/add"]["post"]
    assert add["summary"] == "The sum of two numbers."
    body = add["requestBody"]["content"]["application/json"]["schema"]
    assert (body["required"], body["properties"]["a"]) == (["a"], {"type": "integer"})
    assert found["paths"]["/pyro/http.things/colour"]["get"]["responses"]["200"]["content"]
    stream = found["paths"]["/pyro/http.things/count"]["post"]["responses"]["200"]["content"]
    assert set(stream) == {"application/x-ndjson", "text/event-stream"}
    assert found["security"] == [{"key": []}]


def test_names_of_any_kind_make_a_valid_document() -> None:
    """Blanks, braces, slashes and members without texts, as stock daemons have them."""
    plain = described(frozenset({"a", "b"}), frozenset({"b"}), frozenset({"c"}), {})
    rubbish = {"doc": 1, "methods": {"a": {"parameters": [3, {"name": 5}], "doc": []}}, "attributes": "x"}
    strange = described(frozenset({"a"}), frozenset(), frozenset({"c"}), rubbish)
    found = document({"http.a b{c}/d": plain, "http.ü": plain, "http.x": strange}, server="/", needs_key=False)
    validate(found)
    assert "/pyro/http.a%20b%7Bc%7D/d/a" in found["paths"]


def test_what_a_class_shows_is_described() -> None:
    """Documentation, parameters with types and defaults, streams and one-way methods; nothing that is not shown."""
    found = describe_members(Things)
    assert found["doc"].startswith("Things to call.")
    assert found["methods"]["add"] == {
        "doc": "The sum of two numbers.",
        "oneway": False,
        "stream": False,
        "parameters": [
            {"name": "a", "kind": "positional_or_keyword", "type": "int"},
            {"name": "b", "kind": "positional_or_keyword", "type": "int", "default": "2"},
        ],
        "returns": "int",
    }
    assert found["methods"]["count"]["stream"]
    assert found["methods"]["note"]["oneway"]
    assert found["attributes"] == {"colour": {"doc": "The colour of things.", "writable": False, "type": "str"}}
    assert "__init__" not in found["methods"]


# --- the command ----------------------------------------------------------------------------------------------------


class RunningGateway:
    """The command as a process that has announced itself."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*GATEWAY, "-p", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        for line in self._out:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("HTTP gateway running on "):
                break
        else:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        found = re.search(r"running on (\S+)", self.lines[-1])
        self.url = found[1] if found else ""

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of the output, and the errors."""
        self.process.send_signal(signal.SIGTERM)
        rest, errors = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, rest, errors

    def __enter__(self) -> RunningGateway:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


async def test_the_command_serves_until_it_is_told_to_stop(stack: ExitStack) -> None:
    """It announces itself as Pyro's does, finds the name server, takes its options, and ends with 0."""
    async with start_ns(port=0, broadcast=False) as ns, Daemon() as daemon:
        await ns.name_server.register("other.things", daemon.register(Things(), "things"))
        options = ("--ns", f"localhost:{ns.uri.port}", "-e", r"other\.", "-t", "5")
        start = functools.partial(RunningGateway, *options, PYROXFER_GATEWAY_KEY="from environment")
        running_one = stack.enter_context(await trio.to_thread.run_sync(start))
        assert running_one.lines[0] == r"Exposing objects with names matching: other\."
        assert running_one.lines[1] == f"Connected to name server at localhost:{ns.uri.port}"
        async with httpx2.AsyncClient(base_url=running_one.url) as client:
            assert (await client.get("/pyro/other.things/add?a=1")).status_code == 403
            key = {"X-Pyro-Gateway-Key": "from environment"}
            assert (await client.get("/pyro/other.things/add?a=1", headers=key)).json() == 3
        code, rest, errors = await trio.to_thread.run_sync(running_one.end)
    assert (code, rest, errors) == (0, "Gateway shut down.\n", "")


async def test_name_server_and_objects_may_ask_for_tls_and_a_token(
    stack: ExitStack, certificates: Certificates, tmp_path: Path
) -> None:
    """The options of every client lead the gateway to both; without them a call says that it did not run."""
    token = tmp_path / "token"
    token.write_text("gate correct-horse-battery\n")
    token.chmod(0o600)
    settings = Settings(ssl_server_context=certificates.server_context(), tokens=Tokens.load(token))
    async with start_ns(port=0, broadcast=False, settings=settings) as ns, Daemon(settings=settings) as daemon:
        await ns.name_server.register("http.things", daemon.register(Things(), "things"))
        place = ("--ns", f"localhost:{ns.uri.port}")
        access = ("--tls-ca", str(certificates.ca), "--token-file", str(token))
        for options, status in ((access, 200), (access[:2], 503), ((), 503)):
            start = functools.partial(RunningGateway, *place, *options)
            running_one = stack.enter_context(await trio.to_thread.run_sync(start))
            async with httpx2.AsyncClient(base_url=running_one.url) as client:
                answer = await client.get("/pyro/http.things/add?a=1")
            assert answer.status_code == status, answer.text


def test_the_command_starts_before_the_name_server(stack: ExitStack, tmp_path: Path) -> None:
    """It says so, and answers 503 until there is one."""
    (tmp_path / "key").write_text("secret\nmore\n")
    running_one = stack.enter_context(RunningGateway("--ns", "localhost:1", "--key-file", str(tmp_path / "key")))
    answer = httpx2.get(running_one.url + "pyro/http.x/y", headers={"X-Pyro-Gateway-Key": "secret"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    code, _, errors = running_one.end()
    assert code == 0
    assert errors.startswith("Not yet connected to a name server: ")


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["-e", "("], 2, "not a regular expression"),
        (["--ns", "host:port"], 2, "expected HOST or HOST:PORT"),
        (["--ns", ":1"], 2, "expected HOST or HOST:PORT"),
        (["--ns", "::1"], 2, "expected HOST or HOST:PORT"),
        (["--ns", "host:"], 2, "expected HOST or HOST:PORT"),
        (["--tls-ca", "missing.pem"], 2, "missing.pem"),
        (["--tls-key", os.devnull], 2, "--tls-key needs --tls-cert"),
        (["-p", "70000"], 2, "70000"),
        (["-t", "-1"], 2, "-1"),
        (["-c", "example.org"], 2, "an origin looks like"),
        (["--keyfile", "x"], 2, "--keyfile needs --certfile"),
        (["--certfile", "missing.pem"], 2, "missing.pem"),
        (["--key-file", "missing"], 2, "missing"),
        (["--key-file", os.devnull], 2, "devnull|is a file|no key"),
        (["-H", "0.0.0.0", "--ns", "localhost:1"], 4, "--insecure"),
        (["-H", "0.0.0.0", "-k", "key", "--ns", "localhost:1"], 4, "TLS"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], code: int, text: str) -> None:
    """What is wrong and the documented exit code; no traceback."""
    result = CliRunner().invoke(command, options)
    assert result.exit_code == code, result.output
    assert re.search(text, result.output)
    assert "Traceback" not in result.output


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """And importing the core does not need it."""
    script = """
import sys
sys.modules["httptools"] = None
import pyroxfer_core, pyroxfer_core.gateway
from pyroxfer_core.cli.gateway import gateway
gateway(["-p", "0"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 1
    assert "pip install 'pyroxfer[http]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_one_line(stack: ExitStack) -> None:
    """The error names the address."""
    first = stack.enter_context(RunningGateway("--ns", "localhost:1"))
    port = first.url.rstrip("/").rpartition(":")[2]
    result = CliRunner().invoke(command, ["-p", port, "--ns", "localhost:1"])
    assert result.exit_code == 5
    assert f"cannot listen on localhost:{port}" in result.output


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["-k", "secret"], {}),
        (["-g", "secret"], {}),
        (["--gatewaykey", "secret"], {}),
        ([], {"PYROXFER_GATEWAY_KEY": "secret"}),
        ([], {"PYRO_HTTPGATEWAY_KEY": "secret"}),
    ],
)
def test_the_key_comes_in_every_way_that_pyro_has(
    options: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either short option, Pyro's long one, or the environment."""
    found: list[GatewayOptions] = []

    def keep(serve: Any, wanted: Any, chosen: GatewayOptions, context: Any) -> None:
        found.append(chosen)

    monkeypatch.setattr("pyroxfer_core.cli.gateway.run", keep)
    result = CliRunner().invoke(command, options, env=environment)
    assert result.exit_code == 0, result.output
    assert found[0].key == "secret"


@pytest.mark.parametrize(
    ("said", "words", "place"),
    [
        ({}, (), None),
        ({"PYRO_NS_HOST": "old"}, (), ("old", None)),
        ({"PYRO_NS_PORT": "12"}, (), (None, 12)),
        ({"PYRO_NS_HOST": "old", "PYROXFER_NS_HOST": "new", "PYROXFER_NS_PORT": "1"}, (), ("new", 1)),
        ({"PYRO_NS_HOST": "old", "PYRO_NS_PORT": "12"}, ("--ns", "typed:2"), ("typed", 2)),
    ],
)
def test_the_environment_names_the_name_server(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], words: tuple[str, ...], place: object
) -> None:
    """As for other commands, and what is typed goes before it."""
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"PYRO_NS_{name}", raising=False)
        monkeypatch.delenv(f"PYROXFER_NS_{name}", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert command.make_context("gateway", [*words]).params["ns"] == place


@pytest.mark.parametrize("port", ["x", "0", "65536", "9" * 5000, "٣"])
def test_a_port_in_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    """It is named."""
    monkeypatch.setenv("PYRO_NS_PORT", port)
    done = CliRunner().invoke(command, [])
    assert (done.exit_code, "PYRO_NS_PORT=" in done.stderr) == (2, True)
