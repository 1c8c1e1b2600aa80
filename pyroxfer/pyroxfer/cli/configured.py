"""The configuration file of the command: one TOML file, read before the options, checked like them.

A flag goes before the environment, the environment before the file, the file before the default; the name of an
option is the same in all four. ``--if-exists`` of ``pyroxfer send`` is ``PYROXFER_SEND_IF_EXISTS`` and, under
``[send]``, ``if-exists``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from pyroxfer_core.cli.folders import config_folder

from ..names import printable

ENVIRONMENT: Final = "PYROXFER"
DISPATCHER: Final = "dispatcher"
"""The table that is left to the dispatcher's own command, which reads it from the same file."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger file is not a configuration."""


class ConfigurationError(click.ClickException):
    """The configuration file cannot be used: one line for each problem, exit code 2."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(printable(problem) for problem in problems))


def default_file() -> Path | None:
    """Where the file is when nobody says where; nowhere if the user has no home folder."""
    try:
        return config_folder() / "config.toml"
    except FileNotFoundError:
        return None


def read_file(path: str | None) -> dict[str, Any]:
    """The tables of the file; empty when none was named and there is none at the usual place.

    There is none, too, where the usual place cannot be looked at, as when HOME is still that of another user.

    Raises:
        ConfigurationError: it cannot be read, or is no TOML.
    """
    place = Path(path) if path else default_file()
    if place is None:
        return {}
    try:
        with place.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        if path is None and not os.access(place, os.F_OK):
            return {}
        if isinstance(error, FileNotFoundError):
            raise ConfigurationError([f"{place}: there is no such file"]) from None
        raise ConfigurationError([f"{place}: {error.strerror}"]) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError([f"{place}: larger than {MAX_FILE_BYTES} bytes"])
    import tomllib  # most have no such file

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{place}: not UTF-8 at byte {error.start}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"{place}: not TOML: {error}"]) from None
    except RecursionError:
        raise ConfigurationError([f"{place}: nested too deeply"]) from None


@dataclass(frozen=True)
class Configured:
    """What the file of this run says; nothing where there is no place for one."""

    file: Path | None
    table: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | None) -> Configured:
        """The file named, or the one at the usual place if there is one; see `read_file`."""
        return cls(Path(path) if path else default_file(), read_file(path))

    def of_the_group(self, group: click.Group, context: click.Context) -> dict[str, Any]:
        """Defaults of the options that stand before the name of a command.

        Raises:
            ConfigurationError: a key is unknown or a value cannot be used; every one is named. What stands in the
                tables of the commands is looked at when they run.
        """
        elsewhere = {*group.list_commands(context), DISPATCHER}
        top = {key: value for key, value in self.table.items() if key not in elsewhere}
        self._refuse(_problems(top, group, context, ()))
        return _defaults(top, group)

    def of_command(self, name: str, command: click.Command, context: click.Context) -> dict[str, Any]:
        """Defaults of a command's options, and of those of its own commands.

        Raises:
            ConfigurationError: as above.
        """
        table = self.table.get(name, {})
        if not isinstance(table, dict):
            raise ConfigurationError([f"{self.file}: {name}: expected a table, as in [{name}]"])
        self._refuse(_problems(table, command, context, (name,)))
        return _defaults(table, command)

    def _refuse(self, problems: Iterator[str]) -> None:
        if found := [f"{self.file}: {problem}" for problem in problems]:
            raise ConfigurationError(found)


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command that a file may set, by the names they have there."""
    return {
        max(parameter.opts, key=len).lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.is_eager
    }


def _problems(
    table: Mapping[str, Any], command: click.Command, context: click.Context, path: tuple[str, ...]
) -> Iterator[str]:
    options, inner = options_of(command), commands_of(command)
    for key, value in table.items():
        place = ".".join((*path, key))
        if key in inner and isinstance(value, dict):
            yield from _problems(value, inner[key], context, (*path, key))
        elif key not in options:
            commands = command.list_commands(context) if isinstance(command, click.Group) else []
            import difflib  # only for what is wrong

            near = difflib.get_close_matches(key, [*options, *commands], n=1)
            yield f"{place}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
        elif problem := _problem_of(options[key], value, context):
            yield f"{place}: {problem}"


def commands_of(command: click.Command) -> Mapping[str, click.Command]:
    """The commands of a group that has them at hand."""
    return command.commands if isinstance(command, click.Group) else {}


def _problem_of(option: click.Option, value: Any, context: click.Context) -> str | None:
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        return f"expected one value, not {value!r}"
    try:
        option.type_cast_value(context, _as_given(value))
    except click.BadParameter as error:
        return error.message
    return None


def _as_given(value: Any) -> Any:
    """Numbers go through the option's own parser as the text a command line would have."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _defaults(table: Mapping[str, Any], command: click.Command) -> dict[str, Any]:
    """The values of a checked table under the names that click has for the options."""
    options, inner = options_of(command), commands_of(command)
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key in options:
            found[options[key].name or key] = _as_given(value)
        else:
            found[key] = _defaults(value, inner[key])
    return found
