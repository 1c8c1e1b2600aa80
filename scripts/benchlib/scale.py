"""How cost grows with the amount of work: transfers at once, routes, back ends of a service, files in a tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
import trees
from children import END_WITH_PARENT
from measure import Contestant, Effort, Growth, Sample, in_turns
from processes import OURS, ROOT, Server, command, program, run_client

TITLE = "Growth"
NOTE = f"""\
Ours against itself. Downloads at once: 256 of 4 MiB, so many at a time, each with a connection of its own; `quick /
slow` says how evenly they were served: the time that a tenth of them stayed below, as a share of that which a tenth
exceeded. Routes: blob calls, 64 in flight, each topic in turn, a service and a back end (a daemon with a port) for
every topic. One service: the same calls, all to one topic; with `hash` every call has a new key, which rendezvous
hashing holds against every back end (a key that comes again is remembered). Trees: files of 1 KiB uploaded into an
empty folder {"in memory (tmpfs)" if trees.in_memory() else "on the disk"}, durability none, each with a receipt of
its own; CPU and memory of a file without those of the command that sends a single one."""
TRANSFERS = (1, 8, 64, 256)
DOWNLOADS = 256
BYTES = 4 * 1024 * 1024
ROUTES = (1, 10, 100, 1_000)
POLICIES = ("least-of-two", "round-robin", "hash")
DISPATCHER_CPU = "dispatcher CPU µs a call"
FOLDER = ROOT / ".bench"
AT_ONCE = Growth(
    "CPU of one GiB, by downloads at once", {count: f"{count} at once" for count in TRANSFERS}, "server CPU s/GiB"
)
ROUTED = Growth(
    "Dispatcher CPU of a call, by routes", {count: f"{count:,} routes" for count in ROUTES}, DISPATCHER_CPU
)


def measure(effort: Effort) -> dict[str, Any]:
    """A table for each kind of work."""
    amounts, seconds = effort.some(ROUTES), effort.seconds
    whole = DOWNLOADS // 4 if effort.quick else DOWNLOADS
    transfers = [Contestant(f"{count} at once", partial(downloads, count, whole)) for count in effort.some(TRANSFERS)]
    routes = [Contestant(f"{count:,} routes", partial(routed, count, seconds)) for count in amounts]
    members = [
        Contestant(member(policy, count), partial(balanced, policy, count, seconds))
        for policy in POLICIES
        for count in (amounts[-1:] if effort.quick else amounts)
    ]
    tables = {}
    for title, unit, contestants, growths in (
        ("Downloads at once", "MB/s", transfers, [AT_ONCE]),
        ("Routes and back ends", "calls/s", routes, [ROUTED]),
        ("Back ends of one service", "calls/s", members, [grown(policy) for policy in POLICIES]),
    ):
        print(f"growth: {title.lower()}", file=sys.stderr)
        tables[title] = report.section(unit, in_turns(contestants, effort.repetitions), [], growths)
    print("growth: trees", file=sys.stderr)
    return tables | {"Trees": trees.measure(effort)}


def member(policy: str, count: int) -> str:
    return f"{policy}, {count:,} back ends"


def grown(policy: str) -> Growth:
    rows = {count: member(policy, count) for count in ROUTES}
    return Growth(f"Dispatcher CPU of a call, `{policy}`, by back ends", rows, DISPATCHER_CPU)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder on the disk that the repository is on."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        yield Path(folder)


def downloads(count: int, whole: int) -> Sample:
    """So many at once, until all are done."""
    with scratch() as folder:
        (folder / "served").mkdir()
        (folder / "got").mkdir()
        sized(folder / "served" / "file", BYTES)
        with Server(command("pyroxfer", "serve", folder / "served")) as server:
            before = server.cpu_s()
            words = (f"{server.uri}/file", whole, count, folder / "got")
            result = run_client(program(OURS, "scale_transfers.py", *words))
            used = server.cpu_s() - before
            return Sample(
                result["bytes"] / result["seconds"] / 1e6,
                {
                    "server CPU s/GiB": used / result["bytes"] * 2**30,
                    "server MiB": server.peak_rss_mib(),
                    "quick / slow": result["quick_s"] / result["slow_s"],
                },
            )


def sized(path: Path, size: int) -> None:
    """A file of random bytes; its size is a multiple of 64 KiB."""
    with path.open("wb") as file:
        for _ in range(size // 65536):
            file.write(os.urandom(65536))


def routed(count: int, seconds: float) -> Sample:
    """Each topic has a service and a back end."""
    with backends(count) as uris:
        services = "".join(service(number, [uri]) for number, uri in enumerate(uris))
        return blob_rate(services, ["topics", count], seconds)


def balanced(policy: str, count: int, seconds: float) -> Sample:
    """One topic has all the back ends."""
    with backends(count) as uris:
        return blob_rate(service(0, uris, policy), ["members" if policy != "hash" else "keys", count], seconds)


def blob_rate(services: str, calls: list[object], seconds: float) -> Sample:
    """Blob calls through a dispatcher with these services."""
    with scratch() as folder:
        config = folder / "dispatcher.toml"
        config.write_text('listen = "127.0.0.1:0"\n' + services)
        with Server(command("pyroxfer-dispatcher", "run", "-c", config)) as dispatcher:
            uri = f"PYRO:pyroxfer.dispatcher@{dispatcher.uri.partition('@')[2]}"
            with subprocess.Popen(
                program(OURS, "scale_blobs.py", uri, *calls, seconds),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=END_WITH_PARENT,
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
                    DISPATCHER_CPU: used / result["calls"] * 1e6,
                    "dispatcher MiB": dispatcher.peak_rss_mib(),
                },
            )


def service(number: int, uris: Sequence[str], policy: str = "least-of-two") -> str:
    """The part of a dispatcher's file for one topic."""
    members = "".join(f'[[services.backends]]\nname = "b{place}"\nuri = "{uri}"\n' for place, uri in enumerate(uris))
    return f'[[services]]\nname = "topic-{number}"\npolicy = "{policy}"\n{members}'


@contextmanager
def backends(count: int) -> Iterator[list[str]]:
    """So many daemons: their URIs."""
    with subprocess.Popen(
        program(OURS, "scale_backends.py", count),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=END_WITH_PARENT,
    ) as process:
        assert process.stdout is not None, "a pipe"
        try:
            uris = [line.strip() for line in iter(process.stdout.readline, "all\n") if line]
            if len(uris) != count:
                raise RuntimeError(f"{count} back ends did not start")
            yield uris
        finally:
            process.terminate()
