"""Logging by environment, in fresh processes: Pyro's variables and our own, and never over a program's own set-up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doubles import connect_bytes, raw_client

import pyroxfer_core
from pyroxfer_core import Daemon
from pyroxfer_core.transport import wirelog

LOG = "import logging; logging.getLogger('some').debug('a line')"
CONFIGURE = f"import pyroxfer_core as core; core.configure_logging(); {LOG}"
FACADE = f"from pyroxfer_core.blocking import config; config.HOST; {LOG}"
OWN_FIRST = f"import logging; logging.basicConfig(level='ERROR'); {CONFIGURE}"


def stderr_of(program: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYRO_", "PYROXFER_LOG"))}
    done = subprocess.run([sys.executable, "-c", program], env=kept | variables, capture_output=True, text=True)
    return done.stderr


@pytest.mark.parametrize("program", [CONFIGURE, FACADE])
@pytest.mark.parametrize("variable", ["PYRO_LOGLEVEL", "PYROXFER_LOG_LEVEL"])
def test_a_level_in_the_environment_turns_the_log_on(program: str, variable: str) -> None:
    assert "some DEBUG a line" in stderr_of(program, **{variable: "DEBUG"})
    assert "a line" not in stderr_of(program, **{variable: "INFO"})


@pytest.mark.parametrize("program", [CONFIGURE, FACADE])
def test_the_file_in_the_environment_takes_the_log(program: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert not stderr_of(program, PYRO_LOGLEVEL="DEBUG", PYRO_LOGFILE=str(file))
    assert "a line" in file.read_text()
    assert "a line" in stderr_of(program, PYRO_LOGLEVEL="DEBUG", PYRO_LOGFILE="{stderr}")


def test_a_file_named_without_a_level_takes_the_log_from_info_on(tmp_path: Path) -> None:
    """By an argument: a file that the environment names is for the levels that it names."""
    file = tmp_path / "log"
    configure = f"import pyroxfer_core as core; core.configure_logging(file={str(file)!r})"
    stderr_of(f"{configure}; {LOG}; logging.info('told')")
    assert file.read_text().endswith("told\n")
    assert "a line" not in file.read_text()
    assert "a line" not in stderr_of(CONFIGURE, PYRO_LOGFILE=str(file))


def test_our_own_names_go_before_those_of_pyro(tmp_path: Path) -> None:
    assert "a line" in stderr_of(CONFIGURE, PYRO_LOGLEVEL="ERROR", PYROXFER_LOG_LEVEL="DEBUG")


@pytest.mark.parametrize("program", ["import pyroxfer_core, pyroxfer_core.blocking; " + LOG, OWN_FIRST])
def test_importing_changes_nothing_and_neither_does_a_program_with_a_log_of_its_own(program: str) -> None:
    """The environment is read when something asks for it, and a set-up that the program made first stays."""
    assert "a line" not in stderr_of(program, PYRO_LOGLEVEL="DEBUG")


def test_a_level_that_does_not_exist_is_named_with_its_variable() -> None:
    text = stderr_of(CONFIGURE, PYRO_LOGLEVEL="LOUD")
    assert "ValueError: PYRO_LOGLEVEL is 'LOUD'; choose one of: DEBUG" in text


def test_each_module_of_the_core_logs_under_its_own_name() -> None:
    """So that a room, or one module, can be made louder; only the headers of messages have a name apart."""
    package = Path(pyroxfer_core.__file__).parent
    apart = package / "transport" / "wirelog.py"
    named = {
        path: re.findall(r"getLogger\((.*?)\)", path.read_text()) for path in package.rglob("*.py") if path != apart
    }
    assert {name for names in named.values() for name in names} == {"__name__"}
    assert wirelog.log.name == "pyroxfer.wire"


@pytest.mark.parametrize(("level", "said"), [("DEBUG", True), ("WARNING", False)])
async def test_one_module_can_be_made_louder(caplog: pytest.LogCaptureFixture, level: str, said: bool) -> None:
    """A client that talks rubbish after its handshake is noted by the module that serves it, at INFO."""
    caplog.set_level(level, "pyroxfer_core.server")
    async with Daemon() as daemon, raw_client(daemon.location) as client:
        await client.send(connect_bytes(object_id="Pyro.Daemon") + bytes(40))
        while await client.receive():
            pass
    names = {record.name for record in caplog.records}
    assert ("pyroxfer_core.server.turn" in names) is said
