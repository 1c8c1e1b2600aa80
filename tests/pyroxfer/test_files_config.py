"""The configuration of the command: flag, then environment, then file, then default, by one name in all four."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyroxfer.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration folder of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pyroxfer").mkdir()
    return tmp_path / "pyroxfer"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def shown(*arguments: str) -> dict[str, dict[str, object]]:
    result = run("config", "show", "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, dict[str, object]] = json.loads(result.output)
    return found


def test_each_layer_goes_before_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default holds until the file says otherwise, the file until the environment does."""
    assert shown("send")["send.if-exists"] == {"value": "fail", "origin": "default"}
    file = folder / "config.toml"
    file.write_text('[send]\nif-exists = "skip"\n')
    assert shown("send")["send.if-exists"] == {"value": "skip", "origin": str(file)}
    monkeypatch.setenv("PYROXFER_SEND_IF_EXISTS", "replace")
    assert shown("send")["send.if-exists"] == {"value": "replace", "origin": "environment PYROXFER_SEND_IF_EXISTS"}


def test_a_command_runs_with_what_is_shown_and_a_flag_goes_before_all(folder: Path) -> None:
    """The values of the file reach the command itself, and what is typed goes before them."""
    (folder / "config.toml").write_text("[serve]\nread-only = true\n[nsc]\nport = 1\n[ls]\njson = true\n")
    assert "exclude each other" in run("serve", "--upload-only", "--listen", "localhost:0").output
    assert "localhost:1" in run("nsc", "--host", "localhost", "ping").output
    assert "localhost:2" in run("nsc", "--host", "localhost", "--port", "2", "ping").output


def test_send_without_a_target_takes_the_server_of_any_layer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.touch()
    assert "where to?" in run("send", str(source)).output
    (folder / "config.toml").write_text('server = "localhost:1/"\n')
    assert "localhost:1" in run("send", str(source)).output
    monkeypatch.setenv("PYROXFER_SERVER", "localhost:2/")
    assert "localhost:2" in run("send", str(source)).output
    assert "localhost:3" in run("--server", "localhost:3/", "send", str(source)).output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sned = 1", "sned: unknown key; did you mean 'send'?"),
        ("[send]\nchanel = 'raw'", "send.chanel: unknown key; did you mean 'channel'?"),
        ("[send]\nchannel = 'row'", "send.channel: 'row' is not one of"),
        ("[send]\nquiet = 'perhaps'", "send.quiet: 'perhaps' is not a valid boolean"),
        ("[send]\nchannel = ['raw']", "send.channel: expected one value"),
        ("[nsc.lookupp]\n", "nsc.lookupp: unknown key; did you mean"),
        ("[nsc]\nport = 70000", "nsc.port: 70000 is not in the range"),
        ("send = 3", "send: expected a table, as in [send]"),
        ("log-level = 'loud'", "log-level: 'loud' is not one of"),
        ("[send", "not TOML"),
        ("a = " + 5000 * "[", "nested too deeply"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place_and_is_a_usage_error(
    folder: Path, text: str, told: str
) -> None:
    """Exit code 2 and a line with file, key and problem: from `check`, and from the command that would use it."""
    file = folder / "config.toml"
    file.write_text(text)
    command = ["nsc", "ping"] if text.startswith("[nsc") else ["send", "x", "y"]
    for arguments in (["config", "check"], command):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert f"{file}: " in result.output
        assert told in result.output


@pytest.mark.parametrize("kind", ["none", "no folder"])
def test_a_user_without_a_home_folder_has_no_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown user of a container, or one whose home is a place like /dev/null: every command runs."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    if kind == "none":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    else:
        (tmp_path / "home").touch()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = run("config", "check")
    assert (result.exit_code, result.exception) == (0, None), result.output
    expected = "no file: nothing says where the home folder" if kind == "none" else "no such file, or nothing in it"
    assert expected in result.output


def test_every_problem_is_told_at_once(folder: Path) -> None:
    (folder / "config.toml").write_text("[send]\na = 1\nb = 2\n")
    output = run("config", "check").output
    assert "send.a: unknown key" in output
    assert "send.b: unknown key" in output


def test_a_variable_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROXFER_GET_CHANNEL", "row")
    result = run("config", "check")
    assert result.exit_code == 2
    assert "PYROXFER_GET_CHANNEL: 'row' is not one of" in result.output


@pytest.mark.parametrize("make", ["missing", "folder", "binary", "huge"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, make: str) -> None:
    """A file named on the command line that is not there, is a folder, is no text or is far too large."""
    file = tmp_path / "file"
    if make == "folder":
        file.mkdir()
    elif make != "missing":
        file.write_bytes(b"\xff" if make == "binary" else b"#" * (1024 * 1024 + 1))
    result = run("--config", str(file), "config", "check")
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {file}: ")
    assert result.output.count("\n") == 1


def test_every_option_of_every_command_can_stand_in_file_and_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name in all layers: each flag of each command is taken from the file, and from its variable."""
    flags = {name for name, found in shown().items() if found["value"] is False and name.count(".") == 1}
    assert len(flags) > 10
    tables: dict[str, list[str]] = {}
    for name in flags:
        command, _, option = name.partition(".")
        tables.setdefault(command, []).append(f"{option} = true")
    assert tables.keys() <= COMMANDS.keys()
    (folder / "config.toml").write_text(
        "".join(f"[{command}]\n" + "\n".join(lines) + "\n" for command, lines in tables.items())
    )
    assert all(found["value"] is True for name, found in shown().items() if name in flags)
    for name in flags:
        monkeypatch.setenv(f"PYROXFER_{name.upper().replace('.', '_').replace('-', '_')}", "0")
    assert all(found["value"] is False for name, found in shown().items() if name in flags)


def test_secrets_are_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one comes from is told, not what it is."""
    monkeypatch.setenv("PYROXFER_GATEWAY_KEY", "sesame")
    assert shown("gateway")["gateway.key"] == {"value": "(hidden)", "origin": "environment PYROXFER_GATEWAY_KEY"}
    monkeypatch.delenv("PYROXFER_GATEWAY_KEY")
    (folder / "config.toml").write_text('[gateway]\nkey = "sesame"\n')
    assert "sesame" not in run("config", "show").output


def test_the_gateway_looks_into_the_environment_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every command does; and for the name server into its own variable before those of all."""
    (folder / "config.toml").write_text('[gateway]\nns = "file:1"\nkey = "a"\n')
    assert shown("gateway")["gateway.ns"] == {"value": ["file", 1], "origin": str(folder / "config.toml")}
    monkeypatch.setenv("PYRO_HTTPGATEWAY_KEY", "b")
    monkeypatch.setenv("PYRO_NS_PORT", "2")
    assert shown("gateway")["gateway.ns"] == {"value": [None, 2], "origin": "environment PYRO_NS_PORT"}
    assert shown("gateway")["gateway.key"]["origin"] == "environment PYRO_HTTPGATEWAY_KEY"
    monkeypatch.setenv("PYROXFER_GATEWAY_NS", "own:3")
    assert shown("gateway")["gateway.ns"]["value"] == ["own", 3]


def test_the_log_goes_where_the_options_say(tmp_path: Path) -> None:
    """A file for the log is written at its level; one that cannot be written is a usage error."""
    before, level = logging.root.handlers[:], logging.root.level
    logging.root.handlers[:] = []
    try:
        result = run("--log-level", "debug", "--log-file", str(tmp_path / "no" / "log"), "config", "check")
        assert result.exit_code == 2
        assert "cannot write the log there" in result.output
        run("--log-level", "info", "--log-file", str(tmp_path / "log"), "config", "check")
        logging.getLogger("anything").info("a line")
        for handler in logging.root.handlers:
            handler.close()
    finally:
        logging.root.handlers[:], logging.root.level = before, level
    assert "anything INFO a line" in (tmp_path / "log").read_text()
