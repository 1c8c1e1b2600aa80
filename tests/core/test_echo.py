"""`pyroxfer echo` as a process: the object, options and output that test clients of Pyro expect."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyroxfer_core import blocking

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
        process.wait(10)
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
        assert process.wait(10) == 0


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
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_listening_beyond_this_machine_must_be_asked_for() -> None:
    done = subprocess.run([*ECHO, "-H", "0.0.0.0"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 4
    assert "--insecure" in done.stderr and "Traceback" not in done.stderr
