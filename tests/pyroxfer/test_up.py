"""The whole appliance: its file, the order of its parts, and what happens when one of them ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ports import free_ports

from pyroxfer.appliance import DEFAULTS
from pyroxfer.cli.main import main

WITHIN_S = 60
PYROXFER = (sys.executable, "-m", "pyroxfer")


def up(*args: str) -> Result:
    return CliRunner().invoke(main, ["up", *args])


def text_for(names: int, files: int, dispatcher: int) -> str:
    """The defaults, at other ports."""
    text = DEFAULTS.replace("[ns]", f"[ns]\nport = {names}").replace(":9095", f":{dispatcher}")
    text = text.replace('"files"\n\n[dispatcher]', f'"files@localhost:{names}"\n\n[dispatcher]')
    return text.replace(":4000", f":{files}")


class Up:
    """The command, in a folder of its own."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.file = folder / "pyroxfer.toml"
        control = f'[dispatcher]\ncontrol = "{folder / "control"}"'
        self.file.write_text(text_for(*ports).replace("[dispatcher]", control, 1))
        self.served = folder / "served"
        self.served.mkdir()
        self.process = subprocess.Popen(
            [*PYROXFER, "up", "-c", str(self.file), "--folder", str(self.served)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(folder / "state")},
        )
        self.pids: dict[str, int] = {}

    def until_up(self) -> list[str]:
        """Titles of the parts, in the order in which they are told."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.fullmatch(r"(the .*) serves \(process (\d+)\)\n", line):
                self.pids[found[1]] = int(found[2])
            if line == "pyroxfer is up\n":
                return list(self.pids)
        raise AssertionError(self.process.communicate()[1])

    def error_lines(self, until: str) -> str:
        """Its standard error up to a line with this text."""
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if until in line:
                return said
        raise AssertionError(said)


@contextmanager
def running(folder: Path, ports: list[int]) -> Iterator[Up]:
    appliance = Up(folder, ports)
    try:
        yield appliance
    finally:
        if appliance.process.poll() is None:
            appliance.process.terminate()
            try:
                appliance.process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                appliance.process.kill()
        appliance.process.communicate()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_everything_runs_from_one_file_and_stops_in_order(tmp_path: Path) -> None:
    """Files go through the dispatcher, which may hand over to a new process; a part that is killed comes back; the
    end leaves nothing."""
    names, files, dispatcher = ports = free_ports(3)
    (tmp_path / "large").write_bytes(os.urandom(5_000_000))
    with running(tmp_path, ports) as appliance:
        assert appliance.until_up() == ["the name server", "the file service", "the dispatcher"]
        for channel in ("iter", "annot", "auto"):
            to = f"localhost:{dispatcher}/{channel}"
            command = [*PYROXFER, "send", "--channel", channel, str(tmp_path / "large"), to]
            done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
            assert done.returncode == 0, done.stderr
            assert (appliance.served / channel).read_bytes() == (tmp_path / "large").read_bytes()
        restart = [sys.executable, "-m", "pyroxfer_dispatcher", "restart", "--wait", "-c", str(appliance.file)]
        done = subprocess.run(restart, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        assert f"process {appliance.pids['the dispatcher']} sees 0 clients off" in done.stdout, done.stderr
        os.kill(appliance.pids["the file service"], signal.SIGKILL)
        said = appliance.error_lines("the file service serves again")
        assert "the file service is gone: it was ended by SIGKILL; it is started again in 1 s" in said
        assert all(accepts(port) for port in ports)
        appliance.process.send_signal(signal.SIGTERM)
        _, errors = appliance.process.communicate(timeout=WITHIN_S)
        assert (appliance.process.returncode, errors) == (0, "")
    assert not any(accepts(port) for port in (names, files, dispatcher))


def test_a_part_that_does_not_start_ends_the_others(tmp_path: Path) -> None:
    """It says itself why, and the command which one it was; the exit code is that of the part."""
    names, files, dispatcher = free_ports(3)
    with socket.create_server(("127.0.0.1", files)), running(tmp_path, [names, files, dispatcher]) as appliance:
        _, errors = appliance.process.communicate(timeout=WITHIN_S)
        assert "Address already in use" in errors
        code = appliance.process.returncode
        assert code > 0
        assert f"pyroxfer: the file service did not start: it ended with exit code {code}\n" in errors
    assert not accepts(names)


def test_ctrl_c_ends_all_parts(tmp_path: Path) -> None:
    ports = free_ports(3)
    with running(tmp_path, ports) as appliance:
        appliance.until_up()
        appliance.process.send_signal(signal.SIGINT)
        appliance.process.communicate(timeout=WITHIN_S)
        assert appliance.process.returncode == 130
    assert not any(accepts(port) for port in ports)


def test_the_defaults_are_fine() -> None:
    result = up("--check")
    assert result.output == "the defaults: fine; runs ns, serve, dispatcher\n"


def test_every_problem_of_a_file_is_named(tmp_path: Path) -> None:
    """Those of all parts at once."""
    file = tmp_path / "up.toml"
    file.write_text('[serve]\nlisten = "localhost:0"\nquotta = 1\n[ns]\nport = "x"\n[dispatcher]\nlisen = 1\n')
    result = up("-c", str(file), "--check")
    assert result.exit_code == 2
    assert f"{file}: serve.quotta: unknown key; did you mean 'quota'?" in result.output
    assert f"{file}: ns.port: 'x' is not a valid integer" in result.output
    assert f"{file}:7: dispatcher.lisen: unknown key; the nearest known one is 'listen'" in result.output


@pytest.mark.parametrize(
    ("text", "problem"),
    [('server = "x"', "nothing to run; add a table: [ns], [serve], [dispatcher]"), ("nonsense", "not TOML")],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "up.toml"
    file.write_text(text)
    result = up("-c", str(file))
    assert result.exit_code == 2
    assert problem in result.output


def test_a_part_without_a_table_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "up.toml"
    file.write_text("[ns]\n")
    assert up("-c", str(file), "--check").output == f"{file}: fine; runs ns\n"


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = up("-c", str(tmp_path / "none.toml"), "--check")
    assert result.exit_code == 2
    assert "there is no such file" in result.output
