"""The services of the soak, each a process at an address of its own that it keeps when it is started again."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
from ports import free_ports

T = TypeVar("T")

HERE = Path(__file__).parent
START_WITHIN_S = 30.0


@dataclass(frozen=True)
class Usage:
    """What a service holds at one moment."""

    rss_kib: int
    descriptors: int
    threads: int
    processes: int = 1


def counters_three_ways(ports: Sequence[int]) -> str:
    """Services for a dispatcher's file: counters at these ports, called with blobs, pinned and spread."""
    backends = "".join(
        f'[[services.backends]]\nname = "b{number}"\nuri = "PYRO:counter@127.0.0.1:{port}"\n'
        for number, port in enumerate(ports)
    )
    ways = (
        ("blob", ""),
        ("pinned", 'objects = ["counter"]'),
        ("spread", 'objects = ["spread"]\nstateless = true'),
    )
    return "".join(f'[[services]]\nname = "{name}"\n{more}\n{backends}' for name, more in ways)


class Service:
    """One service. ``victim`` says whether it may be killed."""

    def __init__(self, name: str, command: Sequence[str], *, victim: bool, errors: Path) -> None:
        self.name = name
        self.victim = victim
        self.kills = 0
        self.worker_kills = 0
        self._command = command
        self._errors = errors
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it says that it runs."""
        with open(self._errors, "ab") as errors:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self._process = process
        assert process.stdout is not None
        text, end = "", time.monotonic() + START_WITHIN_S
        while not re.search(r"127\.0\.0\.1:\d+", text):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise SystemExit(f"soak: {self.name} did not start: {text.strip()}; see {self._errors}")
            text += data.decode(errors="replace")

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self.kills += 1
        self._process.kill()
        self._end()

    def kill_worker(self, random: Random) -> None:
        """End one of its processes as a crash would; the others go on."""
        workers = children(self.pid)
        if workers:  # none while each is being started again
            self.worker_kills += 1
            os.kill(random.choice(workers), signal.SIGKILL)

    def stop(self) -> int:
        """End it as an operator would; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = -signal.SIGKILL
        self._process.stdout.close()
        return code

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def usage(self) -> Usage:
        """Of all its processes."""
        parts = [usage_of(self.pid), *filter(None, map(usage_if_alive, children(self.pid)))]
        return Usage(*(sum(getattr(part, field.name) for part in parts) for field in fields(Usage)))


def children(pid: int) -> list[int]:
    """The processes that one has started and that run."""
    by_thread = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in by_thread for child in children.read_text().split()]


def usage_if_alive(pid: int) -> Usage | None:
    """None for a process that is ending, and holds nothing any more."""
    try:
        return usage_of(pid)
    except (OSError, KeyError):
        return None


def usage_of(pid: int) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    found = {
        line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "Threads"))
    }
    return Usage(int(found["VmRSS"]), len(os.listdir(f"/proc/{pid}/fd")), int(found["Threads"]))


class Fleet:
    """Two file servers, two counters, a name server and a dispatcher; of each pair the second is a victim.

    Args:
        workers: processes of each file server.
    """

    def __init__(self, work: Path, workers: int = 1) -> None:
        self.work = work
        self.workers = workers
        self.errors = work / "errors.log"
        """What all services write to standard error."""
        self.folders = [work / "steady", work / "victim"]
        self.logs = [work / "steady.log", work / "victim.log"]
        ports = free_ports(6)
        self.files = [f"127.0.0.1:{port}" for port in ports[:2]]
        self.counters = [f"127.0.0.1:{port}" for port in ports[2:4]]
        self.names, self.dispatcher = (f"127.0.0.1:{port}" for port in ports[4:])
        self.services = list(self._services())

    def _services(self) -> list[Service]:
        errors = self.errors
        config = self.work / "dispatcher.toml"
        config.write_text(self._config())
        host, port = self.names.split(":")
        names = ["pyroxfer", "ns", "-n", host, "-p", port, "-x", "-s", f"sql:{self.work / 'names.sqlite'}"]
        found = [
            Service("name server", names, victim=True, errors=errors),
            Service("dispatcher", ["pyroxfer-dispatcher", "run", "-c", str(config)], victim=False, errors=errors),
        ]
        for number, kind in enumerate(("steady", "victim")):
            self.folders[number].mkdir()
            files = ["pyroxfer", "serve", str(self.folders[number]), "--listen", self.files[number]]
            files += ["--workers", str(self.workers)] if self.workers > 1 else []
            counter = [sys.executable, str(HERE / "counter.py"), self.counters[number], str(self.logs[number])]
            found += [
                Service(f"{kind} file server", files, victim=bool(number), errors=errors),
                Service(f"{kind} counter", counter, victim=bool(number), errors=errors),
            ]
        return found

    def _config(self) -> str:
        backends = "".join(
            f'[[services.backends]]\nname = "b{number}"\nuri = "PYRO:counter@{place}"\n'
            for number, place in enumerate(self.counters)
        )
        return f'listen = "{self.dispatcher}"\n[[services]]\nname = "soak"\n{backends}'

    def start(self) -> None:
        for service in self.services:
            service.start()

    def stop(self) -> dict[str, int]:
        """Stop all; the exit codes."""
        return {service.name: service.stop() for service in self.services}

    @property
    def steady(self) -> Service:
        """The file server that is not killed; its workers may be."""
        return next(service for service in self.services if service.name == "steady file server")

    @property
    def victims(self) -> list[Service]:
        return [service for service in self.services if service.victim]

    def executions(self) -> dict[int, int]:
        """How often each call ran, by both logs."""
        counts: dict[int, int] = {}
        for log in self.logs:
            for line in log.read_bytes().splitlines() if log.exists() else []:
                counts[int(line)] = counts.get(int(line), 0) + 1
        return counts


async def until_signalled(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run a campaign. SIGTERM and SIGINT cancel it, so that it ends its services.

    Raises:
        SystemExit: it was cancelled.
    """
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                await anext(signals)
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        found = await function(*args)
        nursery.cancel_scope.cancel()
        return found
    raise SystemExit("ended by a signal")
