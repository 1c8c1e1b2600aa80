"""Where in a TOML file a value stands, and where each value in force comes from."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY: Final = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([\w-]+))\s*=""")
_FENCES: Final = ('"""', "'''")


def lines_of(text: str) -> dict[str, int]:
    """The line, from 1, of every key and table of a TOML file, by path: ``services[0].backends[1].uri``."""
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    table, fence = "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            fence = "" if fence in line else fence
        elif header := _HEADER.fullmatch(line):
            table = _table(header[2], header[1] == "[[", counts)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            name = key[1] or key[2] or key[3]
            found.setdefault(f"{table}.{name}" if table else name, number)
            fence = next((mark for mark in _FENCES if line.count(mark) == 1), "")
    return found


def _table(name: str, is_array: bool, counts: Counter[str]) -> str:
    """The path of a table; each part that is an array of tables stands for its last one."""
    path = ""
    parts = [part.strip().strip("\"'") for part in name.split(".")]
    for index, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if is_array and index == len(parts) - 1:
            counts[path] += 1
        if counts[path]:
            path += f"[{counts[path] - 1}]"
    return path


def line_of(path: str, lines: dict[str, int]) -> int | None:
    """The line of a path, or of the nearest thing around it that has one."""
    while path:
        if path in lines:
            return lines[path]
        path = re.sub(r"(\[\d+\]|\.?[^.\[\]]+)$", "", path)
    return None


def origins_of(
    config: msgspec.Struct, text: str, flags: Collection[str], variables: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Path, value (as in TOML) and origin of everything in force: ``line 3``, ``default``, a variable or a flag.

    Args:
        flags: names that were set on the command line.
        variables: of the environment, by the name that they set.
    """
    lines = {path.removeprefix("dispatcher."): number for path, number in lines_of(text).items()}
    for path, value, is_default in _values("", config):
        if path in flags:
            source = f"--{path}"
        elif path in variables:
            source = variables[path]
        else:  # what stands in an inline table has the line of the key that it belongs to
            line = lines.get(path) if is_default else line_of(path, lines)
            source = "default" if line is None else f"line {line}"
        yield path, json.dumps(value, ensure_ascii=False), source


def _values(path: str, struct: msgspec.Struct) -> Iterator[tuple[str, Any, bool]]:
    """Path and value of everything, and whether it is the default."""
    for field in msgspec.structs.fields(type(struct)):
        value = getattr(struct, field.name)
        name = f"{path}.{field.name}" if path else field.name
        if isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            for index, item in enumerate(value):
                yield from _values(f"{name}[{index}]", item)
        elif value is not None:
            yield name, _plain(value), value == field.default


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool)) else str(value)
