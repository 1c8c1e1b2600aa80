"""Servers and clients of a measurement: a fresh process each, ended by its own handle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from children import END_WITH_PARENT

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "programs"
OURS = sys.executable
ALL_CORES = frozenset(os.sched_getaffinity(0))
ONE_CORE = frozenset({min(ALL_CORES)})
Cores = frozenset[int]


def stock() -> str:
    """The interpreter that has the stock libraries."""
    return os.environ.get("PYROXFER_PEERS", str(ROOT / ".peers" / "bin" / "python"))


def others() -> str:
    """The interpreter that has the other libraries we compare with."""
    return os.environ.get("PYROXFER_BENCH_PEERS", str(ROOT / ".bench-peers" / "bin" / "python"))


def command(name: str, *arguments: object) -> list[str]:
    """A command of ours, from the environment that runs the benchmark."""
    return [str(Path(OURS).parent / name), *map(str, arguments)]


def program(python: str, name: str, *arguments: object) -> list[str]:
    return [python, str(PROGRAMS / name), *map(str, arguments)]


@contextmanager
def kept_bytecode() -> Iterator[None]:
    """Programs started inside find their modules compiled once one of them was started: an installation has them so,
    an environment that was just made, or is told not to write, compiles everything at every start."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="pyroxfer-bench-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def cores(wanted: Cores) -> Iterator[None]:
    """Children started inside run on these cores only."""
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ALL_CORES)


def tree(pid: int) -> Iterator[int]:
    """A process, and its children that live."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # a child belongs to the thread that started it
        for child in children.read_text().split():
            yield from tree(int(child))


def cpu_of_tree(pid: int) -> float:
    """Processor seconds of a process, of its children that live, and of those it has waited for."""
    stats = (Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in tree(pid))
    return sum(int(ticks) for fields in stats for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int, what: str) -> int:
    """A line of what the kernel says of a process: ``VmRSS`` is its resident size, ``VmHWM`` the largest so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    return 0


class Server:
    """A running server that says on a line of its output where it is: the URI of its object, by default.

    Args:
        pattern: what to look for.
        quiet: its standard error is thrown away, and with it a log line for each request.
    """

    def __init__(
        self,
        command: Sequence[str],
        on: Cores = ALL_CORES,
        *,
        pattern: str = r"PYRO:[^\s)]+",
        quiet: bool = False,
    ) -> None:
        errors = subprocess.DEVNULL if quiet else None
        with cores(on):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                preexec_fn=END_WITH_PARENT,
            )
        assert self._process.stdout is not None
        match = next((found for line in self._process.stdout if (found := re.search(pattern, line))), None)
        if match is None:
            self.close()
            raise RuntimeError(f"{' '.join(command)} did not start")
        self.found = match
        self.uri = match[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """Processor seconds used so far, kernel included."""
        return cpu_of_tree(self.pid)

    def peak_rss_mib(self) -> float:
        """Largest resident size so far: the sum of those of its processes, where it has several."""
        return sum(memory_kib(each, "VmHWM") for each in tree(self.pid)) / 1024

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run_client(command: Sequence[str], on: Cores = ALL_CORES, *, said: str = "") -> dict[str, Any]:
    """Run to the end, with this as its standard input; its last line of output is JSON."""
    with cores(on):
        done = subprocess.run(command, input=said, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
