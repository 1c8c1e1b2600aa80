"""Where the microseconds of a small call, of a block of a file or of a blob through the dispatcher go.

Everything runs twice: as it is, for what one of them costs in processor time, and under cProfile, for the share of
each room. The profiler makes small functions look dearer than they are; compare shares with shares.
"""

from __future__ import annotations

import json
import os
import pstats
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profile_arguments import parser

sys.path.append(str(Path(__file__).parents[1] / "benchlib"))
import scale  # it lies beside the benchmark, as the next one does
from processes import ONE_CORE, OURS, PROGRAMS, ROOT, Server, run_client

PROFILED = Path(__file__).parent / "profiled.py"
COMMANDS = Path(OURS).parent
BLOCK = 256 * 1024
"""Bytes that a block of a file has here; a channel may move them in other pieces."""
Costs = dict[str, dict[str, float]]
"""Microseconds of processor time of one unit, by process and room."""


@dataclass(frozen=True)
class Process:
    """One side, with the program that is run for it."""

    name: str
    program: list[str]


@dataclass(frozen=True)
class Work:
    """What is profiled: a server, a client that keeps it busy, and how many units the client's result is worth."""

    server: Process
    client: Process
    units: Callable[[dict[str, Any]], float]


@contextmanager
def call(how: str, seconds: float) -> Iterator[Work]:
    """A small call, with one or 64 in flight of the trio proxy, or of the blocking one."""
    arguments = ["{uri}", "msgpack", str(seconds)]
    name = "rpc_client_blocking.py" if how == "blocking" else "rpc_client_trio.py"
    if how != "blocking":
        arguments.append(how)
    yield Work(
        Process("daemon", [str(PROGRAMS / "rpc_server.py")]),
        Process("proxy", [str(PROGRAMS / name), *arguments]),
        lambda result: float(result["calls"]),
    )


@contextmanager
def block(channel: str, seconds: float) -> Iterator[Work]:
    """256 KiB of a download of 256 MiB over one channel."""
    with scale.scratch() as folder:
        scale.sized(folder / "file", 256 * 2**20)
        yield Work(
            Process("file service", [str(COMMANDS / "pyroxfer"), "serve", str(folder)]),
            Process(
                "fetching",
                [str(PROGRAMS / "files_client.py"), "{uri}/file", "download", channel, "{new}"],
            ),
            lambda result: result["bytes"] / BLOCK,
        )


@contextmanager
def blob(_: str, seconds: float) -> Iterator[Work]:
    """A blob call through the dispatcher, 64 in flight."""
    with scale.scratch() as folder, scale.backends(1) as uris:
        config = folder / "dispatcher.toml"
        config.write_text('listen = "127.0.0.1:0"\n' + scale.service(0, uris))
        yield Work(
            Process("dispatcher", [str(COMMANDS / "pyroxfer-dispatcher"), "run", "-c", str(config)]),
            Process("proxy", [str(PROGRAMS / "scale_blobs.py"), "{dispatcher}", "topics", "1", str(seconds)]),
            lambda result: float(result["calls"]),
        )


WORKS = {"call": call, "block": block, "blob": blob}
"""What can be profiled, in the ways that `parser` knows."""


def profile(work: Work) -> Costs:
    """Run it as it is, then under the profiler."""
    cost, _ = run(work, None)
    with tempfile.TemporaryDirectory() as folder:
        _, found = run(work, Path(folder))
    return {
        process: {room: total * share for room, share in found[process].items()} for process, total in cost.items()
    }


def run(work: Work, folder: Path | None) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Microseconds of one unit by process, and when profiled into the folder the shares of its rooms."""

    def command(process: Process) -> list[str]:
        return [OURS, *([str(PROFILED), str(folder / process.name)] if folder else []), *process.program]

    with Server(command(work.server), ONE_CORE) as server:
        before = server.cpu_s()
        uri = server.uri
        dispatcher = f"PYRO:pyroxfer.dispatcher@{uri.partition('@')[2]}"
        places = {"{uri}": uri, "{dispatcher}": dispatcher, "{new}": str(scale.FOLDER / f"got-{server.pid}")}
        words = [replaced(word, places) for word in command(work.client)]
        try:
            result = run_client(words, ONE_CORE, said="\n")
        finally:
            Path(places["{new}"]).unlink(missing_ok=True)
        used = {work.server.name: server.cpu_s() - before, work.client.name: result["cpu_s"]}
    cost = {name: seconds / work.units(result) * 1e6 for name, seconds in used.items()}
    return cost, {name: shares(folder / name) for name in cost} if folder else {}


def replaced(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def shares(stats: Path) -> dict[str, float]:
    """Share of each room in the processor time of one process."""
    own: Counter[str] = Counter()
    for (file, _, function), (_, _, seconds, _, _) in pstats.Stats(str(stats)).stats.items():  # type: ignore[attr-defined]  # not in its stub
        own[room(file, function)] += seconds
    total = sum(own.values())
    return {name: seconds / total for name, seconds in own.items()}


SYSTEM_CALLS = frozenset(
    ["poll", "pread", "pwrite", "read", "recv", "recv_into", "send", "sendfile", "sendmsg", "splice", "write"]
)


def room(file: str, function: str) -> str:
    """Where a function belongs: a room of ours, a library, a system call."""
    if file == "~":
        found = re.search(r"method '(\w+)'|\.(\w+)>$", function)
        name = (found[1] or found[2]) if found else ""
        return f"system call {name}" if name in SYSTEM_CALLS else "built into Python"
    ours = r"/(?:core|dispatcher|pyroxfer|site-packages)/(pyroxfer_core/\w+|pyroxfer_dispatcher|pyroxfer)/"
    if found := re.search(ours, file):
        return found[1]
    if found := re.search(r"/site-packages/(\w+)", file):
        return found[1]
    return "programs" if str(ROOT) in file else "standard library"


def table(costs: Costs, before: Costs) -> Iterator[str]:
    for process, rooms in costs.items():
        old = before.get(process, {})
        yield f"{process}: {sum(rooms.values()):.1f} µs" + (f", was {sum(old.values()):.1f}" if old else "")
        total = sum(rooms.values())
        for name, micros in sorted(rooms.items(), key=lambda item: -item[1]):
            if micros >= total / 100:
                was = f"  was {old.get(name, 0.0):7.2f}" if old else ""
                yield f"  {name:36} {micros:7.2f} µs  {micros / total:4.0%}{was}"


def main() -> None:
    chosen = parser().parse_args()
    before = json.loads(chosen.against.read_text()) if chosen.against else {}
    with WORKS[chosen.work](chosen.way, chosen.seconds) as work:
        costs = profile(work)
    if chosen.save:
        chosen.save.write_text(json.dumps(costs, indent=1) + os.linesep)
    print("\n".join(table(costs, before)))


if __name__ == "__main__":
    main()
