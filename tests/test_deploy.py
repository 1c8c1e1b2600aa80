"""The units and the Containerfile: every command and option in them exists, and they may do what they need only."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest

from pyroxfer.cli.main import main as pyroxfer
from pyroxfer_dispatcher.cli import main as pyroxfer_dispatcher

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.socket")])
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
BIN = "/opt/pyroxfer/bin/"
COMMANDS: dict[str, click.Group] = {"pyroxfer": pyroxfer, "pyroxfer-dispatcher": pyroxfer_dispatcher}
HARDENED = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallArchitectures": "native",
}

Unit = dict[str, dict[str, list[str]]]


def parse_unit(path: Path) -> Unit:
    """Section, key, and the values that it is given."""
    unit: Unit = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            unit[section][key].append(value)
    return unit


def check_command(words: list[str]) -> None:
    """Fails where the command, one of its options, or a value of one, does not exist."""
    group = COMMANDS[Path(words[0]).name]
    context = click.Context(group, info_name=words[0])
    command = group.get_command(context, words[1])
    assert command is not None, words
    command.make_context(words[1], words[2:], parent=context)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_the_commands_of_a_service_exist(path: Path) -> None:
    service = parse_unit(path)["Service"]
    for line in [*service["ExecStartPre"], *service["ExecStart"]]:
        words = shlex.split(line)
        assert words[0].startswith(BIN)
        check_command(words)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_tells_its_manager_and_can_do_nothing_that_it_does_not_need(path: Path) -> None:
    """A watchdog, a socket of its own, and the sandbox."""
    unit = parse_unit(path)
    service = unit["Service"]
    assert {key: service[key][-1] for key in HARDENED} == HARDENED
    assert service["Type"] == ["notify"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(service["WatchdogSec"][0]) > 0
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert unit["Install"]["Also"] == [path.with_suffix(".socket").name]


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_socket_listens_on_this_machine_only_and_belongs_to_one_service(path: Path) -> None:
    """Its name is none that means something else to the dispatcher."""
    socket = parse_unit(path.with_suffix(".socket"))["Socket"]
    (place,) = socket["ListenStream"]
    assert place.startswith("127.0.0.1:")
    assert socket["FileDescriptorName"][0] not in ("control", "admin")
    assert "Accept" not in socket


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """As far as there is a systemd here to ask; what the units say is checked above in any case."""
    assert len(UNITS) == 2 * len(SERVICES) == 6
    found = shutil.which("systemd-analyze")
    if found is None:
        return
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(BIN + "pyroxfer-dispatcher", sys.executable))
        there = tmp_path / unit.name
        there.write_text(there.read_text().replace(BIN + "pyroxfer", sys.executable))
    command = [found, "verify", "--man=no", "--recursive-errors=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def containerfile() -> list[tuple[str, str]]:
    """Instructions of the Containerfile, with continued lines joined."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def test_the_container_is_built_from_these_sources_and_has_no_root() -> None:
    """What is copied exists and is all that the wheel needs; what it runs is a command that exists."""
    steps = containerfile()
    stage = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    build, final = steps[:stage], dict(steps[stage:])
    copied = [name for word, rest in build if word == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^packages = (\[.*\])$", project, re.MULTILINE)
    assert {package.split("/")[0] for package in json.loads(packages)} <= set(copied)
    assert int(final["USER"].partition(":")[0]) > 0
    assert [rest for word, rest in steps[stage:] if word == "RUN" and "pip" in rest] == []
    check_command([*json.loads(final["ENTRYPOINT"]), *json.loads(final["CMD"])])
