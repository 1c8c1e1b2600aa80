"""The command line as its users meet it: real processes, exit codes, one-line messages, no tracebacks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from certificates import Certificates
from click.testing import CliRunner

from pyroxfer import FileServer, errors
from pyroxfer.cli.get import sources_and_destination
from pyroxfer.cli.main import COMMANDS, main
from pyroxfer.cli.run import explain
from pyroxfer.cli.send import sources_and_target
from pyroxfer.digest import digest_of
from pyroxfer.offer import End
from pyroxfer.source import FileSource
from pyroxfer_core import Daemon, Settings, Tokens, expose
from pyroxfer_core import errors as core_errors
from pyroxfer_core.nameserver import start_ns

pytestmark = pytest.mark.deadline(180)  # each starts one command after the other
COMMAND = [sys.executable, "-m", "pyroxfer"]


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    def one_line(self, *words: str) -> bool:
        """It said one line, without a traceback, with these words in it."""
        lines = self.err.strip().splitlines()
        return len(lines) == 1 and lines[0].startswith("pyroxfer: ") and all(word in lines[0] for word in words)


def content(folder: Path) -> list[str]:
    """Every name in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


async def command(*arguments: object, stdin: bytes = b"", prefix: tuple[str, ...] = (), **env: str) -> Ended:
    words = [*prefix, *COMMAND, *map(str, arguments)]
    environ = {**os.environ, "PYROXFER_SERVER": "", **env}
    ended = await trio.run_process(
        words, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, env=environ
    )
    err = ended.stderr.decode()
    assert "Traceback" not in err, err
    return Ended(ended.returncode, ended.stdout, err)


async def test_send_ls_stat_get_rm(server: FileServer, root: Path, here: Path) -> None:
    """The everyday round: everything works, with exit code 0."""
    (here / "a b.txt").write_bytes(b"hello")
    place = server.location
    sent = await command("send", here / "a b.txt", f"{place}/")
    assert (sent.code, sent.out) == (0, b"")
    assert "a b.txt: 5 bytes committed to" in sent.err
    listed = await command("ls", f"{place}/", "--json")
    assert [json.loads(line)["path"] for line in listed.out.splitlines()] == ["a b.txt"]
    plain = await command("ls", place)
    assert plain.out.split()[0] == b"file"
    stat = await command("stat", f"{place}/a b.txt", "--json")
    assert json.loads(stat.out)["size"] == 5
    got = await command("get", f"{place}/a b.txt", here / "back.txt", "-q")
    assert (got.code, got.out, got.err) == (0, b"", "")
    assert (here / "back.txt").read_bytes() == b"hello"
    assert (await command("rm", f"{place}/a b.txt")).code == 0
    assert not (root / "a b.txt").exists()


async def test_pipes_both_ways(server: FileServer, root: Path) -> None:
    """Standard input of unknown length becomes a verified file, and comes back on standard output."""
    data = os.urandom(3_000_000)
    sent = await command("send", "-", f"{server.location}/piped", "--json", stdin=data)
    assert sent.code == 0
    assert (root / "piped").read_bytes() == data
    receipt = json.loads(sent.out.splitlines()[-1])
    assert (receipt["event"], receipt["size"], receipt["digest"]) == ("commit", len(data), digest_of(data, "blake3"))
    got = await command("get", f"{server.location}/piped", "-")
    assert (got.code, got.out == data) == (0, True)
    again = await command("send", "-", f"{server.location}/piped", stdin=b"other")
    assert again.code == 9
    assert (await command("send", "-", f"{server.location}/", stdin=b"x")).code == 2
    assert (await command("get", f"{server.location}/piped", "-", "--json")).code == 2


SCHEMA = {
    "offer": {"path", "size"},
    "accept": {"path", "channel", "reason", "resumed"},
    "progress": {"done", "total"},
    "file": {"path", "size"},
    "warn": {"path", "text"},
    "commit": {
        "path", "size", "digest", "algorithm", "durability", "channel", "reason", "resumed", "transfer_id",
    },
}  # fmt: skip


async def test_closed_pipes_are_told(server: FileServer, root: Path) -> None:
    """Neither read from nor written to something else that got their number."""
    (root / "f").write_bytes(b"12")
    closed = ("bash", "-c", 'exec "$@" <&- >&-', "-")
    for words in (("send", "-", f"{server.location}/x"), ("get", f"{server.location}/f", "-")):
        ended = await command(*words, prefix=closed)
        assert (ended.code, ended.one_line("Bad file descriptor")) == (1, True)
    assert content(root) == ["f"]


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
async def test_files_move_when_there_is_nowhere_to_tell_of_it(
    server: FileServer, root: Path, here: Path, closed: str
) -> None:
    """As a service may be started: with its standard streams closed."""
    (here / "f").write_bytes(b"12")
    for words in (("send", here / "f", f"{server.location}/x"), ("get", f"{server.location}/x", here / "y")):
        ended = await command(*words, prefix=("bash", "-c", f'exec "$@" {closed}', "-"))
        assert ended.code == 0
    assert (here / "y").read_bytes() == b"12"


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_events_have_one_schema_in_both_directions(
    server: FileServer, root: Path, here: Path, direction: str
) -> None:
    for folder in (root, here):
        (folder / "tree" / "sub").mkdir(parents=True)
        (folder / "tree" / "link").symlink_to("x")
        (folder / "tree" / "sub" / "big").write_bytes(b"b" * 300_000)
        (folder / "tree" / "small").write_bytes(b"s")
    if direction == "send":
        ended = await command("send", here / "tree", f"{server.location}/new", "--json")
    else:
        ended = await command("get", f"{server.location}/tree", here / "new", "--json")
    assert (ended.code, ended.err) == (0, "")
    events = [json.loads(line) for line in ended.out.splitlines()]
    for event in events:
        assert event["v"] == 1
        assert set(event) == {"event", "v"} | SCHEMA[event["event"]]
    assert {event["event"] for event in events} == set(SCHEMA)


async def test_the_server_of_the_environment(server: FileServer, root: Path, here: Path) -> None:
    (here / "f").write_bytes(b"1")
    assert (await command("send", here / "f", PYROXFER_SERVER=f"{server.location}/")).code == 0
    assert (root / "f").exists()


# --- exit codes ------------------------------------------------------------------------------------------------


async def test_usage_is_2(here: Path) -> None:
    (here / "f").write_bytes(b"1")
    unknown = await command("snd", "x")
    assert unknown.code == 2
    assert "Did you mean 'send'?" in unknown.err
    for arguments in (
        ["send"],
        ["send", here / "f"],
        ["send", here / "f", "host:port/x"],
        ["send", here / "f", "localhost:1/", "--channel", "pigeon"],
        ["send", here / "f", "localhost:1/", "--if-exists", "maybe"],
        ["send", here / "f", "localhost:1/", "--nonsense"],
        ["serve", here / "nowhere"],
        ["serve", here, "--listen", "a:b:c"],
        ["serve", here, "--read-only", "--upload-only"],
    ):
        ended = await command(*arguments)
        assert ended.code == 2, (arguments, ended)


async def test_not_found_is_3(server: FileServer, here: Path) -> None:
    (here / "f").write_bytes(b"1")
    missing = await command("send", here / "missing", f"{server.location}/")
    assert (missing.code, missing.one_line("missing", "no such file")) == (3, True)
    remote = await command("get", f"{server.location}/missing", here)
    assert (remote.code, remote.one_line("missing", "no such file")) == (3, True)


async def test_refused_is_4(root: Path, here: Path) -> None:
    (here / "f").write_bytes(b"1")
    async with FileServer(root, read_only=True) as server:
        denied = await command("send", here / "f", f"{server.location}/")
        assert (denied.code, denied.one_line("read-only")) == (4, True)
        name = await command("get", f"{server.location}/../x", here)
        assert (name.code, name.one_line("refused")) == (4, True)
    door = await command("serve", root, "--listen", "0.0.0.0:0")
    assert (door.code, door.one_line("--insecure")) == (4, True)


async def test_an_unreachable_server_is_5(here: Path) -> None:
    (here / "f").write_bytes(b"1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ended = await command("send", here / "f", f"127.0.0.1:{unused.getsockname()[1]}/")
    assert (ended.code, ended.one_line("refused", "pyroxfer serve")) == (5, True)


async def test_integrity_is_6(server: FileServer, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's end record speaks of other bytes than came."""
    (root / "f").write_bytes(b"x" * 600_000)

    async def lying(source: FileSource) -> End:
        return End(source.size, "00" * 32)

    monkeypatch.setattr(FileSource, "end", lying)
    ended = await command("get", f"{server.location}/f", here)
    assert (ended.code, ended.one_line("digests differ")) == (6, True)
    assert content(here) == []


async def test_a_changed_source_is_7(server: FileServer, root: Path, here: Path, monkeypatch: Any) -> None:
    (root / "f").write_bytes(b"x" * 600_000)
    honest = FileSource.read_block

    async def meddling(source: FileSource, offset: int, length: int) -> bytes:
        (root / "f").write_bytes(b"changed")
        return await honest(source, offset, length)

    monkeypatch.setattr(FileSource, "read_block", meddling)
    ended = await command("get", f"{server.location}/f", here)
    assert (ended.code, ended.one_line("changed")) == (7, True)
    assert content(here) == []


@pytest.mark.parametrize("channel", ["iter", "annot", "raw"])
async def test_no_space_is_8(server: FileServer, root: Path, here: Path, channel: str) -> None:
    """A real limit of the system: the process may not write files over 100 KiB."""
    (root / "f").write_bytes(b"x" * 2_000_000)
    limit = ("bash", "-c", 'ulimit -f 100; exec "$@"', "limited")
    ended = await command("get", f"{server.location}/f", here, "--channel", channel, prefix=limit)
    assert (ended.code, ended.one_line("larger than")) == (8, True)
    assert content(here) == []


async def test_exists_is_9(server: FileServer, root: Path, here: Path) -> None:
    (here / "f").write_bytes(b"1")
    (root / "f").write_bytes(b"22")
    ended = await command("send", here / "f", f"{server.location}/")
    assert (ended.code, ended.one_line("--if-exists")) == (9, True)
    assert (root / "f").read_bytes() == b"22"


async def test_something_for_a_folder_that_is_a_file_is_9(server: FileServer, root: Path, here: Path) -> None:
    (root / "f").write_bytes(b"22")
    (here / "g").write_bytes(b"1")
    ended = await command("get", f"{server.location}/f", f"{here}/g/")
    assert (ended.code, ended.one_line("already exists")) == (9, True)


@pytest.mark.parametrize("channel", ["auto", "iter", "annot", "raw"])
async def test_a_file_that_holds_more_than_its_size_says_is_not_taken_for_empty(
    server: FileServer, root: Path, channel: str
) -> None:
    """In /proc every file says it has no bytes."""
    ended = await command("send", "/proc/self/status", f"{server.location}/x", "--channel", channel)
    assert (ended.code, ended.one_line("through a pipe")) == (7, True)
    assert content(root) == []


async def test_names_that_are_no_text_are_one_clear_line(server: FileServer, here: Path) -> None:
    (here / "g").write_bytes(b"1")
    ended = await command("send", here / "g", f"{server.location}/\udcff")
    assert (ended.code, ended.one_line("UTF-8")) == (2, True)


async def test_some_files_failed_is_10_and_names_them_escaped(server: FileServer, root: Path, here: Path) -> None:
    (here / "tree").mkdir()
    (here / "tree" / "good").write_bytes(b"1")
    (here / "tree" / "b\x1b[31md").write_bytes(b"2")
    ended = await command("send", here / "tree", f"{server.location}/")
    assert ended.code == 10
    assert "b\\x1b[31md" in ended.err
    assert "\x1b" not in ended.err
    assert (root / "tree" / "good").exists()
    as_json = await command("send", here / "tree", f"{server.location}/", "--json")
    last = json.loads(as_json.out.splitlines()[-1])
    assert (last["event"], last["code"], last["exit_code"]) == ("error", "some_failed", 10)


async def test_one_of_several_that_fails_does_not_stop_the_others(server: FileServer, root: Path, here: Path) -> None:
    (here / "a").write_bytes(b"1")
    (here / "b").write_bytes(b"2")
    ended = await command("send", here / "a", here / "missing", here / "b", f"{server.location}/")
    assert (ended.code, content(root)) == (10, ["a", "b"])
    assert "missing: no such file" in ended.err
    back = here / "back"
    back.mkdir()
    sources = [f"{server.location}/{name}" for name in ("a", "nothing", "b")]
    ended = await command("get", *sources, back)
    assert (ended.code, content(back)) == (10, ["a", "b"])


async def rubbish(stream: trio.SocketStream) -> None:
    await stream.send_all(b"220 smtp.example ESMTP ready, and much more than a header\r\n" * 3)
    await trio.sleep(0.2)


async def test_another_kind_of_server_is_12(here: Path, nursery: trio.Nursery) -> None:
    """Rubbish from the peer, and a Pyro daemon that is no file server."""
    (here / "f").write_bytes(b"1")
    listeners = await nursery.start(partial(trio.serve_tcp, rubbish, 0, host="127.0.0.1"))
    ended = await command("send", here / "f", f"127.0.0.1:{listeners[0].socket.getsockname()[1]}/")
    assert ended.code == 12, ended
    assert len(ended.err.splitlines()) == 1

    @expose
    class Unrelated:
        def ping(self) -> str:
            return "pong"

    async with Daemon() as daemon:
        daemon.register(Unrelated(), "pyroxfer.files")
        ended = await command("send", here / "f", f"{daemon.location}/")
    assert (ended.code, ended.one_line("not a file service")) == (12, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signals_end_a_transfer_tidily(
    server: FileServer, root: Path, nursery: trio.Nursery, number: int, code: int
) -> None:
    """In the middle of a pipe that never ends: the code of the signal, nothing left at the server."""
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            [*COMMAND, "send", "-", f"{server.location}/f", "-q"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
    )
    assert process.stdin is not None
    assert process.stderr is not None
    await process.stdin.send_all(b"x" * 700_000)
    with trio.fail_after(10):
        while not content(root):  # noqa: ASYNC110  # another process does it
            await trio.sleep(0.02)
    process.send_signal(number)
    with trio.fail_after(10):
        assert await process.wait() == code
        assert b"Traceback" not in await process.stderr.receive_some(100_000)
        while content(root):  # noqa: ASYNC110  # the server tells nobody
            await trio.sleep(0.02)


@pytest.mark.parametrize("direction", ["send", "get"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_after_a_signal_the_same_command_goes_on(
    server: FileServer, root: Path, here: Path, nursery: trio.Nursery, direction: str, number: int
) -> None:
    """Ctrl-C says what is kept and how to go on; after kill -9 there is nobody to say it, and it works all the
    same."""
    data = os.urandom(12 * 1024 * 1024)
    source, target = (here, root) if direction == "send" else (root, here)
    (source / "f").write_bytes(data)
    words = ["send", str(here / "f"), f"{server.location}/new"]
    if direction == "get":
        words = ["get", f"{server.location}/f", str(here / "new")]
    words += ["--channel", "annot", "--durability", "none"]
    process: trio.Process = await nursery.start(
        partial(trio.run_process, [*COMMAND, *words, "--bwlimit", "8M"], stderr=subprocess.PIPE, check=False)
    )
    assert process.stderr is not None
    with trio.fail_after(20):
        while not any(path.suffix == ".journal" for path in target.iterdir()):  # noqa: ASYNC110  # another process
            await trio.sleep(0.02)
    process.send_signal(number)
    with trio.fail_after(10):
        code, said = await process.wait(), await process.stderr.receive_some(100_000)
    if number == signal.SIGINT:
        assert code == 130
        assert b"MiB are kept" in said
        assert b"the same command goes on from there" in said
    while server.transfers:  # noqa: ASYNC110  # the server tells nobody
        await trio.sleep(0.02)
    ended = await command(*words, "--json")
    assert ended.code == 0
    receipt = json.loads(ended.out.splitlines()[-1])
    assert receipt["resumed"] >= 4 * 1024 * 1024
    assert (target / "new").read_bytes() == data
    assert content(target) == ["new"]


@pytest.mark.parametrize("entry", ["main", "dispatcher"])
async def test_an_early_interrupt_ends_in_silence(nursery: trio.Nursery, entry: str) -> None:
    """However early it comes once our code runs: no traceback, and the shell sees 130."""
    waits = "import sys, time, builtins, signal; real = builtins.__import__\n"
    waits += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
    waits += "def slow(name, *rest):\n if name == 'trio': print('loading', flush=True); time.sleep(20)\n"
    waits += " return real(name, *rest)\n"
    waits += f"builtins.__import__ = slow; from pyroxfer_command import {entry}; {entry}()"
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            [sys.executable, "-c", waits, "ls", "localhost:1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert (await process.stdout.receive_some(100)).startswith(b"loading")
    process.send_signal(signal.SIGINT)
    assert await process.wait() == -signal.SIGINT
    assert await process.stderr.receive_some(1000) == b""


def test_an_interrupt_of_what_needs_no_loop_is_one_of_any_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130 and nothing said, wherever Ctrl-C comes."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyroxfer.cli.config._all_settings", interrupted)
    result = CliRunner().invoke(main, ["config", "check"])
    assert (result.exit_code, result.output) == (130, "")


def test_what_only_loads_at_a_server_is_not_loaded_by_a_client() -> None:
    """Nor is garbage looked for while modules are loaded; it is as soon as they are."""
    program = "import atexit, gc, sys; from pyroxfer_command import main; sys.argv[1:] = ['send', '.', '']\n"
    program += "wrong = {'pyroxfer.transfers', 'pyroxfer.siblings', 'pyroxfer.planning', 'pyroxfer.cli.bash'}\n"
    program += "wrong |= {'pyroxfer_core.server.peer', 'pyroxfer_core.processes', 'pyroxfer_core.transport.listen'}\n"
    program += "wrong |= {'pyroxfer_core.objects.table', 'tomllib', 'difflib', 'click.shell_completion'}\n"
    program += "atexit.register(lambda: print(sorted(wrong & set(sys.modules)), gc.isenabled())); main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "[] True\n"), ended.stderr


async def test_a_folder_does_not_go_where_a_file_stands(server: FileServer, root: Path, here: Path) -> None:
    (here / "tree").mkdir()
    (here / "tree" / "f").write_bytes(b"1")
    (root / "file").write_bytes(b"old")
    ended = await command("send", here / "tree", f"{server.location}/file")
    assert (ended.code, ended.one_line("is a file at the server, and a folder is sent")) == (9, True)
    assert (root / "file").read_bytes() == b"old"


@pytest.mark.parametrize(
    "words", [["--streams", "0"], ["--streams", "99"], ["--bwlimit", "fast"], ["--bwlimit", "0"], ["--bwlimit", "-5"]]
)
def test_streams_and_rates_are_checked(words: list[str]) -> None:
    ended = CliRunner().invoke(main, ["send", "x", "localhost:1/", *words])
    assert ended.exit_code == 2, ended.output


async def test_streams_rate_and_packing_together(server: FileServer, root: Path, here: Path) -> None:
    (here / "f").write_bytes(b"x" * 300_000)
    words = ("--streams", "2", "--bwlimit", "10.5m", "-z", "--no-resume", "--if-exists", "resume")
    assert (await command("send", here / "f", f"{server.location}/new", *words)).code == 0


async def started(nursery: trio.Nursery, *arguments: object) -> tuple[trio.Process, str]:
    """A running ``serve`` and the address it announced."""
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            [*COMMAND, "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    )
    assert process.stdout is not None
    text = b""
    with trio.fail_after(10):
        while text.count(b"\n") < 3:
            text += await process.stdout.receive_some(10_000)
    return process, text.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_serve_announces_itself_and_stops_cleanly(
    root: Path, here: Path, nursery: trio.Nursery, number: int, code: int
) -> None:
    """The lines it prints can be copied and work; SIGTERM is a clean end."""
    process, text = await started(nursery, root)
    (here / "f").write_bytes(b"1")
    send, get = text.splitlines()[1:3]
    words = [str(here / "f") if word == "FILE" else word for word in send.split()[2:]]
    assert (await command(*words)).code == 0
    words = [word.replace("FILE", "f") for word in get.split()[2:]]
    assert (await command(*words, here / "back")).code == 0
    assert (here / "back").read_bytes() == b"1"
    process.send_signal(number)
    with trio.fail_after(10):
        assert await process.wait() == code


async def test_a_server_is_found_by_its_name(root: Path, here: Path, nursery: trio.Nursery) -> None:
    """`serve --name` registers, `send` and `get` find it, and stopping takes the name out again."""
    async with start_ns(port=0, broadcast=False) as names:
        place = f"attic@{names.uri.location}"
        process, text = await started(nursery, root, "--name", place)
        assert f"pyroxfer send FILE PYRONAME:{place}/" in text
        (here / "f").write_bytes(b"1")
        assert (await command("send", here / "f", f"PYRONAME:{place}/")).code == 0
        assert (root / "f").read_bytes() == b"1"
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.wait() == 0
        gone = await command("get", f"PYRONAME:{place}/f", here / "back")
        assert (gone.code, gone.one_line("attic")) == (3, True)


async def test_the_name_server_may_ask_for_tls_and_a_token(
    root: Path, tmp_path: Path, certificates: Certificates, nursery: trio.Nursery
) -> None:
    """`serve --name` has options for it; without them it does not start."""
    token = tmp_path / "tokens"
    token.write_text("files correct-horse-battery\n")
    token.chmod(0o600)
    settings = Settings(ssl_server_context=certificates.server_context(), tokens=Tokens.load(token))
    async with start_ns(port=0, broadcast=False, settings=settings) as names:
        name = ("--name", f"attic@{names.uri.location}")
        refused = await command("serve", root, *name)
        assert (refused.code, refused.one_line("Failed to locate")) == (3, True)
        access = ("--ns-tls-ca", certificates.ca, "--ns-token-file", token)
        process, _ = await started(nursery, root, *name, *access)
        assert "attic" in await names.name_server.list()
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.wait() == 0
        assert "attic" not in await names.name_server.list()


async def test_a_taken_port_says_what_to_do(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = await command("serve", root, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (ended.code, ended.one_line("--listen")) == (1, True)


# --- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (core_errors.NamingError("x"), 3),
        (core_errors.SecurityError("x"), 4),
        (core_errors.RefusedError("x"), 4),
        (core_errors.ConnectionClosedError("x"), 5),
        (core_errors.CommunicationError("x"), 5),
        (core_errors.TimeoutError("x"), 11),
        (core_errors.ProtocolError("x"), 12),
        (core_errors.MessageTooLargeError("x"), 12),
        (core_errors.SerializeError("x"), 12),
        (core_errors.PyroError("x"), 1),
        (OSError(5, "Input/output error", "name"), 1),
        (errors.NoSpaceError("x"), 8),
    ],
)
def test_every_error_has_its_code_and_a_text(error: Exception, code: int) -> None:
    found, text = explain(error)
    assert found == code
    assert text


def test_arguments_follow_cp() -> None:
    assert sources_and_target(("a", "b", "c"), None, "s") == (("a", "b"), "c")
    assert sources_and_target(("a", "b"), "t", "s") == (("a", "b"), "t")
    assert sources_and_destination(("a",), None) == (("a",), ".")
    assert sources_and_destination(("a", "b"), None) == (("a",), "b")
    assert sources_and_destination(("a", "b"), "t") == (("a", "b"), "t")
    assert sources_and_destination(("a", "b:1"), None) == (("a",), "b:1")


def test_an_address_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was meant is said, unless both could be files."""
    monkeypatch.chdir(tmp_path)
    Path("f.txt").touch()
    done = CliRunner().invoke(main, ["send", "localhost:1/", "f.txt"])
    assert (done.exit_code, "pyroxfer send f.txt localhost:1/" in done.stderr) == (2, True)
    Path("a:1").touch()
    assert sources_and_target(("a:1", "f.txt"), None, None) == (("a:1",), "f.txt")


def test_a_place_before_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for sending."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["get", ".", "localhost:1/f.txt"])
    assert (done.exit_code, "pyroxfer get localhost:1/f.txt ." in done.stderr) == (2, True)
    assert sources_and_destination(("localhost:1/f.txt", "."), None) == (("localhost:1/f.txt",), ".")
    Path("a:1").touch()
    assert sources_and_destination((".", "a:1"), None) == ((".",), "a:1")


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "none"),
        ("serve", "--token-file", "none"),
        ("serve", "--tls-cert", "none"),
        ("ls", "localhost:1", "--tls-ca", "none"),
        ("up", "-c", "none"),
        ("--config", "none", "ls"),
    ],
    ids=" ".join,
)
def test_a_file_of_an_option_that_is_not_there_is_wrong_usage(words: tuple[str, ...]) -> None:
    """Whatever it was to be read for."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "none" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["--help"], ["nsc", "--help"], ["config", "--help"]], ids=" ".join)
def test_the_help_tells_of_every_command_in_a_whole_sentence(words: list[str]) -> None:
    shown = CliRunner().invoke(main, words).output
    assert "Commands:" in shown
    assert "..." not in shown.partition("Commands:")[2]


def test_every_command_of_the_table_can_be_used() -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    for name in COMMANDS:
        found = main.get_command(context, name)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [("doctor", "localhost:1"), ("config", "show"), ("--help",), ("--version",)])
def test_an_output_that_is_full_is_one_line(arguments: tuple[str, ...], buffered: bool) -> None:
    """Results that go into a file on a full disk end the command with an error, not with a traceback."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment
        )
    assert (done.returncode, done.stderr) == (1, b"Error: the output: No space left on device\n")


@pytest.mark.parametrize("arguments", [("serve", ".", "--listen", "localhost:0"), ("echo",), ("config", "show")])
def test_an_output_that_nobody_reads_ends_the_command_without_a_word(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_server_whose_output_is_full_is_one_line(tmp_path: Path) -> None:
    """It cannot say where it is; what Python still has buffered is not complained of once more."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*COMMAND, "serve", str(tmp_path), "--listen", "localhost:0"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (1, b"pyroxfer: No space left on device\n")


def test_a_pipe_that_nobody_reads_and_no_standard_error() -> None:
    """It ends as with a standard error; Python's 120 would say that it could not end."""
    unread, pipe = os.pipe()
    os.close(unread)
    try:
        quiet = ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, "config", "show"]
        assert subprocess.run(quiet, stdout=pipe, timeout=60).returncode == 1
    finally:
        os.close(pipe)
