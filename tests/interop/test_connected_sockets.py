"""A socket that was connected by hand, with a stock library at one end or both: calls without a handshake."""

from __future__ import annotations

import json
import socket
import subprocess

import matrix
import pytest
from peers import ANSWER_WITHIN_S, PROGRAMS, python_for

from pyroxfer_core import Settings
from pyroxfer_core.blocking import Proxy
from pyroxfer_core.errors import Outcome, TimeoutError

SEEN = {
    "calls": [3, 6],
    "stream": [0, 1, 2, 3, 4],
    "attribute": 7,
    "exception": "division by zero",
    "oneway": [None, "heard"],
    "batch": [3, 7],
    "annotations": "HELLO",
}


def start(library: str, role: str, end: socket.socket, *protocol: str) -> subprocess.Popen[bytes]:
    command = [python_for(library), str(PROGRAMS / "connected.py"), library, role, str(end.fileno()), *protocol]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[end.fileno()])


@matrix.cell("connected sockets", "{client} client, {service} daemon", "{kind}")
@pytest.mark.parametrize(
    ("client", "service"),
    [("pyro4", "pyroxfer"), ("pyroxfer", "pyro4"), ("pyro5", "pyroxfer"), ("pyroxfer", "pyro5"),
     ("pyro4", "pyro4"), ("pyro5", "pyro5"), ("pyroxfer", "pyroxfer")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_connected_socket(client: str, service: str, kind: str) -> None:
    """Both roles; the program at either end is the same for every library."""
    one, other = socket.socketpair() if kind == "unix" else tcp_pair()
    with one, other:
        daemon = start(service, "service", one)
        protocol = ("48",) if (client, service) == ("pyroxfer", "pyro4") else ()
        caller = start(client, "client", other, *protocol)
    try:
        said, trouble = caller.communicate(timeout=ANSWER_WITHIN_S)
        assert said, trouble.decode()
        assert json.loads(said) == SEEN
    finally:
        for process in (caller, daemon):
            process.kill()
            process.communicate()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def test_a_daemon_that_speaks_another_protocol() -> None:
    """It stays silent and leaves the socket open; the caller is not left waiting, and told what to do."""
    one, other = socket.socketpair()
    with one, other:
        daemon = start("pyro4", "service", one)
        try:
            with pytest.raises(TimeoutError, match=r"Settings\(protocol=48\)") as caught:
                Proxy("shared", connected_socket=other, settings=Settings(connect_timeout_s=0.5))
            assert caught.value.outcome is Outcome.NOT_SENT
        finally:
            daemon.kill()
            daemon.communicate()
