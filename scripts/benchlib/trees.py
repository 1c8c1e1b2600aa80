"""How the cost of a file grows with the number of files in a tree."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Contestant, Effort, Growth, Sample, in_turns
from processes import ROOT, Server, command

MEMORY = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes for two of the largest trees, a page for each file and as much again for what describes it."""
FOLDER = ROOT / ".bench"
FILES = (1_000, 10_000, 100_000)
ROWS = {count: f"{count:,} files" for count in FILES}
GROWTHS = (
    Growth("CPU of a file, by files", ROWS, "CPU µs a file"),
    Growth("Client memory of a file, by files", ROWS, "client KiB a file"),
)


def in_memory() -> bool:
    """Whether there is room for the trees in memory. On a disk every run pays for the files that were removed before:
    ext4 steps over each inode that was freed in the last minutes."""
    return MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM


def measure(effort: Effort) -> dict[str, Any]:
    """One table. Each tree is made once."""
    with place() as folder:
        one = made(folder, 1)
        upload(folder, made(folder, 2), 2, one)  # compiles what the commands need
        contestants = [
            Contestant(ROWS[count], partial(upload, folder, made(folder, count), count, one))
            for count in effort.some(FILES)
        ]
        return report.section("files/s", in_turns(contestants, effort.repetitions), [], GROWTHS)


@contextmanager
def place() -> Iterator[Path]:
    """A folder for all trees."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MEMORY if in_memory() else FOLDER, prefix="pyroxfer-bench-") as folder:
        yield Path(folder)


def made(folder: Path, count: int) -> Path:
    """A tree of files of 1 KiB, a thousand in a folder."""
    tree = folder / f"tree-{count}"
    for start in range(0, count, 1000):
        inner = tree / f"{start // 1000:03}"
        inner.mkdir(parents=True)
        for number in range(start, min(start + 1000, count)):
            (inner / f"{number:06}").write_bytes(os.urandom(1024))
    return tree


def upload(folder: Path, tree: Path, count: int, one: Path) -> Sample:
    """Send a tree of so many files; one file before it says what starting the command costs and holds."""
    served = folder / "served"
    served.mkdir()
    try:
        with Server(command("pyroxfer", "serve", served)) as server:
            _, start, start_kib = sent(one, server)
            seconds, used, client_kib = sent(tree, server)
            assert sum(len(files) for _, _, files in os.walk(served / tree.name)) == count
            return Sample(
                count / seconds,
                {
                    "CPU µs a file": (used - start) / (count - 1) * 1e6,
                    "server MiB": server.peak_rss_mib(),
                    "client MiB": client_kib / 1024,
                    "client KiB a file": (client_kib - start_kib) / (count - 1),
                },
            )
    finally:
        shutil.rmtree(served)


def sent(tree: Path, server: Server) -> tuple[float, float, int]:
    """Send a tree: seconds, processor seconds of both ends, and KiB of the client's memory."""
    before = server.cpu_s()
    words = command("pyroxfer", "send", tree, f"{server.uri}/", "-q", "--durability", "none")
    seconds, client = ended(words)
    return seconds, server.cpu_s() - before + client.ru_utime + client.ru_stime, client.ru_maxrss


def ended(words: list[str]) -> tuple[float, resource.struct_rusage]:
    """Run a command to its end: seconds, and what it used."""
    begin = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ)
    try:
        _, status, used = os.wait4(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    if status:
        raise RuntimeError(f"{' '.join(words)} failed")
    return time.perf_counter() - begin, used
