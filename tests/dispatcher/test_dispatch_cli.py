"""The command: what it prints, how it ends, and how much memory it takes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from doubles_dispatch import POISON, ask, blob, echo, raw_backend, raw_client, wait_for

from pyroxfer_core import Connection
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher.cli import main

MIB = 1024 * 1024
COMMAND = (sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()")


def config_text(uri: str, listen: str = "localhost:0", head: str = "") -> str:
    return (
        f'listen = "{listen}"\n{head}\n[[services]]\nname = "orders"\n'
        f'[[services.backends]]\nname = "a"\nuri = "{uri}"\n'
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_config(text: str) -> Path:
        path = tmp_path / "dispatcher.toml"
        path.write_text(text)
        return path

    return write_config


@pytest.fixture
def start() -> Iterator[Callable[[Path], tuple[subprocess.Popen[str], str]]]:
    """``start(path)`` runs the command and tells the process and its location."""
    with ExitStack() as stack:

        def start_command(path: Path) -> tuple[subprocess.Popen[str], str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, "run", "-c", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"pyroxfer-dispatcher ready: PYRO:pyroxfer\.dispatcher@(localhost:\d+)\n", line)
            assert found, f"instead of the ready line came {line!r}"
            return process, found[1]

        yield start_command


Start = Callable[[Path], tuple[subprocess.Popen[str], str]]
Write = Callable[[str], Path]


def command(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_and_stops_cleanly(write: Write, start: Start, number: signal.Signals) -> None:
    async with raw_backend(echo) as backend:
        process, location = start(write(config_text(backend.uri, head="drain_timeout = 0.1")))
        async with raw_client(location) as client:
            assert (await ask(client, blob())).body == POISON
            process.send_signal(number)
            assert await client.receive() is None
        _, errors = await trio.to_thread.run_sync(process.communicate, None, 10)
    assert (process.returncode, errors) == (0, "")


async def test_a_second_signal_does_not_wait(write: Write, start: Start) -> None:
    never = trio.Event()

    async def stuck(connection: Connection, request: Message) -> None:
        await never.wait()

    async with raw_backend(stuck) as backend:
        process, location = start(write(config_text(backend.uri, head="drain_timeout = 0.1")))
        async with raw_client(location) as busy, raw_client(location) as idle:
            await busy.send(blob())
            await wait_for(lambda: backend.seen)
            process.send_signal(signal.SIGTERM)
            assert await idle.receive() is None
            process.send_signal(signal.SIGTERM)
            await trio.to_thread.run_sync(process.wait, 4)
    assert process.returncode == -signal.SIGTERM


def test_check_says_what_a_file_does(write: Write) -> None:
    path = write(config_text("PYRO:x@localhost:1"))
    result = command("check", "-c", str(path))
    assert result.output == f"{path}: fine; 1 services, 1 backends, listens on localhost:0\n"
    assert result.exit_code == 0


@pytest.mark.parametrize("verb", ["run", "check"])
def test_every_problem_of_a_file_is_one_line(write: Write, verb: str) -> None:
    path = write(config_text("nonsense", head="lisen = 1"))
    result = command(verb, "-c", str(path))
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"pyroxfer-dispatcher: {path}:2: lisen: unknown key; the nearest known one is 'listen'"
    assert "services[0].backends[0].uri: invalid uri: 'nonsense'" in lines[1]
    assert result.exit_code == 2


@pytest.mark.parametrize("args", [["run"], ["check"], ["nonsense"], ["run", "--nonsense"]])
def test_wrong_usage_is_two(args: list[str]) -> None:
    assert command(*args).exit_code == 2


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_missing_file_is_wrong_usage(tmp_path: Path, verb: str) -> None:
    result = command(verb, "-c", str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "none.toml: no such file" in result.stderr


def test_so_is_an_unreadable_one(tmp_path: Path) -> None:
    result = command("check", "-c", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_taken_address_is_five(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = write(config_text("PYRO:x@localhost:1", listen=f"127.0.0.1:{taken.getsockname()[1]}"))
        done = subprocess.run(
            [*COMMAND, "run", "-c", str(path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 5
    assert re.fullmatch(
        r"pyroxfer-dispatcher: cannot listen on 127\.0\.0\.1:\d+: Address already in use\n", done.stderr
    )


def test_an_open_door_needs_a_loud_word(write: Write) -> None:
    path = write(config_text("PYRO:x@localhost:1", listen="0.0.0.0:9095"))
    refused = command("check", "-c", str(path))
    assert refused.exit_code == 2
    assert "insecure = true" in refused.stderr
    assert command("check", "--insecure", "-c", str(path)).exit_code == 0


# -- memory


def resident_peak(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


async def test_memory_stays_flat_whatever_passes(write: Write, start: Start) -> None:
    """64 MiB there and back leave less than 4 MiB of traces in the dispatcher."""
    body = POISON * (64 * MIB // len(POISON))
    async with raw_backend(echo) as backend:
        process, location = start(write(config_text(backend.uri)))
        async with raw_client(location) as client:
            await ask(client, blob(1))
            before = resident_peak(process.pid)
            answer = await ask(client, blob(2, body))
            assert answer.body == body
            assert resident_peak(process.pid) - before < 4 * MIB


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("show",), ("run",), ("run", "--workers", "2")])
def test_an_output_that_is_full_is_one_line(write: Write, arguments: tuple[str, ...]) -> None:
    """Results that go into a file on a full disk end the command with an error, also where Python buffers them."""
    path = write(config_text("PYRO:a@localhost:1"))
    options = () if arguments[0].startswith("-") else ("-c", str(path))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments, *options], stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment
        )
    assert (done.returncode, done.stderr) == (1, b"Error: the output: No space left on device\n")
