"""What the environment says of a configuration: keys of the file's first level, as ``PYROXFER_DISPATCHER_KEY``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args, get_origin

PREFIX: Final = "PYROXFER_DISPATCHER_"
_FOREIGN: Final = re.compile(r"SERVICE_(HOST|PORT\w*)|PORT|PORT_\d+_\w+|NAME|ENV_\w+")
"""What Kubernetes and Docker set for a service or a container that is called pyroxfer-dispatcher."""
_SEPARATORS: Final = re.compile(r"[,\s]+")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def variable_of(key: str) -> str:
    """The variable of a key."""
    return PREFIX + key.upper()


def variables_in(environ: Mapping[str, str], keys: Mapping[str, Any]) -> dict[str, str]:
    """Keys that the environment has a value for, with their variables. An empty one says nothing."""
    return {key: variable_of(key) for key in keys if environ.get(variable_of(key))}


def unknown_in(environ: Mapping[str, str], keys: Mapping[str, Any]) -> Iterator[str]:
    """A problem for each variable that was meant for us and is nobody's."""
    known = [variable_of(key) for key in keys]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not _FOREIGN.fullmatch(name.removeprefix(PREFIX)):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            yield f"{name}: unknown variable; the nearest known one is {near[0]!r}"


def value_of(text: str, kind: Any) -> object:
    """The value that a text stands for, as it would be in the file; the text itself when it is no such value.

    Args:
        kind: the type of the key. Lists are separated by commas or blanks.
    """
    base = _base_of(kind)
    if base is tuple:
        return [item for item in _SEPARATORS.split(text) if item]
    if base is bool and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if base is float:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _base_of(kind: Any) -> Any:
    """The type without limits, and without the None that stands for no value."""
    if get_origin(kind) is tuple:
        return tuple
    inner = [one for one in get_args(kind) if one is not type(None)]
    return _base_of(inner[0]) if inner else kind
