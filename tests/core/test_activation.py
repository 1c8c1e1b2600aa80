"""Sockets that were open before, and what a service tells the manager that started it."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from managers import WITHIN_S, Manager, a_manager, activated

from pyroxfer_core import Daemon, Proxy, ServiceManager, Settings, expose, inherited_listeners
from pyroxfer_core.errors import CommunicationError, SecurityError
from pyroxfer_core.transport import inherited
from pyroxfer_core.transport.sockets import bind_tcp, bind_unix, unmapped

NS = "from pyroxfer_core.cli.ns import ns; ns()"
COMMAND = "from pyroxfer.cli.main import main; main()"


@expose
class Mirror:
    async def me(self) -> Mirror:
        return self


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with a_manager(tmp_path) as heard:
        yield heard


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    sock = bind_tcp("localhost", 0)
    yield sock
    sock.close()


def variables(**changes: str) -> dict[str, str]:
    """What a manager says of one socket, and something else."""
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "OTHER": "stays", **changes}


def test_sockets_are_taken_with_their_names_and_the_variables_removed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the variables nor the descriptors reach programs that are started later."""
    monkeypatch.setattr(inherited, "FIRST_FD", listener.fileno())
    os.set_inheritable(listener.fileno(), True)
    said = variables(LISTEN_FDNAMES="web", LISTEN_PIDFDID="7")
    (found,) = inherited_listeners(said)
    assert (found.name, found.sock.getsockname()) == ("web", listener.getsockname())
    assert not found.sock.get_inheritable()
    assert not found.sock.getblocking()
    assert said == {"OTHER": "stays"}
    found.sock.detach()


def test_a_socket_without_a_name_is_unknown(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited, "FIRST_FD", listener.fileno())
    (found,) = inherited_listeners(variables())
    assert found.name == "unknown"
    found.sock.detach()


@pytest.mark.parametrize(
    "changes", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}]
)
def test_what_is_meant_for_another_process_is_left_alone(listener: socket.socket, changes: dict[str, str]) -> None:
    said = variables(**changes)
    assert inherited_listeners(said) == []
    assert said == {"OTHER": "stays"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"LISTEN_PID": "me"}, "LISTEN_PID='me' is not a number"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS='-1' is not a number"),
        ({"LISTEN_FDS": "1000"}, "more than 64"),
        ({"LISTEN_FDNAMES": "a:b"}, "has 2 names"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(changes: dict[str, str], text: str) -> None:
    said = variables(**changes)
    with pytest.raises(CommunicationError, match=text):
        inherited_listeners(said)
    assert said == {"OTHER": "stays"}


def test_a_descriptor_that_does_not_listen_is_refused_and_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says what is wrong with the socket unit."""
    ends = socket.socketpair()
    with ends[0], ends[1], socket.socket(type=socket.SOCK_DGRAM) as udp, (tmp_path / "file").open("w") as file:
        for fd, text in (
            (ends[0].fileno(), "Accept=yes"),
            (udp.fileno(), "ListenStream"),
            (file.fileno(), "non-socket"),
        ):
            monkeypatch.setattr(inherited, "FIRST_FD", fd)
            with pytest.raises(CommunicationError, match=text):
                inherited_listeners(variables())
            os.fstat(fd)


async def test_a_daemon_serves_on_what_it_is_given_and_leaves_the_file_to_its_owner(tmp_path: Path) -> None:
    """URIs lead to the first; objects in answers to where the caller came in."""
    path = str(tmp_path / "socket")
    first, second = bind_tcp("127.0.0.1", 0), bind_unix(path)
    tcp = f"127.0.0.1:{first.getsockname()[1]}"
    async with Daemon(listeners=[first, second]) as daemon:
        assert daemon.register(Mirror(), "mirror").location == tcp
        for location in (tcp, f"./u:{path}"):
            async with Proxy(f"PYRO:mirror@{location}") as proxy, await proxy.me() as again:
                assert again._pyroUri.location == location
    assert Path(path).exists()
    assert first.fileno() == second.fileno() == -1
    with pytest.raises(CommunicationError, match="are closed"):
        daemon.bind()


async def test_a_daemon_on_a_unix_socket_that_it_was_given_has_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with Daemon(listeners=[bind_unix(path)]) as daemon:
        assert daemon.location == f"./u:{path}"
        async with Proxy(daemon.register(Mirror(), "mirror")) as proxy:
            await proxy._pyroBind()


async def test_an_open_door_is_refused_whoever_opened_it() -> None:
    """What a manager listens on is judged like a host of our own."""
    with bind_tcp("0.0.0.0", 0) as everywhere:
        daemon = Daemon(listeners=[everywhere])
        with pytest.raises(SecurityError, match="--insecure"):
            daemon.bind()
        daemon = Daemon(listeners=[everywhere], settings=Settings(insecure=True))
        daemon.bind()
        assert "0.0.0.0" not in daemon.published_location
        daemon.close()


def test_a_daemon_refuses_sockets_that_do_not_listen() -> None:
    with socket.socket() as deaf, pytest.raises(CommunicationError, match="does not listen"):
        Daemon(listeners=[deaf])


@pytest.mark.parametrize(
    ("shown", "meant"), [("::ffff:127.0.0.1", "127.0.0.1"), ("::ffff:1", "::ffff:1"), ("127.0.0.1", "127.0.0.1")]
)
def test_addresses_of_sockets_for_both_versions(shown: str, meant: str) -> None:
    assert unmapped(shown) == meant


# --- what the manager is told


def test_the_manager_is_told_what_happens(manager: Manager) -> None:
    said = {"NOTIFY_SOCKET": manager.place, "OTHER": "stays"}
    service = ServiceManager.from_environment(said)
    assert said == {"OTHER": "stays"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.ready("two\nlines")
    assert manager.hears() == ["READY=1", "STATUS=two lines"]
    service.reloading()
    reloading, since = manager.hears()
    assert reloading == "RELOADING=1"
    assert int(since.removeprefix("MONOTONIC_USEC=")) >= before
    service.status("busy")
    service.stopping()
    service.succeeded_by(77)
    assert [manager.hears() for _ in range(3)] == [["STATUS=busy"], ["STOPPING=1"], ["MAINPID=77", "READY=1"]]
    service.stopping()
    ServiceManager(manager.place).status("of the next one")
    assert manager.hears() == ["STATUS=of the next one"]


def test_an_abstract_socket_is_told_too() -> None:
    manager = Manager(f"@pyroxfer-test-{os.getpid()}")
    ServiceManager(manager.place).ready()
    assert manager.hears() == ["READY=1"]
    manager.close()


@pytest.mark.parametrize("place", ["", "vsock:2:1", "/nowhere/at/all"])
def test_a_manager_that_is_not_there_does_not_matter(place: str) -> None:
    service = ServiceManager.from_environment({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "x"})
    service.ready()
    assert service.watchdog_s is None


async def test_signs_of_life_go_on_until_the_end_of_the_block(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    """A service that was cancelled and tidies up is not given up for dead."""
    environ = {"NOTIFY_SOCKET": manager.place, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    service = ServiceManager.from_environment(environ)
    with trio.CancelScope() as scope:
        async with service.alive():
            scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(2.5)
    service.stopping()
    assert manager.hears_until("STOPPING=1") == [["WATCHDOG=1"]] * 3 + [["STOPPING=1"]]


async def test_no_signs_of_life_where_nobody_asks(manager: Manager) -> None:
    for asked in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}):
        async with ServiceManager.from_environment({"NOTIFY_SOCKET": manager.place, **asked}).alive():
            await trio.testing.wait_all_tasks_blocked()
    ServiceManager(manager.place).ready()
    assert manager.hears() == ["READY=1"]


# --- the commands


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(NS, ["-s", "memory"]), (COMMAND, ["serve", "{folder}", "--state", "{folder}/.state"])],
    ids=["ns", "serve"],
)
def test_a_command_serves_on_the_sockets_of_its_manager(
    program: str, arguments: list[str], manager: Manager, listener: socket.socket, tmp_path: Path
) -> None:
    """A connection made before the program started is served, and the manager hears of every change."""
    port = listener.getsockname()[1]
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as early,
        activated(
            [listener],
            program,
            *(argument.format(folder=tmp_path) for argument in arguments),
            NOTIFY_SOCKET=manager.place,
            WATCHDOG_USEC="60000000",
        ) as process,
    ):
        listener.close()
        assert ["WATCHDOG=1"] in manager.hears_until("READY=1")
        early.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert early.recv(4) == b"PYRO"
        process.send_signal(signal.SIGHUP)
        manager.hears_until("RELOADING=1")
        manager.hears_until("READY=1")
        process.send_signal(signal.SIGTERM)
        manager.hears_until("STOPPING=1")
        out, err = process.communicate(timeout=WITHIN_S)
        assert process.returncode == 0, err
        assert re.search(rf"@127\.0\.0\.1:{port}\b", out), out


def test_a_command_says_in_one_line_what_is_wrong_with_its_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as udp, activated([udp], NS, LISTEN_FDNAMES="names") as process:
        _, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 5
    assert (
        err == "Error: descriptor 3 (names) is no stream socket of TCP or unix: the socket unit needs ListenStream=\n"
    )
