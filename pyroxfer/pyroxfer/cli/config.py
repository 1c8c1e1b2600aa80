"""``pyroxfer config``: what is configured, and where each value comes from."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
from click.core import ParameterSource

from pyroxfer_core.cli import CommandGroup

from .configured import Configured, commands_of, options_of

HIDDEN: Final = "(hidden)"
"""Shown in place of a secret."""


@dataclass(frozen=True)
class Setting:
    """One option: its name with the command's before it, what holds, and why."""

    name: str
    value: Any
    origin: str


@click.group(cls=CommandGroup)
def config() -> None:
    """Show or check the configuration.

    A flag goes before the environment, the environment before the file, the file before the default.
    """


@config.command()
@click.argument("commands", nargs=-1, metavar="[COMMAND…]")
@click.option("--origin", is_flag=True, help="Say of each value where it comes from.")
@click.option("--json", is_flag=True, help="As one JSON object.")
@click.pass_context
def show(context: click.Context, commands: tuple[str, ...], origin: bool, json: bool) -> None:
    """Show the options of all commands, or of some, as they hold without a flag."""
    settings = _all_settings(context, commands)
    if json:
        click.echo(json_module.dumps({s.name: {"value": s.value, "origin": s.origin} for s in settings}, default=str))
        return
    for setting in settings:
        text = f"{setting.name} = {json_module.dumps(setting.value, default=str, ensure_ascii=False)}"
        click.echo(f"{text:<48} # {setting.origin}" if origin else text)


@config.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Check the file and the environment: every problem on a line of its own, exit code 2 if there is one."""
    _all_settings(context, ())
    configured = _configured(context)
    if configured.file is None:
        click.echo("no file: nothing says where the home folder of this user is; --config names a file")
        return
    click.echo(
        f"{configured.file}: " + ("no problem found" if configured.table else "no such file, or nothing in it")
    )


def _configured(context: click.Context) -> Configured:
    configured = context.find_object(Configured)
    assert configured is not None, "the group reads it"
    return configured


def _all_settings(context: click.Context, wanted: tuple[str, ...]) -> list[Setting]:
    root = context.find_root()
    group, configured = root.command, _configured(context)
    assert isinstance(group, click.Group), "the command is a group"
    names = group.list_commands(root)
    if unknown := [name for name in wanted if name not in names]:
        raise click.UsageError(f"no such command: {', '.join(unknown)}. Choose from: {', '.join(names)}.")
    found = [] if wanted else list(_settings_of(group, root, ""))
    defaults = dict(root.default_map or {})
    for name in wanted or names:
        command = group.get_command(root, name)
        if command is None or command is config:
            continue
        defaults[name] = configured.of_command(name, command, root)
        root.default_map = defaults
        found += _with_inner(command, click.Context(command, info_name=name, parent=root), f"{name}.")
    return found


def _with_inner(command: click.Command, context: click.Context, prefix: str) -> Iterator[Setting]:
    yield from _settings_of(command, context, prefix)
    outer = options_of(command)
    for name, inner in commands_of(command).items():
        inner_context = click.Context(inner, info_name=name, parent=context)
        for setting in _with_inner(inner, inner_context, f"{prefix}{name}."):
            if setting.name.rpartition(".")[2] not in outer:  # some options may stand on both sides of the name
                yield setting


def _settings_of(command: click.Command, context: click.Context, prefix: str) -> Iterator[Setting]:
    for name, option in options_of(command).items():
        value, source = option.consume_value(context, {})
        try:
            if source in _GIVEN:
                value = option.type_cast_value(context, value)
            else:
                value = option.to_info_dict()["default"]
        except click.BadParameter as error:
            raise click.UsageError(f"{_variable(option, context)}: {error.message}") from None
        if option.hide_input and value:
            value = HIDDEN
        yield Setting(prefix + name, value, _origin(source, option, context))


def _origin(source: ParameterSource, option: click.Option, context: click.Context) -> str:
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {_variable(option, context)}"
    return str(_configured(context).file) if source is ParameterSource.DEFAULT_MAP else "default"


_GIVEN: Final = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def _variable(option: click.Option, context: click.Context) -> str:
    """The environment variable that an option has its value from."""
    named = (option.envvar,) if isinstance(option.envvar, str) else option.envvar or ()
    own = f"{context.auto_envvar_prefix}_{(option.name or '').upper()}"
    return next((name for name in named if os.environ.get(name)), own)
