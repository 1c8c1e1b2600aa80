"""A new process takes the place of a dispatcher: nobody is refused or cut inside a call, and nothing is forgotten."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from doubles import connect_bytes
from doubles_dispatch import (
    OBJECT,
    POISON,
    Doubler,
    RawBackend,
    ask,
    blob,
    config_for,
    echo,
    raw_backend,
    raw_client,
    wait_for,
)
from managers import WITHIN_S, a_manager

from pyroxfer_core import (
    Connection,
    Daemon,
    Proxy,
    SerializedBlob,
    ServiceManager,
    Uri,
    bind_tcp,
    open_connection,
)
from pyroxfer_core.errors import CommunicationError, NamingError
from pyroxfer_core.nameserver import start_ns
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.building import make_directory
from pyroxfer_dispatcher.cli import main
from pyroxfer_dispatcher.config import Config, parse_config
from pyroxfer_dispatcher.control import CommandError, ask_control
from pyroxfer_dispatcher.doors import Doors
from pyroxfer_dispatcher.handover import VARIABLE, Door, Inheritance, to_line
from pyroxfer_dispatcher.predecessor import Predecessor
from pyroxfer_dispatcher.state import BackendState, Inherited, State, remembered
from pyroxfer_dispatcher.succession import Program, Successor

RUN = (sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()", "run", "-c")


class Running:
    """A dispatcher in a process of its own, and whoever takes its place."""

    def __init__(self, path: Path, **variables: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [*RUN, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.location = self.next_line().rpartition("@")[2]
        self.control = str(path.parent / "control")

    def next_line(self) -> str:
        return self.out.readline().strip()

    async def asked(self, do: str, **more: Any) -> dict[str, Any]:
        def ask_there() -> dict[str, Any]:
            return next(ask_control(self.control, {"do": do, **more}))

        return await trio.to_thread.run_sync(ask_there)

    async def ended(self) -> str:
        """Wait for the end of all that write to its standard error; what they wrote."""
        await trio.to_thread.run_sync(self.process.wait, WITHIN_S)
        assert self.process.stderr is not None
        return await trio.to_thread.run_sync(self.process.stderr.read)

    def close(self) -> None:
        """End the first process, and the one that answers now."""
        with contextlib.suppress(CommunicationError):
            os.kill(next(ask_control(self.control, {"do": "status"}))["pid"], signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@contextmanager
def running(folder: Path, backend: RawBackend, head: str = "", **variables: str) -> Iterator[Running]:
    path = folder / "dispatcher.toml"
    path.write_text(text_for(folder, backend, head))
    dispatcher = Running(path, **variables)
    try:
        yield dispatcher
    finally:
        dispatcher.close()


def text_for(folder: Path, backend: RawBackend, head: str = "") -> str:
    return (
        f'listen = "localhost:0"\ncontrol = "{folder / "control"}"\n{head}\n[[services]]\nname = "orders"\n'
        f'[[services.backends]]\nname = "a"\nuri = "{backend.uri}"\n'
    )


@pytest.mark.parametrize("how", ["signal", "command"])
async def test_a_new_process_goes_on_with_the_same_sockets(tmp_path: Path, how: str) -> None:
    """Those who are connected go on with the old process, everybody else is with the new one; the manager knows which
    is the service, and the control socket is taken away by the last one only."""
    with a_manager(tmp_path) as manager:
        async with raw_backend(echo) as backend:
            with running(tmp_path, backend, NOTIFY_SOCKET=manager.place, WATCHDOG_USEC="600000000") as old:
                await trio.to_thread.run_sync(manager.hears_until, f"STATUS=Dispatcher on {old.location}")
                await old.asked("weight", target="a", weight=7)
                async with raw_client(old.location) as stays:
                    if how == "signal":
                        old.process.send_signal(signal.SIGUSR2)
                    else:
                        told = await trio.to_thread.run_sync(
                            lambda: CliRunner().invoke(main, ["restart", "-c", str(old.path)])
                        )
                        assert f"process {old.process.pid} sees 1 clients off" in told.output
                    assert (await trio.to_thread.run_sync(old.next_line)).endswith(f"@{old.location}")
                    main_pid, ready = (await trio.to_thread.run_sync(manager.hears_until, "READY=1"))[-1]
                    status = await old.asked("status")
                    assert [f"MAINPID={status['pid']}", "READY=1"] == [main_pid, ready]
                    assert status["pid"] != status["predecessor"] == old.process.pid
                    assert status["services"][0]["backends"][0]["weight"] == 7.0
                    async with raw_client(old.location) as comes:
                        for number in range(1, 4):
                            for client in (stays, comes):
                                assert (await ask(client, blob(number))).body == POISON
                    assert old.process.poll() is None
                assert await trio.to_thread.run_sync(old.process.wait, WITHIN_S) == 0
                assert (await old.asked("status"))["pid"] == status["pid"]
                os.kill(status["pid"], signal.SIGTERM)
                heard = await trio.to_thread.run_sync(manager.hears_until, "STOPPING=1")
                assert [message for message in heard if message != ["WATCHDOG=1"]] == [["STOPPING=1"]]
                assert await old.ended() == ""
                assert not Path(old.control).exists()


async def test_stock_clients_are_cut_between_calls_and_counted_by_the_successor(tmp_path: Path) -> None:
    """The call that is under way when the time is over goes on for as long as it takes."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await echo(connection, request)

    async def wait_for_the_last() -> None:
        def restart() -> list[dict[str, Any]]:
            return list(ask_control(old.control, {"do": "restart", "wait": True}))

        reports = await trio.to_thread.run_sync(restart)
        assert (reports[0]["clients"], reports[-1]["clients"]) == (2, 0)

    async with raw_backend(slow) as backend:
        with running(tmp_path, backend, "drain_timeout = 0.1") as old:
            async with raw_client(old.location) as busy, raw_client(old.location) as idle:
                await busy.send(blob())
                await wait_for(lambda: backend.seen)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_for_the_last)
                    assert await idle.receive() is None
                    go_on.set()
                    answer = await busy.receive()
                    assert isinstance(answer, Message)
                    assert answer.body == POISON
                    assert await busy.receive() is None
            assert await trio.to_thread.run_sync(old.process.wait, WITHIN_S) == 0

            async def cut() -> int:
                return int((await old.asked("status"))["cut"])

            while await cut() != 2:  # noqa: ASYNC110  # it hears of it a moment later
                await trio.sleep(0.01)
            await old.asked("restart", wait=True)
            while await cut() != 2:  # noqa: ASYNC110  # those that were cut by all of them
                await trio.sleep(0.01)


@pytest.mark.parametrize("mode", ["blob", "pinned", "spread"])
async def test_clients_of_ours_do_not_notice(tmp_path: Path, mode: str) -> None:
    """They are told, move between two calls, and no call fails; the old process ends although it waits for hours."""
    path = tmp_path / "dispatcher.toml"
    async with Daemon() as daemon:
        uri = daemon.register(Doubler(), "worker")
        stateless = "true" if mode == "spread" else "false"
        path.write_text(
            f'listen = "localhost:0"\ncontrol = "{tmp_path / "control"}"\ndrain_timeout = 3600\n[[services]]\n'
            f'name = "orders"\nobjects = ["worker"]\nstateless = {stateless}\n'
            f'[[services.backends]]\nname = "a"\nuri = "{uri}"\n'
        )
        old = Running(path)
        try:
            object_id = "pyroxfer.dispatcher" if mode == "blob" else "worker"
            async with Proxy(f"PYRO:{object_id}@{old.location}") as proxy, trio.open_nursery() as nursery:

                async def call() -> None:
                    if mode == "blob":
                        assert await proxy.process(SerializedBlob("orders", [1])) == "done"
                    else:
                        assert await proxy.double(4) == 8

                await call()
                nursery.start_soon(old.asked, "restart")
                while old.process.poll() is None:
                    await call()
                await call()
            assert old.process.returncode == 0
            assert (await old.asked("status"))["cut"] == 0
        finally:
            old.close()


async def test_the_name_of_a_dispatcher_stays_registered(tmp_path: Path) -> None:
    """The old process leaves it to the new one, and does not take it back at its end."""
    async with raw_backend(echo) as backend, start_ns("localhost", 0, broadcast=False) as names:
        head = f'register = "the.dispatcher"\nnameserver = "{names.internal_uri.location}"'
        path = tmp_path / "dispatcher.toml"
        path.write_text(text_for(tmp_path, backend, head))
        old = await trio.to_thread.run_sync(Running, path)  # in a thread: the name server is here
        try:
            await old.asked("restart")
            assert await trio.to_thread.run_sync(old.process.wait, WITHIN_S) == 0
            found = await names.name_server.lookup("the.dispatcher")
            assert str(found).endswith(f"@{old.location}")
            os.kill((await old.asked("status"))["pid"], signal.SIGTERM)
            assert await old.ended() == ""
            with pytest.raises(NamingError):
                await names.name_server.lookup("the.dispatcher")
        finally:
            old.close()


@pytest.mark.parametrize("how", ["signal", "command"])
async def test_a_file_with_a_mistake_leaves_the_old_process_serving(tmp_path: Path, how: str) -> None:
    """What is wrong with the file is said by the new process, that it has no consequences by the old one."""
    async with raw_backend(echo) as backend:
        with running(tmp_path, backend) as old:
            old.path.write_text("lisen = 1\n" + text_for(tmp_path, backend))
            if how == "signal":
                old.process.send_signal(signal.SIGUSR2)
            else:
                with pytest.raises(CommandError, match="it ended with exit code 2"):
                    await old.asked("restart")
            assert old.process.stderr is not None
            lines = [await trio.to_thread.run_sync(old.process.stderr.readline) for _ in range(2)]
            assert f"{old.path}:1: lisen: unknown key" in lines[0]
            assert "this process goes on serving: the new process did not take over: it ended" in lines[1]
            async with raw_client(old.location) as client:
                assert (await ask(client, blob())).body == POISON
            assert (await old.asked("status"))["pid"] == old.process.pid
            old.path.write_text(text_for(tmp_path, backend))
            assert (await old.asked("restart"))["was"] == old.process.pid


async def test_places_that_changed_in_the_file_are_those_of_the_new_process(tmp_path: Path) -> None:
    """A socket made for another place is not gone on with, nor is the file of the old control socket left."""
    (tmp_path / "new").mkdir()
    async with raw_backend(echo) as backend:
        with running(tmp_path, backend) as old, bind_tcp("localhost", 0) as free:
            place = f"127.0.0.1:{free.getsockname()[1]}"
            free.close()
            old.path.write_text(text_for(tmp_path / "new", backend).replace("localhost:0", place))
            await old.asked("restart")
            old_control, old.control = old.control, str(tmp_path / "new" / "control")
            async with raw_client(place) as client:
                assert (await ask(client, blob())).body == POISON
            assert not Path(old_control).exists()
            with pytest.raises(CommunicationError):
                await open_connection(old.location)
            assert (await old.asked("status"))["pid"] != old.process.pid


# --- successors that do not become any


@asynccontextmanager
async def succeeded_by(backend: RawBackend, code: str) -> AsyncIterator[Dispatcher]:
    """A dispatcher whose program is not what it should be."""
    program = Program([sys.executable, "-c", code], ServiceManager())
    async with Dispatcher(config_for(backend.uri), program=program) as dispatcher:
        yield dispatcher


HEIR = f"import os, socket; sock = socket.socket(fileno=int(os.environ['{VARIABLE}'])); "


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise SystemExit(3)", "it ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "it was ended by SIGSEGV"),
        (HEIR + "sock.close(); import time; time.sleep(1000)", "it was ended"),
        (HEIR + "sock.send(b'nonsense\\n'); raise SystemExit(4)", "it ended with exit code 4"),
        (HEIR + "sock.send(b'{\"ready\": 1}\\n'); import time; time.sleep(1000)", "it was ended"),
    ],
)
async def test_a_program_that_does_not_serve_changes_nothing(code: str, text: str) -> None:
    async with raw_backend(echo) as backend, succeeded_by(backend, code) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            with pytest.raises(CommandError, match=f"^not restarted: the new process did not take over: {text}$"):
                await dispatcher.restart()
            assert (await ask(client, blob())).body == POISON
        async with raw_client(dispatcher.location) as client:
            assert (await ask(client, blob())).body == POISON
        assert not dispatcher.facts["draining"]


async def test_a_program_that_is_gone_changes_nothing() -> None:
    program = Program(["/nowhere/at/all"], ServiceManager())
    async with Dispatcher(config_for("PYRO:x@localhost:1"), program=program) as dispatcher:
        with pytest.raises(CommandError, match="/nowhere/at/all cannot be started: No such file"):
            await dispatcher.restart()


async def test_a_restart_that_is_called_off_at_once_leaves_nothing() -> None:
    """No end of the pair stays open: the warning of it would come here."""
    config = config_for("PYRO:x@localhost:1")
    program = Program([sys.executable, "-c", "pass"], ServiceManager())
    with trio.CancelScope() as scope:
        scope.cancel()
        await Successor.start(program, config, Doors(config), State)
    assert scope.cancelled_caught


async def test_a_part_of_another_program_cannot_be_restarted() -> None:
    async with Dispatcher(config_for("PYRO:x@localhost:1")) as dispatcher:
        with pytest.raises(CommandError, match="part of another program"):
            await dispatcher.restart()


async def test_who_is_told_to_end_has_no_successor_and_one_restart_is_enough(tmp_path: Path) -> None:
    """A new process that is just starting is ended, too."""
    mark = tmp_path / "started"
    code = f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(1000)"
    async with (
        raw_backend(echo) as backend,
        succeeded_by(backend, code) as dispatcher,
        trio.open_nursery() as nursery,
    ):

        async def restart() -> None:
            with pytest.raises(CommandError, match="told to end meanwhile"):
                await dispatcher.restart()

        nursery.start_soon(restart)
        await wait_for(lambda: mark.exists() and mark.read_text())
        with pytest.raises(CommandError, match="a restart is under way"):
            await dispatcher.restart()
        dispatcher.begin_drain()
        await dispatcher.drained.wait()
        await wait_for(lambda: not Path("/proc", mark.read_text()).exists())
        with pytest.raises(CommandError, match="is draining"):
            await dispatcher.restart()


# --- what is inherited, and from whom


@pytest.mark.parametrize("said", ["", "x", "-1", "99999"])
def test_nobody_to_be_succeeded(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, said)
    assert Predecessor.find() is None
    assert VARIABLE not in os.environ


def test_only_the_process_that_started_this_one_is_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that leaked from elsewhere is left alone: the descriptor is something else here."""
    ours, theirs = socket.socketpair()
    with ours, theirs, bind_tcp("localhost", 0) as other:
        for sock in (theirs, other):
            monkeypatch.setenv(VARIABLE, str(sock.fileno()))
            assert Predecessor.find() is None
            os.fstat(sock.fileno())


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "not understood"),
        (b"{}\n", "not understood"),
        (to_line(Inheritance((Door("x", "y"),), False)), "0 came"),
    ],
)
def test_what_the_predecessor_says_is_checked(said: bytes, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "getppid", os.getpid)
    with ours:
        monkeypatch.setenv(VARIABLE, str(theirs.detach()))
        ours.send(said)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(CommunicationError, match=text):
            Predecessor.find()


# --- what is remembered


NOTHING = Inherited(State(), lambda *_: pytest.fail("nothing was said"))


def directory_of(config: Config) -> Any:
    return make_directory(config, lambda call: None)


def test_what_operators_said_and_who_listens_is_remembered() -> None:
    """As far as it is still there; what the file says counts where nobody said anything else."""
    text = """
        [[services]]
        name = "orders"
        [[services.backends]]
        name = "a"
        uri = "PYRO:a@localhost:1"
        [[services.backends]]
        name = "b"
        uri = "PYRO:b@localhost:2"
        weight = 3
        [[services]]
        name = "topics"
        match = "topics.*"
        listeners = "all"
    """
    config = parse_config(text)
    old, new = directory_of(config), directory_of(parse_config(text.replace("weight = 3", "weight = 4")))
    first, second = old.services["orders"].group.backends
    first.draining = first.disabled = True
    old.services["topics"].listeners.register("topics.one", Uri("PYRO:listener@localhost:3"))
    taken: list[tuple[str, bool]] = []
    state = remembered(old, NOTHING)
    Inherited(state, lambda service, backend, disabled: taken.append((backend.name, disabled))).restore(new)
    assert taken == [("a", True)]
    assert [backend.weight for backend in new.services["orders"].group.backends] == [1.0, 4.0]
    assert list(new.services["topics"].listeners.registered()) == [("topics.one", Uri("PYRO:listener@localhost:3"))]
    second.weigh(5.0)
    Inherited(remembered(old, NOTHING), lambda *_: None).restore(new)
    assert [backend.weight for backend in new.services["orders"].group.backends] == [1.0, 5.0]
    elsewhere = directory_of(config_for("PYRO:c@localhost:1"))
    Inherited(state, lambda *_: pytest.fail("nothing of it is there")).restore(elsewhere)
    NOTHING.restore(new)


def test_what_was_said_of_a_backend_waits_until_that_appears() -> None:
    """Once; and a process that takes over before it does inherits it, too."""
    said = BackendState("orders", "b0", "PYRO:worker@localhost:1", draining=True, weight=3.0)
    taken: list[bool] = []
    inherited = Inherited(State((said,)), lambda service, backend, disabled: taken.append(disabled))
    assert remembered(directory_of(config_for("PYRO:other@localhost:1")), inherited) == State((said,))
    service = directory_of(config_for("PYRO:worker@localhost:1")).services["orders"]
    (backend,) = service.group.backends
    for _ in range(2):
        inherited.appeared(service, backend)
    assert (taken, backend.weight, inherited.waiting) == ([False], 3.0, ())


@asynccontextmanager
async def greeted_in_part(dispatcher: Dispatcher) -> AsyncIterator[tuple[trio.SocketStream, bytes]]:
    """A client that has sent all but the end of its first message; and that."""
    host, _, port = dispatcher.location.rpartition(":")
    hello = connect_bytes(object_id=OBJECT)
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(hello[:-1])
        await wait_for(lambda: dispatcher._reception.arrivals)
        yield stream, hello[-1:]


async def test_clients_that_are_being_greeted_may_go_on() -> None:
    """A dispatcher is not drained before they have left."""
    async with raw_backend(echo) as backend:
        async with Dispatcher(config_for(backend.uri)) as dispatcher, greeted_in_part(dispatcher) as (stream, rest):
            dispatcher.begin_drain()
            await stream.send_all(rest)
            assert (await stream.receive_some()).startswith(b"PYRO")
            await wait_for(lambda: dispatcher._reception.conversations)
            assert not dispatcher.drained.is_set()
            await stream.aclose()
            await dispatcher.drained.wait()
            assert dispatcher.facts["cut"] == 0


async def test_clients_that_never_finish_their_greeting_are_cut() -> None:
    async with raw_backend(echo) as backend:
        config = config_for(backend.uri, head="drain_timeout = 0.1")
        async with Dispatcher(config) as dispatcher, greeted_in_part(dispatcher) as (stream, _):
            dispatcher.begin_drain()
            assert await stream.receive_some() == b""
            await dispatcher.drained.wait()
            assert dispatcher.facts["cut"] == 1
