"""The appliance of the demo: name server, file service, two back ends, dispatcher; each a process on a free port."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from children import END_WITH_PARENT

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
START_WITHIN_S = 20.0
STOP_WITHIN_S = 10.0
BACKENDS = ("first", "second")
TOPIC = "demo"


class Service:
    """A command that says where it listens; ended by its own handle."""

    def __init__(self, command: Sequence[str], listening: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            preexec_fn=END_WITH_PARENT,  # the main thread starts it, alone
        )
        try:
            self.place = self._wait_for(listening)
        except BaseException:
            self.close()
            raise

    def _wait_for(self, pattern: str) -> str:
        """The first group of the pattern in what the command prints."""
        assert self._process.stdout is not None
        text, end = "", time.monotonic() + START_WITHIN_S
        while (match := re.search(pattern, text)) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise SystemExit(f"demo: {self._process.args!r} did not start: {text.strip()}")
            text += data.decode(errors="replace")
        return match[1]

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Appliance:
    """All services of the demo. Use as a context manager."""

    def __init__(self, work: Path) -> None:
        self.served = work / "served"
        self._work = work
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.served.mkdir()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        names = f"sql:{self._work / 'names.sqlite'}"
        self.name_server = self._service(
            "name server", ["pyroxfer", "ns", "-p", "0", "-x", "-s", names], r"URI = \S+@(\S+:\d+)"
        )
        self.files = self._service(
            "file service", ["pyroxfer", "serve", str(self.served), "--listen", "localhost:0"], r"(localhost:\d+)"
        )
        for name in BACKENDS:
            command = [sys.executable, str(HERE / "backend.py"), name, self.name_server]
            self._service(f"back end {name}", command, r"at (\S+)\n")
        self.config = self._work / "dispatcher.toml"
        self.config.write_text("\n".join(self._dispatcher_config()))
        command = ["pyroxfer-dispatcher", "run", "-c", str(self.config)]
        self.dispatcher = self._service("dispatcher", command, r"(localhost:\d+)")

    def _service(self, label: str, command: Sequence[str], listening: str) -> str:
        service = Service(command, listening)
        self._stack.callback(service.close)
        print(f"started {label}: {service.place}", flush=True)
        return service.place

    def _dispatcher_config(self) -> Iterator[str]:
        """Back ends are found by name, so the name server is used, too."""
        yield 'listen = "localhost:0"'
        yield f'[[services]]\nname = "{TOPIC}"'
        for name in BACKENDS:
            yield f'[[services.backends]]\nname = "{name}"\nuri = "PYRONAME:demo.{name}@{self.name_server}"'

    def hints(self) -> list[str]:
        """Commands to try while everything is up."""
        host, port = self.name_server.rsplit(":", 1)
        return [
            "  export PATH=$PWD/.demo/venv/bin:$PATH",
            f"  pyroxfer send README.md {self.files}/",
            f"  pyroxfer ls {self.files}/",
            f"  pyroxfer get {self.files}/README.md /tmp/",
            f"  pyroxfer nsc -n {host} -p {port} list",
            f"  pyroxfer-dispatcher check -c {self.config.relative_to(ROOT)}",
        ]
