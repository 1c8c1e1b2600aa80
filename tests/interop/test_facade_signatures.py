"""The facade's names take what those of the stock libraries take, in the same order and under the same names."""

from __future__ import annotations

import inspect
import json
import subprocess
from typing import Any

import pytest
from peers import stock_python

from pyroxfer_core import blocking

NOT_OFFERED = {
    *(f"SerializerBase.{name}" for name in ("dumps", "dumpsCall", "loads", "loadsCall", "make_exception")),
    *("SerializerBase.recreate_classes", "SerializerBase.register_type_replacement", "Daemon.handleRequest"),
}
"""See the end of docs/facade.md. They are for the library's own use, or for daemons that handle their own sockets."""
PYRO4 = ("Future", "URI", "asyncproxy", "batch", "locateNS")
STOCK_SIGNATURES = """
import importlib, inspect, json, sys

def parameters(thing):
    try:
        return [name for name in inspect.signature(thing).parameters]
    except (TypeError, ValueError):
        return None

library, names = importlib.import_module(sys.argv[1]), sys.argv[2:]
found = {}
for name in names or [name for name in dir(library) if not name.startswith("_")]:
    thing = getattr(library, name)
    if inspect.ismodule(thing):
        continue
    if callable(thing):
        found[name] = parameters(thing)
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for member in dir(thing):
            value = inspect.getattr_static(thing, member)
            if not member.startswith("_") and (inspect.isfunction(value) or hasattr(value, "__func__")):
                found[name + "." + member] = parameters(getattr(thing, member))
print(json.dumps(found))
"""


def stock_signatures(library: str, *names: str) -> dict[str, list[str] | None]:
    command = [stock_python(), "-c", STOCK_SIGNATURES, library, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, list[str] | None] = json.loads(done.stdout)
    return found


def ours(path: str) -> Any:
    found: Any = blocking
    for name in path.split("."):
        found = getattr(found, name)
    return found


def unlike(path: str, expected: list[str] | None) -> str | None:
    """What is wrong with one of our names; None if a program that calls the stock one may call it."""
    try:
        thing = ours(path)
    except AttributeError:
        return f"{path} is missing"
    if expected is None:
        return None
    parameters = list(inspect.signature(thing).parameters.values())
    named = [each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY]
    rest = parameters[len(expected) :]
    if named[: len(expected)] != expected:
        return f"{path} takes {named}, not {expected}"
    needed = [each.name for each in rest if each.default is each.empty and each.kind not in (2, 4)]
    return f"{path} needs {needed}" if needed else None


@pytest.mark.parametrize(
    ("library", "names", "where"),
    [
        ("Pyro5.api", (), ""),
        ("Pyro5.errors", (), "errors."),
        ("Pyro4", PYRO4, ""),
        ("Pyro4.errors", (), "errors."),
        ("Pyro4.naming", ("startNS", "startNSloop"), ""),
        ("Pyro4.util", ("excepthook", "formatTraceback", "getPyroTraceback"), "util."),
    ],
)
def test_what_a_program_passes_is_taken(library: str, names: tuple[str, ...], where: str) -> None:
    """By position and by name; what is new has a default."""
    found = stock_signatures(library, *names)
    offered = {where + path: expected for path, expected in found.items() if path not in NOT_OFFERED}
    assert offered
    assert [text for path, expected in offered.items() if (text := unlike(path, expected)) is not None] == []
