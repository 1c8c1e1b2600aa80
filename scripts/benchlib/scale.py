"""How cost grows with the amount of work: transfers at once, routes and back ends, files in a tree."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Contestant, Effort, Growth, Sample, in_turns
from processes import OURS, ROOT, Server, command, program, run_client

TITLE = "Growth"
NOTE = """\
Ours against itself. Downloads at once share 512 MiB, split into as many files of the same size; `first / last` says
how evenly they were served: when the first was committed, as a share of the time of all. Routes: blob calls, 64 in
flight, each topic in turn, a service and a back end (a daemon with a port) for every topic. Trees: files of 1 KiB
uploaded into an empty folder, durability none, each with a receipt of its own."""
TRANSFERS = (1, 8, 64, 256)
BYTES = 512 * 1024 * 1024
ROUTES = (1, 10, 100, 1_000)
FILES = (1_000, 10_000, 100_000)
FOLDER = ROOT / ".bench"
AT_ONCE = Growth(
    "CPU of one GiB, by downloads at once", {count: f"{count} at once" for count in TRANSFERS}, "server CPU s/GiB"
)
ROUTED = Growth(
    "Dispatcher CPU of a call, by routes",
    {count: f"{count:,} routes" for count in ROUTES},
    "dispatcher CPU µs a call",
)
TREES = Growth("CPU of a file, by files", {count: f"{count:,} files" for count in FILES}, "CPU µs a file")


def measure(effort: Effort) -> dict[str, Any]:
    """A table for each kind of work."""
    transfers = [Contestant(f"{count} at once", partial(downloads, count)) for count in effort.some(TRANSFERS)]
    routes = [
        Contestant(f"{count:,} routes", partial(routed, count, effort.seconds)) for count in effort.some(ROUTES)
    ]
    trees = [Contestant(f"{count:,} files", partial(tree, count)) for count in effort.some(FILES)]
    tables = {}
    for title, unit, contestants, growth in (
        ("Downloads at once", "MB/s", transfers, AT_ONCE),
        ("Routes and back ends", "calls/s", routes, ROUTED),
        ("Trees", "files/s", trees, TREES),
    ):
        print(f"growth: {title.lower()}", file=sys.stderr)
        tables[title] = report.section(unit, in_turns(contestants, effort.repetitions), [], [growth])
    return tables


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder on the disk that the repository is on."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        yield Path(folder)


def downloads(count: int) -> Sample:
    with scratch() as folder:
        (folder / "served").mkdir()
        (folder / "got").mkdir()
        sized(folder / "served" / "file", BYTES // count)
        with Server(command("pyroxfer", "serve", folder / "served")) as server:
            before = server.cpu_s()
            result = run_client(program(OURS, "scale_transfers.py", f"{server.uri}/file", count, folder / "got"))
            used = server.cpu_s() - before
            return Sample(
                result["bytes"] / result["seconds"] / 1e6,
                {
                    "server CPU s/GiB": used / result["bytes"] * 2**30,
                    "server MiB": server.peak_rss_mib(),
                    "first / last": result["first_s"] / result["seconds"],
                },
            )


def sized(path: Path, size: int) -> None:
    """A file of random bytes; its size is a multiple of 64 KiB."""
    with path.open("wb") as file:
        for _ in range(size // 65536):
            file.write(os.urandom(65536))


def routed(count: int, seconds: float) -> Sample:
    with scratch() as folder, backends(count) as uris:
        config = folder / "dispatcher.toml"
        config.write_text('listen = "127.0.0.1:0"\n' + "".join(map(service, range(count), uris)))
        with Server(command("pyroxfer-dispatcher", "run", "-c", config)) as dispatcher:
            uri = f"PYRO:pyroxfer.dispatcher@{dispatcher.uri.partition('@')[2]}"
            with subprocess.Popen(
                program(OURS, "scale_blobs.py", uri, count, seconds),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                assert client.stdout is not None, "a pipe"
                if client.stdout.readline() != "ready\n":
                    raise RuntimeError("calls through the dispatcher failed")
                before = dispatcher.cpu_s()
                result = json.loads(client.communicate("\n", timeout=120)[0])
            used = dispatcher.cpu_s() - before
            return Sample(
                result["calls"] / result["seconds"],
                {
                    "dispatcher CPU µs a call": used / result["calls"] * 1e6,
                    "dispatcher MiB": dispatcher.peak_rss_mib(),
                },
            )


def service(number: int, uri: str) -> str:
    return f'[[services]]\nname = "topic-{number}"\n[[services.backends]]\nname = "only"\nuri = "{uri}"\n'


@contextmanager
def backends(count: int) -> Iterator[list[str]]:
    """So many daemons: their URIs."""
    with subprocess.Popen(
        program(OURS, "scale_backends.py", count), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None, "a pipe"
        try:
            uris = [line.strip() for line in iter(process.stdout.readline, "all\n") if line]
            if len(uris) != count:
                raise RuntimeError(f"{count} back ends did not start")
            yield uris
        finally:
            process.terminate()


def tree(count: int) -> Sample:
    with scratch() as folder:
        source = folder / "source"
        fill(source, count)
        (folder / "served").mkdir()
        with Server(command("pyroxfer", "serve", folder / "served")) as server:
            before = server.cpu_s()
            words = command("pyroxfer", "send", source, f"{server.uri}/", "-q", "--durability", "none")
            seconds, client = ended(words)
            used = server.cpu_s() - before + client.ru_utime + client.ru_stime
            assert sum(len(files) for _, _, files in os.walk(folder / "served" / "source")) == count
            return Sample(
                count / seconds,
                {
                    "CPU µs a file": used / count * 1e6,
                    "server MiB": server.peak_rss_mib(),
                    "client MiB": client.ru_maxrss / 1024,
                },
            )


def fill(folder: Path, count: int) -> None:
    """Files of 1 KiB, a thousand in a folder."""
    for start in range(0, count, 1000):
        inner = folder / f"{start // 1000:03}"
        inner.mkdir(parents=True)
        for number in range(start, min(start + 1000, count)):
            (inner / f"{number:06}").write_bytes(os.urandom(1024))


def ended(words: list[str]) -> tuple[float, resource.struct_rusage]:
    """Run a command to its end: seconds, and what it used."""
    begin = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)} failed")
    return time.perf_counter() - begin, used
