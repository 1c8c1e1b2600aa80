"""`pyroxfer echo` as a process: the object, options and output that test clients of Pyro expect."""

from __future__ import annotations

import math
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from certificates import Certificates

from pyroxfer_core import Settings, Tokens, blocking, load_token
from pyroxfer_core.errors import SecurityError
from pyroxfer_core.nameserver import start_ns

ECHO = (sys.executable, "-c", "from pyroxfer_core.cli.echo import echo; echo()")


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([*ECHO, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "running" in line:
            break
    found = re.search(r"echo uri: (\S+)", "".join(lines))
    try:
        assert found, "".join(lines) + process.stderr.read()
        yield process, found[1]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()


def test_the_echo_object_has_the_members_of_pyros() -> None:
    """Each member answers as in Pyro; `shutdown` ends the process well."""
    with running("-v") as (process, uri):
        assert uri.startswith("PYRO:test.echoserver@localhost:")
        with blocking.Proxy(uri) as proxy:
            assert proxy.echo([1, "two"]) == [1, "two"]
            with pytest.raises(ValueError, match="the message of the error"):
                proxy.error_with_text()
            with pytest.raises(ValueError, match="expected error from echoserver"):
                proxy.error()
            assert proxy.oneway_echo("x") is None
            assert list(proxy.generator()) == ["one", "two", "three"]
            assert math.isnan(proxy.nan()) and proxy.inf() == math.inf
            assert proxy.__dunder__() == "should be allowed (dunder)"
            assert proxy.verbose is True
            proxy.verbose = False
            proxy.shutdown()
        assert process.wait(60) == 0


def test_control_characters_of_callers_do_not_reach_the_terminal() -> None:
    with running("-v") as (process, uri):
        with blocking.Proxy(uri) as proxy:
            proxy.echo("\x1b[2J")
            proxy.shutdown()
        assert process.stdout is not None
        assert "\x1b" not in process.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_traceback(number: signal.Signals) -> None:
    with running() as (process, _):
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_listening_beyond_this_machine_must_be_asked_for() -> None:
    done = subprocess.run([*ECHO, "-H", "0.0.0.0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "--insecure" in done.stderr and "Traceback" not in done.stderr


def token_file(folder: Path) -> Path:
    path = folder / "tokens"
    path.write_text("tester correct-horse-battery\n")
    path.chmod(0o600)
    return path


async def test_it_registers_on_a_lease_where_tls_and_a_token_are_asked_for(
    certificates: Certificates, tmp_path: Path
) -> None:
    """The name is there while it runs, hangs on a lease, and is gone at its end."""
    tokens = token_file(tmp_path)
    settings = Settings(ssl_server_context=certificates.server_context(), tokens=Tokens.load(tokens))
    async with start_ns(port=0, broadcast=False, settings=settings) as ns:
        access = ("--ns-tls-ca", str(certificates.ca), "--ns-token-file", str(tokens))
        one = running("--ns", f"localhost:{ns.uri.port}", *access)
        _, uri = await trio.to_thread.run_sync(one.__enter__)
        try:
            (address,) = (await ns.name_server.lookup_all("test.echoserver"))["addresses"]
            assert address["uri"] == uri
            assert address["ttl"]
        finally:
            await trio.to_thread.run_sync(one.__exit__, None, None, None)
        assert await ns.name_server.list(prefix="test.") == {}


def test_it_speaks_tls_to_who_has_a_token(certificates: Certificates, tmp_path: Path) -> None:
    """Also with a name server of its own, in which it needs neither."""
    tokens = token_file(tmp_path)
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    own = ("-N", "--ns", f"localhost:{port}", "--tls-cert", str(certificates.server), "--token-file", str(tokens))
    with running(*own) as (_, uri):
        settings = Settings(ssl_client_context=certificates.client_context(), token=load_token(tokens))
        with blocking.Proxy(uri, settings=settings) as proxy:
            assert proxy.echo("x") == "x"
        with pytest.raises(SecurityError), blocking.Proxy(uri, settings=settings.with_changes(token=None)) as proxy:
            proxy.echo("x")
