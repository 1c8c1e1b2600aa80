"""The fault campaign: transfers under faults, and after each the one question: does exit 0 mean equal bytes?

    ./scripts/faults --count 10000 --seed 7

Clients and servers are processes (forked from this one, so that ten thousand are quick), driven through the command
line. A scenario is one file, one direction, one channel, and attempts to bring it: up to three with a fault, the
source perhaps changed in between, then one without. A fault run is an attempt whose fault happened. Fails (exit 1)
at a violation: exit 0 and other bytes under the final name; or anything under it that is neither the old file nor the
source; or the last attempt does not succeed. Each scenario is reproducible from the seed and its number.
"""

from __future__ import annotations

import collections
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults_arguments import parser
from line import DOWN, UP, Fault, Line

KIB, MIB = 1024, 1024 * 1024
SIZES = (1, 100 * KIB, 300 * KIB, MIB, 2 * MIB + 17, 3 * MIB, 4 * MIB, 5 * MIB + 1, 6 * MIB)
BORDERS = (60 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB)
KINDS = ("cut", "cut", "cut", "flip", "flip", "kill client", "kill server")
PATIENCE_S = 20.0
"""A client that takes longer hangs: a flipped length may leave it waiting for bytes that never come."""


@dataclass
class Count:
    """What came of it."""

    runs: collections.Counter[str] = field(default_factory=collections.Counter)
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    resumed: int = 0
    scenarios: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Attempts whose fault happened."""
        return sum(self.runs.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(self.runs.items()))
        codes = ", ".join(f"{code}: {number}" for code, number in sorted(self.codes.items()))
        return (
            f"{self.total} fault runs in {self.scenarios} scenarios ({kinds}); exit codes ({codes}); "
            f"{self.resumed} attempts found something to resume; {len(self.violations)} violations"
        )


def forked(function: Callable[[], None]) -> int:
    """Run a function in a process of its own, silent; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        function()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(code)


class ServerProcess:
    """A file server of one folder, started again when it was killed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.pid = 0
        self.target = ("127.0.0.1", 0)

    def start(self) -> None:
        """Make sure that it runs."""
        if self.pid:
            return
        reading, writing = os.pipe()
        self.pid = forked(lambda: self._serve(writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            host, _, port = pipe.readline().strip().rpartition(":")
        self.target = (host, int(port))

    def _serve(self, writing: int) -> None:
        import trio

        from pyroxfer import FileServer

        async def main() -> None:
            async with FileServer(self._root) as server:
                os.write(writing, f"{server.location}\n".encode())
                await trio.sleep_forever()

        trio.run(main)

    def stop(self) -> None:
        """Kill it and wait for its end."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def command(words: list[str]) -> int:
    """A client process; its id."""

    def run() -> None:
        from pyroxfer.cli import main

        main(words, prog_name="pyroxfer", standalone_mode=False)

    return forked(run)


class Scenario:
    """One file, brought in several attempts."""

    def __init__(self, number: int, seed: int, work: Path, server: ServerProcess, count: Count) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        self._name = f"scenario {number} of seed {seed}"
        self._server, self._count = server, count
        rng = self._rng
        self._direction = rng.choice(("send", "get"))
        self._channel = rng.choice(("auto", "iter", "annot", "raw", "raw"))
        self._streams = rng.choice(("1", "1", "3"))
        there, here = work / "root" / str(number), work / "here" / str(number)
        for folder in (there, here):
            folder.mkdir(parents=True)
        source, target = (here, there) if self._direction == "send" else (there, here)
        self._folders = (there, here)
        self._remote = f"{number}/{'target' if self._direction == 'send' else 'source'}"
        self._source, self._target = source / "source", target / "target"
        self._old = rng.randbytes(1000) if rng.random() < 0.3 else None
        self._write_source(rng.choice(SIZES))
        if self._old is not None:
            self._target.write_bytes(self._old)

    def _write_source(self, size: int) -> None:
        self._data = self._rng.randbytes(size)
        self._source.write_bytes(self._data)

    def run(self) -> None:
        """Attempts with faults, then one without."""
        self._count.scenarios += 1
        for _ in range(self._rng.randint(1, 3)):
            fault = self._fault()
            code, happened = self._attempt(fault)
            if happened:
                self._count.runs[fault.kind] += 1
                self._count.codes["hung" if code is None else str(code)] += 1
            self._judge(code, fault)
            if code == 0:
                break
            if self._rng.random() < 0.2:
                self._change_source()
        else:
            code, _ = self._attempt(Fault("none"))
            self._judge(code, Fault("none"))
            if code != 0:
                self._violation(f"the attempt without a fault ended with {code}")
        for folder in self._folders:
            shutil.rmtree(folder)

    def _fault(self) -> Fault:
        rng = self._rng
        way = rng.choice((UP, DOWN))
        if rng.random() < 0.7:  # where the bytes of the file go
            way = UP if self._direction == "send" else DOWN
        reach = len(self._data) + 6 * KIB if way == (UP if self._direction == "send" else DOWN) else 4 * KIB
        at = rng.randrange(max(reach, 1))
        if rng.random() < 0.3:
            border = rng.choice(BORDERS) * rng.randint(1, 4) + rng.randint(0, 3 * KIB)
            at = border if border < reach else at
        return Fault(rng.choice(KINDS), way, at, rng.randrange(8))

    def _attempt(self, fault: Fault) -> tuple[int | None, bool]:
        self._server.start()
        line = Line(self._server.target, fault)
        remote = f"{line.location}/{self._remote}"
        arguments = [str(self._source), remote] if self._direction == "send" else [remote, str(self._target)]
        options = ["--channel", self._channel, "--durability", "none", "--streams", self._streams]
        options += ["--if-exists", "replace"]
        if any(self._target.parent.glob(".pyroxfer-*.journal")):
            self._count.resumed += 1
        client = command([self._direction, *arguments, *options])
        code = line.run(client, self._server.pid, PATIENCE_S)
        if line.happened and fault.kind == "kill server":
            self._server.stop()  # it may still be dying
        return code, line.happened

    def _judge(self, code: int | None, fault: Fault) -> None:
        there = self._target.read_bytes() if self._target.exists() else None
        if code == 0 and there != self._data:
            self._violation(f"exit 0 after {fault}, and other bytes are there")
        elif there not in (self._old, self._data):
            self._violation(f"after {fault} something that was never sent is there")
        self._old = there

    def _change_source(self) -> None:
        size = len(self._data)
        how = self._rng.choice(("grow", "shrink", "replace", "one byte"))
        before = self._source.stat()
        if how == "grow":
            self._data += self._rng.randbytes(100 * KIB)
        elif how == "shrink":
            self._data = self._data[: size // 2]
        elif how == "replace":
            self._data = self._rng.randbytes(size)
        elif size:
            place = self._rng.randrange(size)
            self._data = self._data[:place] + bytes([self._data[place] ^ 1]) + self._data[place + 1 :]
        self._source.write_bytes(self._data)
        os.utime(self._source, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _violation(self, text: str) -> None:
        self._count.violations.append(f"{self._name}, {self._direction} by {self._channel}: {text}")


def campaign(count: int, seed: int, work: Path, told: Callable[[Count], None] | None = None) -> Count:
    """At least ``count`` fault runs in a folder of their own; ends early at a violation."""
    for module in ("pyroxfer", "pyroxfer.cli.get", "pyroxfer.cli.send"):
        importlib.import_module(module)  # children have it by being forked
    found = Count()
    (work / "root").mkdir()
    server = ServerProcess(work / "root")
    try:
        number = 0
        while found.total < count and not found.violations:
            number += 1
            Scenario(number, seed, work, server, found).run()
            if told is not None and number % 100 == 0:
                told(found)
    finally:
        server.stop()
    return found


def main() -> int:
    """The command."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pyroxfer-faults-") as folder:
        found = campaign(options.count, options.seed, Path(folder), lambda so_far: print(so_far, flush=True))
    for violation in found.violations:
        print(f"VIOLATION: {violation}")
    print(found)
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
