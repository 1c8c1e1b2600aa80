"""The commands `ns` and `nsc` as processes: output, exit codes, signals, and what survives a kill."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest
import trio
from certificates import Certificates
from click.testing import CliRunner
from etcds import Etcd

from pyroxfer_core.cli._run import ExitCode, Failure, printable
from pyroxfer_core.cli._run import run as run_command
from pyroxfer_core.cli.ns import ns as ns_command
from pyroxfer_core.cli.nsc import nsc as nsc_command
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    MessageTooLargeError,
    NamingError,
    PyroError,
    RefusedError,
    SecurityError,
    SerializeError,
    TimeoutError,
)
from pyroxfer_core.nameserver.lookup import locate_ns

NS = (sys.executable, "-c", "from pyroxfer_core.cli.ns import ns; ns()")
NSC = (sys.executable, "-c", "from pyroxfer_core.cli.nsc import nsc; nsc()")
ONE = "PYRO:one@localhost:5555"
WITHIN_S = 60


class RunningNs:
    """An `ns` process that has announced itself."""

    def __init__(self, *options: str, port: int = 0) -> None:
        command = [*NS, "-p", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        for line in self._out:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(("URI = ", "external URI = ")):
                break
        else:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        found = re.search(r"NS running on \S+:(\d+) ", "\n".join(self.lines))
        self.port = int(found[1]) if found else 0

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and the rest of the output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, rest

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="module")
def running() -> Iterator[RunningNs]:
    """One name server for the tests that leave it as they found it."""
    server = RunningNs("-s", "memory")
    yield server
    server.close()


def start(stack: ExitStack, *options: str, port: int = 0) -> RunningNs:
    server = RunningNs(*options, port=port)
    stack.callback(server.close)
    return server


def run(*command: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def nsc(server: RunningNs, *args: str, code: int = 0, answer: str | None = None) -> str:
    """Run the command in this process; its standard output, or its errors where an exit code is expected."""
    done = CliRunner().invoke(nsc_command, ["-n", "localhost", "-p", str(server.port), *args], input=answer)
    assert done.exit_code == code, done.output
    assert (done.stderr != "") == (code != 0), done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ns_announces_itself_and_stops_on_a_signal(stack: ExitStack, number: signal.Signals) -> None:
    server = start(stack, "-s", "memory")
    assert server.lines == [
        "Not starting broadcast server for localhost.",
        f"NS running on localhost:{server.port} (127.0.0.1)",
        f"URI = PYRO:Pyro.NameServer@localhost:{server.port}",
    ]
    assert server.end(number) == (0, "NS shut down.\n")


def test_ns_behind_nat_shows_both_addresses(stack: ExitStack) -> None:
    server = start(stack, "-s", "memory", "--nathost", "outside.example", "--natport", "7777")
    assert server.lines[-2:] == [
        f"internal URI = PYRO:Pyro.NameServer@localhost:{server.port}",
        "external URI = PYRO:Pyro.NameServer@outside.example:7777",
    ]


def test_ns_on_a_unix_socket(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "ns"
    server = start(stack, "-s", "memory", "-u", str(path))
    assert server.lines == [
        f"NS running on ./u:{path} (Unix domain socket)",
        f"URI = PYRO:Pyro.NameServer@./u:{path}",
    ]
    done = run(*NSC, "-u", str(path), "ping")
    assert (done.stdout, done.returncode) == ("Name server ping ok.\n", 0)
    server.end()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["none", "no folder", "of another user"])
def test_ns_without_a_place_for_its_names_says_how_to_name_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "none":
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    elif kind == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    done = CliRunner().invoke(ns_command, ["-p", "0", "-x"])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert "--storage, or storage under [ns] in a file" in done.stderr


def test_ns_keeps_names_in_the_state_folder_of_the_user(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    server = start(stack)
    nsc(server, "register", "test.one", ONE)
    assert server.end()[0] == 0
    folder = tmp_path / "state" / "pyroxfer"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "nameserver.sqlite").exists()
    server = start(stack, "-p", str(server.port))
    assert "Persistent store contains 2 existing registrations." in server.lines
    assert nsc(server, "lookup", "test.one") == f"{ONE}\n"


def refusal(*options: str) -> tuple[int, str]:
    """Exit code and the one line of an `ns` that does not start."""
    done = run(*NS_ON_FREE_PORT, *options)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


NS_ON_FREE_PORT = (*NS, "-p", "0", "-x")


def test_a_port_in_use_is_one_line(stack: ExitStack) -> None:
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    code, line = refusal("-s", "memory", "-n", "127.0.0.1", "-p", str(taken.getsockname()[1]))
    assert code == 5
    assert "cannot listen on 127.0.0.1:" in line
    assert "-p chooses a port" in line


def test_a_broadcast_port_in_use_is_one_line(stack: ExitStack) -> None:
    taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    taken.bind(("127.0.0.1", 0))
    place = ("--bchost", "127.0.0.1", "--bcport", str(taken.getsockname()[1]))
    done = run(*NS, "-s", "memory", "-p", "0", "-n", "0.0.0.0", "--insecure", *place)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert "cannot listen for broadcasts on 127.0.0.1:" in done.stderr


def test_listening_beyond_this_machine_needs_insecure() -> None:
    code, line = refusal("-s", "memory", "-n", "0.0.0.0")
    assert code == 4
    assert "say --insecure" in line


@pytest.mark.parametrize("storage", ["dbm:x", "sql:", "sql::memory:", "etcd", "etcd:ftp://127.0.0.1"])
def test_an_unknown_storage_is_a_usage_error(storage: str) -> None:
    assert refusal("-s", storage)[0] == 2


def test_a_broken_database_is_one_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    path.write_bytes(b"rubbish" * 1000)
    code, line = refusal("-s", f"sql:{path}")
    assert code == 1
    assert f"cannot open the name database {path}" in line
    assert path.read_bytes() == b"rubbish" * 1000


def test_nsc_commands(running: RunningNs) -> None:
    own = f"PYRO:Pyro.NameServer@localhost:{running.port}"
    own_tags = "    metadata: ['class:Pyro4.naming.NameServer', 'class:Pyro5.nameserver.NameServer']"
    assert nsc(running, "ping") == "Name server ping ok.\n"
    assert nsc(running, "register", "test.one", ONE) == "Registered test.one\n"
    assert nsc(running, "lookup", "test.one") == f"{ONE}\n"
    assert nsc(running, "setmeta", "test.one", "y", "x") == "Metadata updated\n"
    assert nsc(running, "lookup", "test.one") == f"{ONE}\nmetadata: ['x', 'y']\n"
    entry = f"test.one --> {ONE}\n    metadata: ['x', 'y']\n"
    everything = f"Pyro.NameServer --> {own}\n{own_tags}\n{entry}"
    assert nsc(running, "list") == f"--------START LIST \n{everything}--------END LIST \n"
    by_prefix, by_regex, by_tags = "- prefix 'test.'", "- regex 'test'", " - searched by metadata"
    assert nsc(running, "list", "test.") == f"--------START LIST {by_prefix}\n{entry}--------END LIST {by_prefix}\n"
    assert (
        nsc(running, "listmatching", "test") == f"--------START LIST {by_regex}\n{entry}--------END LIST {by_regex}\n"
    )
    found, nothing = (f"--------START LIST {by_tags}\n{rows}--------END LIST {by_tags}\n" for rows in (entry, ""))
    for dialect in ("yplookup", "listmeta"):
        assert nsc(running, f"{dialect}_all", "x", "y") == found
        assert nsc(running, f"{dialect}_any", "x", "z") == found
        assert nsc(running, f"{dialect}_all", "x", "z") == nothing
    assert nsc(running, "setmeta", "test.one") == "Metadata cleared\n"
    assert nsc(running, "remove", "test.one") == "Removed test.one\n"
    assert nsc(running, "remove", "test.one") == "Nothing removed\n"


def test_nsc_asks_before_it_removes_many(running: RunningNs) -> None:
    nsc(running, "register", "many.1", ONE)
    nsc(running, "register", "many.2", ONE)
    assert "items removed" not in nsc(running, "removematching", "many", answer="n\n")
    assert nsc(running, "removematching", "many", answer="y\n").endswith("2 items removed.\n")
    assert nsc(running, "removematching", "--yes", "many") == "0 items removed.\n"


def test_nsc_without_anybody_to_ask_says_what_to_do(running: RunningNs) -> None:
    """On a line of its own; nothing is removed."""
    nsc(running, "register", "many.1", ONE)
    done = CliRunner().invoke(nsc_command, ["-n", "localhost", "-p", str(running.port), "removematching", "many"])
    assert done.exit_code == 2
    assert done.stdout.endswith("(y/n)?\n")
    assert done.stderr.endswith("Error: nobody is there to answer; --yes removes without asking.\n")
    assert nsc(running, "remove", "many.1") == "Removed many.1\n"


def test_a_question_that_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends as every command does, on a line of its own."""

    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    with pytest.raises(SystemExit) as ended:
        nsc_command.main(["removematching", "many"])
    assert ended.value.code == 130
    assert capsys.readouterr() == ("\n", "")  # behind the question, which stands in what is replaced here


def test_nsc_verbose(running: RunningNs) -> None:
    own = f"PYRO:Pyro.NameServer@localhost:{running.port}"
    expected = f"Locating name server...\nName server found: {own}\nName server ping ok.\nDone.\n"
    assert nsc(running, "-v", "ping") == expected
    assert nsc(running, "ping", "-v") == expected


@pytest.mark.parametrize("prefix", ["PYROXFER_NS", "PYRO_NS"])
def test_nsc_takes_the_place_from_the_environment_unless_it_is_told(
    running: RunningNs, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{prefix}_HOST", "127.0.0.1")
    monkeypatch.setenv(f"{prefix}_PORT", str(running.port))
    assert CliRunner().invoke(nsc_command, ["ping"]).output == "Name server ping ok.\n"
    monkeypatch.setenv(f"{prefix}_PORT", "1")
    assert nsc(running, "ping") == "Name server ping ok.\n"


def test_nsc_json(running: RunningNs) -> None:
    assert json.loads(nsc(running, "register", "test.json", ONE, "--json")) == {"name": "test.json", "uri": ONE}
    nsc(running, "setmeta", "test.json", "b", "a")
    entry = {"uri": ONE, "metadata": ["a", "b"]}
    assert json.loads(nsc(running, "--json", "-v", "list", "test.")) == {"test.json": entry}
    assert json.loads(nsc(running, "lookup", "test.json", "--json")) == {"name": "test.json", **entry}
    assert json.loads(nsc(running, "remove", "test.json", "--json")) == {"removed": 1}


def test_nsc_errors_have_documented_exit_codes(running: RunningNs) -> None:
    nsc(running, "register", "test.one", ONE)
    assert nsc(running, "lookup", "nothing", code=3) == "Error: NamingError - unknown name: nothing\n"
    assert nsc(running, "setmeta", "nothing", "x", code=3) == "Error: NamingError - unknown name: nothing\n"
    taken = nsc(running, "register", "test.one", ONE, code=9)
    assert taken == "Error: NamingError - name already registered: test.one\n"
    assert "wildcard" in nsc(running, "register", "test.two", "PYRO:a@0.0.0.0:1", code=4)
    assert "invalid uri" in nsc(running, "register", "test.two", "nonsense", code=1)
    assert "invalid regex" in nsc(running, "listmatching", "(", code=1)
    assert "Usage:" in nsc(running, "lookup", code=2)
    assert "No such command" in nsc(running, "unknown", code=2)
    assert "its port is given by itself" in nsc(running, "-n", "localhost:9090", "ping", code=1)
    assert "0 is not in the range" in nsc(running, "-p", "0", "ping", code=2)
    nsc(running, "remove", "test.one")


def test_nsc_without_a_name_server(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = run(*NSC, "-n", "127.0.0.1", "-p", str(port), "ping")
    assert done.returncode == 5
    assert done.stderr.startswith("Error: Failed to locate the nameserver")
    assert done.stderr.count("\n") == 1


async def test_nsc_where_something_else_listens() -> None:
    """The line says where that is."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        done = await trio.to_thread.run_sync(run, *NSC, "-n", "127.0.0.1", "-p", str(port), "list")
        nursery.cancel_scope.cancel()
    assert done.returncode == 5
    assert f"cannot connect to 127.0.0.1:{port}: invalid data" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_acknowledged_registration_survives_a_kill(stack: ExitStack, tmp_path: Path) -> None:
    """Several clients register while the name server is killed; a new one on the same file knows every answer."""
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    server = start(stack, "-s", storage)
    acknowledged: list[str] = []

    async def register(client: int) -> None:
        async with await locate_ns("localhost", server.port) as ns:
            for number in range(1000):
                name = f"client{client}.{number}"
                await ns.register(name, f"PYRO:{name}@localhost:1", metadata=["x", name])
                acknowledged.append(name)
                if len(acknowledged) == 200:
                    os.kill(server.process.pid, signal.SIGKILL)

    async def until_killed(client: int) -> None:
        with pytest.raises(CommunicationError):
            await register(client)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for client in range(4):
                nursery.start_soon(until_killed, client)

    trio.run(main)
    assert len(acknowledged) >= 200
    restarted = start(stack, "-s", storage)
    found = json.loads(nsc(restarted, "list", "client", "--json"))
    for name in acknowledged:
        assert found[name] == {"uri": f"PYRO:{name}@localhost:1", "metadata": sorted(["x", name])}


def test_terminal_codes_in_names_are_shown_as_escapes() -> None:
    assert printable("plain ä 😀") == "plain ä 😀"
    assert printable("\x1b[31mred\n\ud800") == "\\x1b[31mred\\n\\ud800"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NamingError("unknown name: a"), ExitCode.NOT_FOUND),
        (NamingError("no registrations available with desired metadata properties ['a']"), ExitCode.NOT_FOUND),
        (NamingError("name already registered: a"), ExitCode.EXISTS),
        (NamingError("Failed to locate the nameserver: …"), ExitCode.NETWORK),
        (NamingError("refusing to register 'a' at 0.0.0.0:1: …"), ExitCode.REFUSED),
        (NamingError("invalid regex: …"), ExitCode.OTHER),
        (ConnectionClosedError("reset"), ExitCode.NETWORK),
        (TimeoutError("slow"), ExitCode.TIMEOUT),
        (RefusedError("busy"), ExitCode.REFUSED),
        (SecurityError("private"), ExitCode.REFUSED),
        (MessageTooLargeError("large"), ExitCode.PROTOCOL),
        (SerializeError("unreadable"), ExitCode.PROTOCOL),
        (CommunicationError("other"), ExitCode.NETWORK),
        (PyroError("other"), ExitCode.OTHER),
        (ValueError("bad value"), ExitCode.USAGE),
        (FileNotFoundError(2, "No such file or directory", "there"), ExitCode.OTHER),
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_errors_of_a_command_become_exit_codes(error: Exception, code: ExitCode, depth: int) -> None:
    """Also from inside of nurseries, which wrap them."""

    async def command() -> None:
        raise functools.reduce(lambda inner, _: ExceptionGroup("nursery", [inner]), range(depth), error)

    with pytest.raises(Failure) as caught:
        run_command(command)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.format_message()


def test_several_errors_at_once_are_shown_as_they_are() -> None:
    async def command() -> None:
        raise ExceptionGroup("nursery", [PyroError("a"), PyroError("b")])

    with pytest.raises(ExceptionGroup):
        run_command(command)


def test_ctrl_c_is_exit_code_130() -> None:
    async def command() -> None:
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])

    with pytest.raises(SystemExit) as caught:
        run_command(command)
    assert caught.value.code == 130


KILLS = (250, 500, 750)
REGISTRATIONS = 1_000


async def test_every_acknowledged_registration_survives_kill_9(stack: ExitStack, tmp_path: Path) -> None:
    """1,000 registrations by eight clients at once; the server is killed three times among them and started again."""
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    server = start(stack, "-s", storage)
    wanted = [f"name-{number}" for number in range(REGISTRATIONS)]
    acknowledged: set[str] = set()

    async def register_some(port: int, kill_at: int | None, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(CommunicationError):
            async with await locate_ns("localhost", port) as names:
                while wanted and process.poll() is None:
                    name = wanted.pop()
                    try:
                        await names.register(name, f"PYRO:{name}@localhost:1", metadata=[name])
                    except CommunicationError:
                        wanted.append(name)  # unknown: it is registered again
                        raise
                    acknowledged.add(name)
                    if kill_at is not None and len(acknowledged) >= kill_at:
                        process.kill()

    for kill_at in (*KILLS, None):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(register_some, server.port, kill_at, server.process)
        if kill_at is not None:
            assert kill_at <= len(acknowledged) < kill_at + 8
            assert server.process.wait(WITHIN_S) == -signal.SIGKILL
            server = await trio.to_thread.run_sync(functools.partial(start, stack, "-s", storage))
            async with await locate_ns("localhost", server.port) as names:
                assert acknowledged <= set(await names.list())
    async with await locate_ns("localhost", server.port) as names:
        listing = await names.list(prefix="name-", return_metadata=True)
    assert len(acknowledged) == REGISTRATIONS
    assert listing == {name: (f"PYRO:{name}@localhost:1", {name}) for name in acknowledged}


def test_a_name_server_with_tls_and_tokens(certificates: Certificates, tmp_path: Path, stack: ExitStack) -> None:
    """Both tools take the same options; who is not let in gets exit code 4 and is told what to do."""
    tokens = tmp_path / "tokens"
    tokens.write_text("alice correct-horse-battery\n")
    tokens.chmod(0o600)
    server = start(stack, "-s", "memory", "--tls-cert", str(certificates.server), "--token-file", str(tokens))
    place = ("-n", "localhost", "-p", str(server.port), "--tls-ca", str(certificates.ca))
    assert run(*NSC, *place, "ping", "--token-file", str(tokens)).stdout == "Name server ping ok.\n"
    assert run(*NSC, "ping", *place, "--token-file", str(tokens)).returncode == 0
    for options, text in (
        (place, "authentication required"),
        ((*place[:4], "--tls-ca", str(certificates.other_ca)), "a CA that is not known here"),
    ):
        done = run(*NSC, *options, "ping")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
        assert text in done.stderr


# --- nsc: what goes beyond Pyro's tool -----------------------------------------------------------------------------


def test_nsc_shows_and_changes_single_addresses(running: RunningNs) -> None:
    two = "PYRO:two@localhost:5556"
    nsc(running, "register", "pool", ONE, "--protocol", "48")
    nsc(running, "register", "pool", two, "--add", "--protocol", "48", "--protocol", "502")
    nsc(running, "setmeta", "pool", "t")
    assert nsc(running, "lookup", "-a", "pool") == (
        f"{ONE}  (protocols: 48)\n    metadata: ['t']\n{two}  (protocols: 48, 502)\n    metadata: ['t']\n"
    )
    assert json.loads(nsc(running, "lookup", "--all", "pool", "--json"))["addresses"][0]["uri"] == ONE
    assert nsc(running, "remove", "pool", "--uri", ONE) == "Removed pool\n"
    assert nsc(running, "remove", "pool", "--uri", ONE) == "Nothing removed\n"
    assert nsc(running, "lookup", "pool").startswith(two)
    nsc(running, "remove", "pool")


class Watching:
    """A running `nsc watch`."""

    def __init__(self, server: RunningNs, *options: str) -> None:
        command = [*NSC, "-n", "localhost", "-p", str(server.port), "watch", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def lines(self, number: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().rstrip("\n") for _ in range(number)]

    def end(self) -> tuple[int, str]:
        """Exit code, and what was said on standard error."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, said

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_nsc_watch(stack: ExitStack, tmp_path: Path) -> None:
    """What is there, then each change; over a restart of the name server nothing is missed and nothing told twice."""
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    server = start(stack, "-s", storage)
    nsc(server, "register", "a.one", ONE)
    nsc(server, "register", "b", ONE)
    nsc(server, "register", "a.away", ONE)
    watching = Watching(server, "a.")
    stack.callback(watching.close)
    assert watching.lines(2) == [f"+ a.away --> {ONE}", f"+ a.one --> {ONE}"]
    revision = int(watching.lines(1)[0].removeprefix("--------REVISION "))
    nsc(server, "setmeta", "a.one", "t")
    assert watching.lines(2) == [f"+ a.one --> {ONE}", "    metadata: ['t']"]
    as_json = Watching(server, "--json", "--after", str(revision))
    stack.callback(as_json.close)
    told = json.loads(as_json.lines(1)[0])
    assert (told["name"], told["entry"]["metadata"], told["revision"] > revision) == ("a.one", ["t"], True)
    assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "names.sqlite") as connection:  # while it was away
        connection.execute("DELETE FROM pyro_names WHERE name = 'a.away'")
    connection.close()
    server = start(stack, "-s", storage, port=server.port)
    assert watching.lines(1) == ["- a.away"]
    assert watching.lines(1)[0].startswith("--------REVISION ")
    nsc(server, "remove", "a.one")
    assert watching.lines(1) == ["- a.one"]
    code, said = watching.end()
    assert code == 130
    assert said.startswith("lost the name server, trying again: ")
    assert said.count("lost the name server") == 1
    assert "comparing with what is there now\n" in said


COMPLETING = "from pyroxfer_core.cli.nsc import nsc; nsc(prog_name='nsc')"


def completions(server: RunningNs | None, *words: str) -> list[str]:
    """What the shell is offered for the last word."""
    place = [] if server is None else ["-n", "localhost", "-p", str(server.port)]
    line = " ".join(["nsc", *place, *words])
    number = str(len(place) + len(words))
    environment = {**os.environ, "_NSC_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": number}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_the_shell_completes_names(running: RunningNs) -> None:
    """Asked from the server; when it is not there the shell gets nothing and no error."""
    nsc(running, "register", "complete.one", ONE)
    nsc(running, "register", "complete.two", ONE)
    assert completions(running, "lookup", "complete.") == ["complete.one", "complete.two"]
    assert completions(running, "remove", "complete.t") == ["complete.two"]
    assert "lookup" in completions(running, "loo")
    assert completions(None, "-p", "1", "lookup", "c") == []


def test_ns_with_etcd_dies_and_another_one_knows_everything(stack: ExitStack, etcd_server: Etcd) -> None:
    """No file is shared between them, only the registry."""
    first = start(stack, "-s", etcd_server.url("cli"))
    second = start(stack, "-s", etcd_server.url("cli"))
    nsc(first, "register", "test.one", ONE)
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert nsc(second, "lookup", "test.one") == f"{ONE}\n"
    assert nsc(second, "setmeta", "test.one", "t") == "Metadata updated\n"
    assert second.end() == (0, "NS shut down.\n")
