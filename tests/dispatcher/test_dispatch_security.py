"""TLS and tokens on both sides of a dispatcher: blobs, clients that are led, and clients spread over back ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Certificates
from click.testing import CliRunner

from pyroxfer_core import (
    Daemon,
    Proxy,
    SerializedBlob,
    Settings,
    Tokens,
    behavior,
    current_call,
    expose,
    tls_client_context,
)
from pyroxfer_core.errors import AuthenticationError, CommunicationError, RefusedError
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.cli import main
from pyroxfer_dispatcher.config import Config, ConfigError, parse_config

CLIENT, DISPATCHER = "correct-horse-battery", "staple-something-else"
LARGE = "large" * 200_000


@expose
@behavior(instance_mode="single")
class Worker:
    """What blobs and led clients reach; it notes who calls."""

    seen: list[str] = []  # noqa: RUF012  # one for all on purpose

    async def process(self, blob: SerializedBlob) -> object:
        self.seen.append(str(current_call.identity))
        return blob.deserialized()

    async def echo(self, value: object) -> object:
        self.seen.append(str(current_call.identity))
        return value


@pytest.fixture(autouse=True)
def seen() -> list[str]:
    Worker.seen.clear()
    return Worker.seen


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"clients": tmp_path / "clients", "own": tmp_path / "own"}
    for path, text in ((paths["clients"], f"alice {CLIENT}\n"), (paths["own"], DISPATCHER)):
        path.write_text(text)
        path.chmod(0o600)
    return paths


def config_for(at: Certificates, files: dict[str, Path], uri: object, head: str = "", service: str = "") -> Config:
    return parse_config(
        f"""
listen = "localhost:0"
tls_cert = "{at.server}"
token_file = "{files["clients"]}"
backend_tls_ca = "{at.ca}"
backend_token_file = "{files["own"]}"
{head}
[[services]]
name = "work"
match = "*"
objects = ["worker"]
{service}
[[services.backends]]
name = "b"
uri = "{uri}"
"""
    )


@asynccontextmanager
async def guarded_backend(at: Certificates) -> AsyncIterator[str]:
    settings = at.settings(tokens=Tokens({"dispatcher": DISPATCHER}), shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon:
        yield str(daemon.register(Worker, "worker"))


def client(at: Certificates, token: str | None, protocol: int = 502) -> Settings:
    return Settings(ssl_client_context=at.client_context(), token=token, protocol=protocol)


@pytest.mark.parametrize("protocol", [48, 502])
@pytest.mark.parametrize("service", ["", "stateless = true"])
async def test_calls_pass_under_tls_with_a_token_on_each_side(
    certificates: Certificates, files: dict[str, Path], seen: list[str], service: str, protocol: int
) -> None:
    """Clients prove theirs to the dispatcher, the dispatcher its own to the back ends, whichever way calls take."""
    settings = client(certificates, CLIENT, protocol)
    async with (
        guarded_backend(certificates) as uri,
        Dispatcher(config_for(certificates, files, uri, service=service)) as dispatcher,
    ):
        async with Proxy(dispatcher.uri, settings=settings) as proxy:
            assert await proxy.process(SerializedBlob("work", ["a", 1])) == ["a", 1]
        async with Proxy(f"PYRO:worker@{dispatcher.location}", settings=settings) as proxy:
            assert await proxy.echo("hello") == "hello"
            assert await proxy.echo(LARGE) == LARGE
            assert await proxy.echo("again") == "again"
    assert set(seen) == {"dispatcher (token)"}


@pytest.mark.parametrize("object_id", ["worker", "pyroxfer.dispatcher"])
@pytest.mark.parametrize(("token", "text"), [(None, "authentication required"), (DISPATCHER, "was not accepted")])
async def test_nobody_is_led_past_the_door(
    certificates: Certificates, files: dict[str, Path], seen: list[str], object_id: str, token: str | None, text: str
) -> None:
    """A client that proves nothing reaches no back end, in any mode."""
    async with (
        guarded_backend(certificates) as uri,
        Dispatcher(config_for(certificates, files, uri)) as dispatcher,
        Proxy(f"PYRO:{object_id}@{dispatcher.location}", settings=client(certificates, token)) as proxy,
    ):
        with pytest.raises(AuthenticationError, match=text):
            await proxy.echo(1)
    assert not seen


async def test_a_stock_client_shows_its_token(
    certificates: Certificates, files: dict[str, Path], seen: list[str]
) -> None:
    """As handshake data, in transparent mode as in the other; the back end does not mind."""
    async with (
        guarded_backend(certificates) as uri,
        Dispatcher(config_for(certificates, files, uri)) as dispatcher,
        Proxy(f"PYRO:worker@{dispatcher.location}", settings=client(certificates, None)) as proxy,
    ):
        proxy._pyroHandshake = CLIENT
        assert await proxy.echo(1) == 1
    assert seen == ["dispatcher (token)"]


async def test_mutual_tls_on_both_sides(certificates: Certificates, files: dict[str, Path], seen: list[str]) -> None:
    """Certificates instead of tokens."""
    backend = certificates.settings(mutual=True, shutdown_grace_s=0)
    async with Daemon(settings=backend) as daemon:
        uri = daemon.register(Worker, "worker")
        text = f"""
listen = "localhost:0"
tls_cert = "{certificates.server}"
tls_ca = "{certificates.ca}"
backend_tls_ca = "{certificates.ca}"
backend_tls_cert = "{certificates.nameless}"
[[services]]
name = "work"
objects = ["worker"]
[[services.backends]]
name = "b"
uri = "{uri}"
"""
        async with Dispatcher(parse_config(text)) as dispatcher:
            place = f"PYRO:worker@{dispatcher.location}"
            async with Proxy(place, settings=certificates.settings(mutual=True)) as proxy:
                assert await proxy.echo(1) == 1
            async with Proxy(place, settings=certificates.settings()) as proxy:
                with pytest.raises(AuthenticationError, match="wants a certificate of this side"):
                    await proxy.echo(1)
    assert seen == ["bob@example.org (mtls)"]


async def test_a_backend_that_does_not_accept_the_dispatcher(
    certificates: Certificates, files: dict[str, Path], seen: list[str]
) -> None:
    """The client is told that its call was not sent."""
    files["own"].write_text("wrong-horse-battery")
    settings = client(certificates, CLIENT)
    async with (
        guarded_backend(certificates) as uri,
        Dispatcher(config_for(certificates, files, uri)) as dispatcher,
    ):
        async with Proxy(dispatcher.uri, settings=settings) as proxy:
            with pytest.raises(RefusedError, match="the token was not accepted"):
                await proxy.process(SerializedBlob("work", 1))
        async with Proxy(f"PYRO:worker@{dispatcher.location}", settings=settings) as proxy:
            with pytest.raises(CommunicationError, match="was not accepted"):
                await proxy.echo(1)
    assert not seen


async def test_a_backend_with_an_unknown_certificate(
    certificates: Certificates, files: dict[str, Path], seen: list[str]
) -> None:
    """It is not spoken to."""
    settings = client(certificates, CLIENT)
    async with guarded_backend(certificates) as uri:
        config = config_for(certificates, {**files}, uri)
        async with Dispatcher(config) as dispatcher:
            pool = dispatcher._reception.pool_after(0)
            pool._settings = pool._settings.with_changes(ssl_client_context=tls_client_context(certificates.other_ca))
            async with Proxy(dispatcher.uri, settings=settings) as proxy:
                with pytest.raises(RefusedError, match="a CA that is not known here"):
                    await proxy.process(SerializedBlob("work", 1))
    assert not seen


MINIMAL = '[[services]]\nname = "w"\n[[services.backends]]\nname = "b"\nuri = "PYRO:x@localhost:1"\n'


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ('listen = "0.0.0.0:0"\ntls_cert = "c"\n', "give tls_cert, and token_file or tls_ca"),
        ('listen = "0.0.0.0:0"\ntoken_file = "t"\n', "give tls_cert, and token_file or tls_ca"),
        ('tls_ca = "c"\n', "tls_cert: missing; tls_key and tls_ca need it"),
        ('backend_tls_key = "c"\n', "backend_tls_cert: missing; backend_tls_key needs it"),
    ],
)
def test_what_does_not_go_together(head: str, problem: str) -> None:
    """Beyond this machine TLS and a proof are needed, both."""
    with pytest.raises(ConfigError, match=problem):
        parse_config(head + MINIMAL)


def test_a_guarded_door_needs_no_word() -> None:
    """With both it may be open to the network."""
    head = 'listen = "0.0.0.0:0"\ntls_cert = "c"\n'
    parse_config(f'{head}token_file = "t"\n{MINIMAL}')
    parse_config(f'{head}tls_ca = "t"\n{MINIMAL}')


@pytest.mark.parametrize("key", ["tls_cert", "token_file", "backend_tls_ca", "backend_token_file"])
def test_files_that_are_not_there_are_named(tmp_path: Path, key: str) -> None:
    """By `check` already: exit code 4 and one line."""
    path = tmp_path / "dispatcher.toml"
    path.write_text(f'{key} = "{tmp_path}/none"\n{MINIMAL}')
    done = CliRunner().invoke(main, ["check", "-c", str(path)])
    assert (done.exit_code, done.stderr.count("\n")) == (4, 1)
    assert f"cannot read {tmp_path}/none" in done.stderr
