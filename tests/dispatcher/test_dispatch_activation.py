"""A dispatcher on sockets that were open before it: clients, control and admin page."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from doubles_dispatch import POISON, ask, blob, echo, raw_backend, raw_client
from managers import WITHIN_S, Manager, a_manager, activated

from pyroxfer_core import InheritedListener, bind_tcp
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import ConfigError, parse_config
from pyroxfer_dispatcher.control import ask_control, bind_control

PROGRAM = "from pyroxfer_dispatcher.cli import main; main()"


def text(uri: str = "PYRO:x@localhost:1", head: str = "") -> str:
    return f'{head}\n[[services]]\nname = "orders"\n[[services.backends]]\nname = "a"\nuri = "{uri}"\n'


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with a_manager(tmp_path) as heard:
        yield heard


async def test_it_serves_on_every_socket_of_its_manager(tmp_path: Path, manager: Manager) -> None:
    """Names tell what each is for; files of sockets stay with who made them."""
    control, clients = str(tmp_path / "control"), str(tmp_path / "clients")
    path = tmp_path / "dispatcher.toml"
    with ExitStack() as stack:
        doors = [bind_tcp("localhost", 0), bind_control(control), bind_control(clients), bind_tcp("127.0.0.1", 0)]
        for door in doors:
            stack.enter_context(door)
        port, admin = doors[0].getsockname()[1], doors[3].getsockname()[1]
        async with raw_backend(echo) as backend:
            path.write_text(text(backend.uri, f'control = "{control}"\nadmin = "localhost:1"'))
            process = stack.enter_context(
                activated(
                    doors,
                    PROGRAM,
                    "run",
                    "-c",
                    str(path),
                    LISTEN_FDNAMES="my.socket:control:local:admin",
                    NOTIFY_SOCKET=manager.place,
                )
            )
            heard = await trio.to_thread.run_sync(manager.hears)
            assert heard == ["READY=1", f"STATUS=Dispatcher on localhost:{port}"]
            for location in (f"127.0.0.1:{port}", f"./u:{clients}"):
                async with raw_client(location) as client:
                    assert (await ask(client, blob())).body == POISON
        (status,) = await trio.to_thread.run_sync(lambda: list(ask_control(control, {"do": "status"})))
        assert status["pid"] == process.pid
        async with await trio.open_tcp_stream("127.0.0.1", admin) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["ok"]
        process.send_signal(signal.SIGHUP)
        assert (await trio.to_thread.run_sync(manager.hears))[0] == "RELOADING=1"
        assert await trio.to_thread.run_sync(manager.hears) == ["READY=1"]
        process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(manager.hears) == ["STOPPING=1"]
        _, errors = await trio.to_thread.run_sync(lambda: process.communicate(timeout=WITHIN_S))
    assert (process.returncode, errors) == (0, "")
    assert Path(control).is_socket()
    assert Path(clients).is_socket()


@pytest.mark.parametrize(
    ("names", "head", "problem"),
    [
        (["control"], "", "control: a socket of this name was passed; say in the file"),
        (["admin", "admin"], 'admin = "localhost:0"', "admin: 2 sockets"),
        (["control"], 'control = "/nowhere"', "control: the socket passed is no unix socket"),
    ],
)
def test_sockets_that_have_no_place_are_refused(names: list[str], head: str, problem: str) -> None:
    with ExitStack() as stack:
        passed = [InheritedListener(name, stack.enter_context(bind_tcp("localhost", 0))) for name in names]
        with pytest.raises(ConfigError, match=problem):
            Dispatcher(parse_config(text(head=head)), listeners=passed)


@pytest.mark.parametrize(("name", "told"), [("clients", "listen: 0.0.0.0"), ("admin", "admin: 0.0.0.0")])
def test_an_open_door_is_refused_whoever_opened_it(name: str, told: str) -> None:
    with bind_tcp("0.0.0.0", 0) as everywhere, pytest.raises(ConfigError, match=told):
        listeners = [InheritedListener(name, everywhere)]
        Dispatcher(parse_config(text(head='admin = "localhost:0"')), listeners=listeners)


@pytest.mark.parametrize(
    ("listen", "address", "shown"),
    [
        ("localhost:9095", "127.0.0.1", "localhost"),
        ("localhost:9095", "127.0.0.2", "localhost"),
        ("files.example:9095", "0.0.0.0", "files.example"),
        ("files.example:9095", "127.0.0.1", "files.example"),
    ],
)
async def test_the_name_in_the_file_is_what_clients_are_told(listen: str, address: str, shown: str) -> None:
    """With the port of the socket."""
    sock = bind_tcp(address, 0)
    port = sock.getsockname()[1]
    config = parse_config(text(head=f'listen = "{listen}"\ninsecure = true'))
    async with Dispatcher(config, listeners=[InheritedListener("x", sock)]) as dispatcher:
        assert dispatcher.location == f"{shown}:{port}"
    assert isinstance(sock, socket.socket)
    assert sock.fileno() == -1
