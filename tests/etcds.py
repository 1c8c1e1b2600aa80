"""Real etcd servers on the loopback interface."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
from ports import free_ports

PROGRAM = Path(sys.executable).parent / "etcd"
WITHIN_S = 60


class Etcd:
    """A cluster of one or more members; each can be killed and started again."""

    def __init__(self, folder: Path, members: int = 1, options: Sequence[str] = (), scheme: str = "http") -> None:
        self._folder = folder
        self._options = options
        self._scheme = scheme
        ports = free_ports(2 * members)
        self.ports = ports[:members]
        """Of the clients, by member."""
        self._peers = ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members
        for member in range(members):
            self.start(member)

    @property
    def endpoints(self) -> list[str]:
        return [f"{self._scheme}://127.0.0.1:{port}" for port in self.ports]

    def url(self, prefix: str = "", user: str = "") -> str:
        """The text for ``--storage``."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"etcd:{self._scheme}://{user}{places}/{prefix}"

    def start(self, member: int) -> None:
        """Start a member, again with the data it had."""
        peers = [f"http://127.0.0.1:{port}" for port in self._peers]
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        folder = self._folder / f"m{member}"
        here = self.endpoints[member]
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(PROGRAM), "--name", f"m{member}", "--data-dir", str(folder / "data"), "--log-level", "error",
            "--listen-client-urls", here, "--advertise-client-urls", here,
            "--listen-peer-urls", peers[member], "--initial-advertise-peer-urls", peers[member],
            "--initial-cluster", cluster, *self._options,
        ]  # fmt: skip
        with (folder / "log").open("ab") as log:
            self._processes[member] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, member: int) -> None:
        """As `kill -9`."""
        process = self._processes[member]
        assert process is not None, "it runs"
        process.kill()
        process.wait()
        self._processes[member] = None

    def wait(self, verify: ssl.SSLContext | bool = False) -> None:
        """Until every member that runs has a leader."""
        until = time.monotonic() + WITHIN_S
        for member, endpoint in enumerate(self.endpoints):
            while self._processes[member] is not None and not _is_healthy(endpoint, verify):
                assert time.monotonic() < until, (self._folder / f"m{member}" / "log").read_text()
                time.sleep(0.05)

    def leader(self) -> int:
        """The member that leads."""
        for member, endpoint in enumerate(self.endpoints):
            status = httpx2.post(f"{endpoint}/v3/maintenance/status", json={}, trust_env=False).json()
            if status["leader"] == status["header"]["member_id"]:
                return member
        raise AssertionError("there is no leader")

    def close(self) -> None:
        for member, process in enumerate(self._processes):
            if process is not None:
                self.kill(member)


def _is_healthy(endpoint: str, verify: ssl.SSLContext | bool) -> bool:
    try:
        answer = httpx2.get(f"{endpoint}/health", verify=verify, trust_env=False, timeout=2)
    except httpx2.HTTPError:
        return False
    return bool(answer.json().get("health") == "true")
