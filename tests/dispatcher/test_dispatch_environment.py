"""The environment goes before the file, a flag before both; each value says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from pyroxfer_dispatcher.cli import main
from pyroxfer_dispatcher.config import Config, ConfigError, load_config, parse_config

SERVICE = '[[services]]\nname = "s"\n[[services.backends]]\nname = "a"\nuri = "PYRO:x@localhost:1"\n'
LAYERS: dict[str, tuple[object, str, object]] = {
    "listen": ("localhost:1", "localhost:2", "localhost:2"),
    "insecure": (False, "yes", True),
    "tls_cert": ("a.pem", "b.pem", "b.pem"),
    "tls_key": ("a.key", "b.key", "b.key"),
    "tls_ca": ("a.ca", "b.ca", "b.ca"),
    "token_file": ("a", "b", "b"),
    "backend_tls": (False, "1", True),
    "backend_tls_ca": ("a", "b", "b"),
    "backend_tls_cert": ("a", "b", "b"),
    "backend_tls_key": ("a", "b", "b"),
    "backend_token_file": ("a", "b", "b"),
    "object": ("one", "two", "two"),
    "methods": (["one"], "two, three", ["two", "three"]),
    "oneway": (["one"], "two three", ["two", "three"]),
    "default": ("s", "s", "s"),
    "register": ("a", "b", "b"),
    "nameserver": ("a:1", "b:1", "b:1"),
    "registry": ("a:1", "b:1", "b:1"),
    "connect_timeout": (1.0, "2", 2.0),
    "control": ("a", "b", "b"),
    "admin": ("localhost:1", "localhost:2", "localhost:2"),
    "access_log": ("a", "b", "b"),
    "health_interval": (1.0, "0.5", 0.5),
    "drain_timeout": (1.0, "2", 2.0),
    "stall_timeout": (1.0, "2", 2.0),
    "busy_poll": (0.001, "0", 0.0),
}
"""Each key: in the file, in the environment, and what is in force with both."""


def variable(key: str) -> str:
    return f"PYROXFER_DISPATCHER_{key.upper()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "d.toml"
    lines = [f"{key} = {json.dumps(values[0])}" for key, values in LAYERS.items()]
    path.write_text("\n".join(lines) + "\n" + SERVICE)
    return path


def shown(path: Path, environ: dict[str, str], *flags: str) -> dict[str, tuple[object, str]]:
    """Value and origin of each key that ``show --origin`` tells."""
    result = run(["show", "--origin", "-c", str(path), *flags], environ)
    assert result.exit_code == 0, result.stderr
    found = {}
    for line in result.output.splitlines():
        key, _, rest = line.partition(" = ")
        value, _, origin = rest.partition("    # ")
        found[key] = (json.loads(value), origin)
    return found


def run(args: list[str], environ: dict[str, str]) -> Result:
    return CliRunner().invoke(main, args, env=environ)


def test_every_key_is_listed_here() -> None:
    assert {*LAYERS, "services"} == {field.name for field in msgspec.structs.fields(Config)}


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(path: Path, tmp_path: Path) -> None:
    """Every key in each layer, alone and on top of the lower ones: the value in force, and where it is from."""
    environ = {variable(key): values[1] for key, values in LAYERS.items()}
    in_file = shown(path, {})
    assert {key: in_file[key][0] for key in LAYERS} == {key: values[0] for key, values in LAYERS.items()}
    assert [in_file[key][1] for key in LAYERS] == [f"line {n}" for n in range(1, len(LAYERS) + 1)]
    over_file = shown(path, environ)
    assert {key: over_file[key] for key in LAYERS} == {key: (LAYERS[key][2], variable(key)) for key in LAYERS}
    assert over_file["services[0].name"] == ("s", f"line {len(LAYERS) + 2}")
    bare = tmp_path / "bare.toml"
    bare.write_text(SERVICE)
    over_default = shown(bare, environ)
    assert {key: over_default[key] for key in LAYERS} == {key: over_file[key] for key in LAYERS}
    defaults = shown(bare, {variable(key): "" for key in LAYERS})
    assert {origin for key, (_, origin) in defaults.items() if key in LAYERS} == {"default"}, "empty says nothing"


def test_a_flag_goes_before_the_environment(path: Path) -> None:
    assert shown(path, {variable("insecure"): "no"}, "--insecure")["insecure"] == (True, "--insecure")


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"LISTEN": "0.0.0.0:1"},
            "PYROXFER_DISPATCHER_LISTEN: listen: 0.0.0.0 is beyond this machine and nothing here authenticates",
        ),
        ({"DRAIN_TIMEOUT": "soon"}, "PYROXFER_DISPATCHER_DRAIN_TIMEOUT: drain_timeout: Expected `float`, got `str`"),
        ({"DRAIN_TIMEOUT": "-1"}, "PYROXFER_DISPATCHER_DRAIN_TIMEOUT: drain_timeout: Expected `float` >= 0.0"),
        ({"BACKEND_TLS": "maybe"}, "PYROXFER_DISPATCHER_BACKEND_TLS: backend_tls: Expected `bool`, got `str`"),
        ({"METHODS": "_x"}, "PYROXFER_DISPATCHER_METHODS: methods[0]: '_x' is not the name of a public method"),
        (
            {"LISTN": "localhost:1"},
            "PYROXFER_DISPATCHER_LISTN: unknown variable; the nearest known one is 'PYROXFER_DISPATCHER_LISTEN'",
        ),
        ({"SERVICES": "x"}, "PYROXFER_DISPATCHER_SERVICES: unknown variable; the nearest known one is "),
    ],
)
def test_a_mistake_names_its_variable(tmp_path: Path, environ: dict[str, str], line: str) -> None:
    """And not the line of the file that it replaces."""
    path = tmp_path / "d.toml"
    path.write_text('listen = "localhost:1"\n' + SERVICE)
    result = run(["check", "-c", str(path)], {f"PYROXFER_DISPATCHER_{key}": value for key, value in environ.items()})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"pyroxfer-dispatcher: {line}")


def test_a_mistake_of_the_file_still_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text('listen = "localhost:1"\nadmin = 5\n' + SERVICE)
    result = run(["check", "-c", str(path)], {variable("listen"): "localhost:2"})
    assert result.stderr == f"pyroxfer-dispatcher: {path}:2: admin: Expected `str | null`, got `int`\n"


def test_what_kubernetes_and_docker_set_is_not_meant() -> None:
    """For a service that is called pyroxfer-dispatcher."""
    names = (
        "NAME",
        "ENV_HOME",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_PYRO",
        "PORT",
        "PORT_9095_TCP",
        "PORT_9095_TCP_ADDR",
    )
    environ = {f"PYROXFER_DISPATCHER_{name}": "10.0.0.1" for name in names}
    assert parse_config(SERVICE, environ=environ) == parse_config(SERVICE)


def test_a_program_that_reads_a_file_reads_that_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts where the program says so."""
    monkeypatch.setenv(variable("object"), "two")
    assert load_config(path).object == "one"
    assert load_config(path, environ={variable("object"): "two"}).object == "two"
    with pytest.raises(ConfigError, match="unknown variable"):
        load_config(path, environ={variable("nothing"): "x"})


def test_commands_find_the_control_socket_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(SERVICE)
    place = str(tmp_path / "control")
    result = run(["status", "-c", str(path)], {variable("control"): place})
    assert (result.exit_code, f"no dispatcher answers on {place}" in result.stderr) == (5, True)
