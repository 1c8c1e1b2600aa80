"""The tools people move files with today, each serving one folder on loopback: nginx, an rsync daemon, sshd for scp.

A tool that is not installed is left out, and the page says so.
"""

from __future__ import annotations

import getpass
import os
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from children import END_WITH_PARENT
from processes import ROOT, cpu_of_tree

LIMIT = "limit in C"
NEEDED = {
    LIMIT: (str(ROOT / ".bench-peers" / "limit"),),
    "rsync daemon": ("rsync",),
    "nginx and curl": ("nginx", "curl"),
    "scp": ("scp", "/usr/sbin/sshd", "ssh-keygen"),
    "HAProxy": ("haproxy",),
}
"""The programs of each peer."""
VERSIONS = {"rsync": ["--version"], "nginx": ["-v"], "curl": ["--version"], "ssh": ["-V"], "haproxy": ["-v"]}
"""How each says its version."""


def found(program: str) -> str | None:
    """Where a program is: servers are often where only root's PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def present(peer: str) -> bool:
    """Whether everything this peer needs is installed."""
    return all(map(found, NEEDED[peer]))


def versions() -> dict[str, str]:
    """Of the tools that are installed."""
    numbers = {}
    for name, words in VERSIONS.items():
        program = found(name)
        if program is not None:
            done = subprocess.run([program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            number = re.search(r"\d+\.[\w.]+", done.stdout + done.stderr)
            numbers[name] = number[0] if number else "of unknown version"
    return numbers


def absent() -> list[str]:
    return [peer for peer in NEEDED if not present(peer)]


class Tool:
    """A running server of another project, at ``port``."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=END_WITH_PARENT,
        )
        until = time.monotonic() + 10
        while not answers(port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError(f"{' '.join(command)} did not start")
            time.sleep(0.05)

    def cpu_s(self) -> float:
        """Processor seconds of the server, its children and those that have ended."""
        return cpu_of_tree(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path) -> Iterator[Tool]:
    """Serves the folder at ``/``: one worker, sendfile."""
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        config = Path(state) / "nginx.conf"
        paths = "".join(
            f"{kind}_temp_path {state}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"{user}daemon off;\nworker_processes 1;\npid {state}/pid;\nerror_log /dev/null;\nevents {{}}\n"
            f"http {{ access_log off; sendfile on; keepalive_requests 1000000;\n{paths}"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        tool = Tool([found("nginx") or "nginx", "-c", str(config)], port)
        try:
            yield tool
        finally:
            tool.close()


@contextmanager
def rsync(folder: Path) -> Iterator[Tool]:
    """Serves the folder as module ``all``."""
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        config = Path(state) / "rsyncd.conf"
        owner = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\npid file = {state}/pid\nlog file = /dev/null\n"
            f"{owner}[all]\npath = {folder}\nread only = no\n"
        )
        tool = Tool(["rsync", "--daemon", "--no-detach", f"--config={config}"], port)
        try:
            yield tool
        finally:
            tool.close()


@contextmanager
def sshd() -> Iterator[tuple[Tool, list[str]]]:
    """An sshd for this user only, with keys made for the run, and the options that scp needs for it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{state}/{name}"], check=True)
        shutil.copy(f"{state}/user.pub", f"{state}/authorized")
        config = Path(state) / "sshd.conf"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {state}/host\nAuthorizedKeysFile {state}/authorized\n"
            f"PidFile {state}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"AllowUsers {getpass.getuser()}\nSubsystem sftp internal-sftp\nPermitRootLogin prohibit-password\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        tool = Tool(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], port)
        options = ["-q", "-P", str(port), "-i", f"{state}/user", "-o", "StrictHostKeyChecking=no",
                   "-o", "UserKnownHostsFile=/dev/null"]  # fmt: skip
        try:
            yield tool, options
        finally:
            tool.close()


def timed(tool: Tool | None, command: list[str]) -> tuple[float, float]:
    """Run a client to its end: seconds, and processor seconds of both ends."""
    served = tool.cpu_s() if tool else 0.0
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}"
        )
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used + (tool.cpu_s() - served if tool else 0.0)
