"""Real peers in processes of their own: started, asked over pipes, and always ended."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = HERE / "peer_programs"
ANSWER_WITHIN_S = 60.0


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def stock_python() -> str:
    """The interpreter of the environment that holds the stock Pyro4 and Pyro5."""
    python = os.environ.get("PYROXFER_PEERS", str(ROOT / ".peers" / "bin" / "python"))
    if not Path(python).exists():
        pytest.fail(
            "the stock peers are not installed: run ./scripts/test once, or set PYROXFER_PEERS to their python"
        )
    return python


def started(stack: ExitStack, pattern: str, *command: str, **environment: str) -> str:
    """Start a program and wait until it says this; the group of the pattern."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    stack.callback(process.communicate)
    stack.callback(process.kill)
    assert process.stdout is not None
    too_late = threading.Timer(ANSWER_WITHIN_S, process.kill)
    too_late.start()
    stack.callback(too_late.cancel)
    for line in process.stdout:
        if found := re.search(pattern, line):
            too_late.cancel()
            return found[1]
    raise AssertionError(f"{command} did not start")


class PeerProcess:
    """A program that speaks JSON lines on its standard output and ends when its standard input does."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def read_answer(self) -> Any:
        """The next JSON line.

        Raises:
            RuntimeError: none came in time, or the program ended.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_WITHIN_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"no answer from {self._process.args!r}; exit code {self._process.poll()}")
        return json.loads(line)

    def ask(self, question: Any) -> Any:
        """Send one JSON line, read one back."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self.read_answer()

    def close(self) -> None:
        """End the program: first by the end of its input, then by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class Service(PeerProcess):
    """A daemon with the objects ``shared`` and ``counter``: stock, our blocking facade, or our trio daemon.

    Args:
        library: ``pyro4``, ``pyro5``, ``pyroxfer`` (the same program on our facade) or ``trio``.
    """

    def __init__(self, library: str, *options: str) -> None:
        program = PROGRAMS / ("trio_service.py" if library == "trio" else "service.py")
        super().__init__(python_for(library), str(program), library, *options)
        self.library = library
        self.uris: dict[str, str] = self.read_answer()

    @property
    def uri(self) -> str:
        return self.uris["shared"]


class Client(PeerProcess):
    """A program that plays the scenarios: stock, or the same program on our facade."""

    def __init__(self, library: str, *options: str) -> None:
        super().__init__(python_for(library), str(PROGRAMS / "client.py"), library, *options)
        self.library = library

    def play(self, scenario: str, service: Service, serializer: str, **options: Any) -> Any:
        """The scenario's result.

        Raises:
            PeerError: the program's own error; its text begins with the class.
        """
        question = {"scenario": scenario, "uris": service.uris, "serializer": serializer, **options}
        answer = self.ask(question)
        if "failed" in answer:
            raise PeerError(answer["failed"])
        return answer["result"]


class PeerError(Exception):
    """What a client program failed with."""


StartService = Callable[..., Service]
"""``start(library, *options)``: what the fixture ``service`` gives."""
StartClient = Callable[[str], Client]
"""``start(library)``: what the fixture ``client`` gives."""


def python_for(library: str) -> str:
    return stock_python() if library in ("pyro4", "pyro5") else sys.executable
