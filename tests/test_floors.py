"""Imports go downwards only: every import, also a lazy one inside a function, against the table of floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "pyroxfer_core": ROOT / "core" / "pyroxfer_core",
    "pyroxfer_dispatcher": ROOT / "dispatcher" / "pyroxfer_dispatcher",
    "pyroxfer": ROOT / "pyroxfer" / "pyroxfer",
}
FLOORS = {
    **dict.fromkeys(("errors", "logs", "settings", "uri", "certificates", "access"), 0),
    "wire": 1,
    **dict.fromkeys(("serializers", "objects"), 2),
    "transport": 3,
    "processes": 3,
    **dict.fromkeys(("client", "server", "nameserver", "futures"), 4),
    **dict.fromkeys(("gateway", "blocking", "cli"), 5),
}
"""Room of the core -> floor. A new room must be added here, or the test fails and names it."""

THIRD_PARTY = {
    0: set(),
    1: set(),
    2: {"serpent", "msgpack", "numpy"},
    3: {"trio", "outcome"},
    4: {"trio", "httpx2"},
    5: {"trio", "click", "tqdm", "httptools"},
}
"""Packages from outside the standard library that a floor may import."""

FORBIDDEN_IN_WIRE = {"socket", "ssl", "select", "selectors", "threading", "asyncio", "time", "datetime", "random",
                     "logging", "os", "pickle", "json"}  # fmt: skip
"""Standard modules with I/O, a clock, threads or a serializer: sans I/O means without all of them. (`marshal` writes
the routing note of a blob there; that nobody reads with it is a test of its own.)"""


@dataclass(frozen=True)
class Import:
    """One imported module as an absolute dotted name, with the place for the message."""

    importer: str
    line: int
    module: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}" + (
            f" ({', '.join(self.names)})" if self.names else ""
        )


def module_name(package: str, path: Path) -> str:
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a module's source, relative ones resolved to absolute names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(module, node.lineno, resolved(node, module, is_package), names)


def resolved(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    base = module.split(".")
    base = base[: len(base) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def all_imports(package: str) -> list[Import]:
    found: list[Import] = []
    for path in sorted(PACKAGES[package].rglob("*.py")):
        found += imports_of(path.read_text(), module_name(package, path), path.name == "__init__.py")
    return found


def room(dotted: str) -> str | None:
    """The room of a module of the core, None for the package itself."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else None


def core_rooms_imported(found: Import) -> set[str | None]:
    """Rooms an import reaches: ``from pyroxfer_core import errors`` reaches ``errors``, not the package."""
    if (target := room(found.module)) is not None:
        return {target}
    return {name if name in FLOORS else None for name in found.names} or {None}


def is_ours(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(package + ".")


def is_standard(dotted: str) -> bool:
    return dotted.split(".")[0] in sys.stdlib_module_names


def violation_in_core(found: Import) -> str | None:
    """Why this import of a module of the core is not allowed, or None."""
    here = room(found.importer)
    if here is None:
        return None
    if here not in FLOORS:
        return f"room {here!r} stands in no floor"
    floor = FLOORS[here]
    if is_ours(found.module, "pyroxfer_core"):
        return violation_between_rooms(here, found)
    if is_standard(found.module):
        return "not sans I/O" if floor == 1 and found.module.split(".")[0] in FORBIDDEN_IN_WIRE else None
    return None if found.module.split(".")[0] in THIRD_PARTY[floor] else f"floor {floor} has no use for it"


def violation_between_rooms(here: str, found: Import) -> str | None:
    for target in core_rooms_imported(found):
        if target is None:
            if FLOORS[here] < 5:
                return "a room imports rooms below it, not the public face of the whole"
        elif target not in FLOORS:
            return f"room {target!r} stands in no floor"
        elif FLOORS[target] > FLOORS[here]:
            return f"floor {FLOORS[here]} must not look up to floor {FLOORS[target]}"
    return None


def violation_above_core(found: Import, core_modules: tuple[str, ...]) -> str | None:
    """The dispatcher and the file service: only public names of the core, never each other."""
    package = found.importer.split(".")[0]
    other = "pyroxfer" if package == "pyroxfer_dispatcher" else "pyroxfer_dispatcher"
    if is_ours(found.module, other):
        return f"{package} must not know {other}"
    if found.module.startswith("_") and found.module != "__future__":
        return "a private module"
    if is_ours(found.module, "pyroxfer_core"):
        if found.module not in core_modules:
            return "not a public module of the core"
        private = [name for name in found.names if name.startswith("_")]
        return f"{', '.join(private)} is not public" if private else None
    return None


CORE_FOR = {
    "pyroxfer_dispatcher": (
        "pyroxfer_core",
        "pyroxfer_core.cli",
        "pyroxfer_core.errors",
        "pyroxfer_core.gateway.http",
        "pyroxfer_core.nameserver",
        "pyroxfer_core.wire",
    ),
    "pyroxfer": ("pyroxfer_core", "pyroxfer_core.errors", "pyroxfer_core.blocking"),
}
COMPOSITION_ROOT = ("pyroxfer.appliance", "pyroxfer.cli")


def test_the_core_imports_downwards_only() -> None:
    """No room of the core imports from a higher floor, or something its floor has no use for."""
    bad = [f"{found}: {why}" for found in all_imports("pyroxfer_core") if (why := violation_in_core(found))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("package", ["pyroxfer_dispatcher", "pyroxfer"])
def test_above_the_core_only_its_public_names_are_used(package: str) -> None:
    """Dispatcher and file service stand on the public names of the core and do not know each other."""
    bad = [
        f"{found}: {why}"
        for found in all_imports(package)
        if not any(is_ours(found.importer, root) for root in COMPOSITION_ROOT)
        and (why := violation_above_core(found, CORE_FOR[package]))
    ]
    assert not bad, "\n".join(bad)


CONTROLS_THE_PROCESS = "blocking/flame.py"
"""Flame is there to run code, for clients that are known, where a setting allows it."""
UNSAFE_CALLS = {"marshal.load", "marshal.loads", "pickle.load", "pickle.loads", "eval", "exec", "os.system"}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_hands_bytes_to_something_stronger_than_needed(package: str) -> None:
    """No reader that can build code or objects is called anywhere, whatever the bytes."""
    for path in PACKAGES[package].rglob("*.py"):
        if path.as_posix().endswith(CONTROLS_THE_PROCESS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in UNSAFE_CALLS, f"{path.relative_to(ROOT)}:{node.lineno} calls {called}"


@pytest.mark.parametrize("package", PACKAGES)
def test_only_declared_packages_are_imported(package: str) -> None:
    """Nothing is imported that an installation would not bring."""
    declared = {
        "trio",
        "outcome",
        "serpent",
        "msgpack",
        "numpy",
        "tqdm",
        "click",
        "msgspec",
        "blake3",
        "zstandard",
        "pathspec",
        "httptools",
        "httpx2",
        "prometheus_client",
        "obstore",
        *PACKAGES,
    }
    undeclared = [
        str(found)
        for found in all_imports(package)
        if not is_standard(found.module) and found.module.split(".")[0] not in declared
    ]
    assert not undeclared, "\n".join(undeclared)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_faces_only_re_export(package: str) -> None:
    """An ``__init__.py`` holds a docstring and imports, or says where names are, so importing a package runs
    nothing."""
    allowed = (ast.Import, ast.ImportFrom)
    for path in PACKAGES[package].rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            second_name = isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
            lazy = ast.unparse(node).startswith(("if TYPE_CHECKING:", "_WHERE = {", "def __getattr__", "def __dir__"))
            assert docstring or second_name or lazy or isinstance(node, allowed), (
                f"{path.relative_to(ROOT)}:{node.lineno} does something"
            )


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import trio", "pyroxfer_core.wire.v48", False, "no use for it"),
        ("def f():\n    import socket", "pyroxfer_core.wire.v48", False, "not sans I/O"),
        ("from ..transport import Connection", "pyroxfer_core.wire.v48", False, "must not look up"),
        ("from . import errors", "pyroxfer_core.client.proxy", False, None),
        ("from .. import Proxy", "pyroxfer_core.client.proxy", False, "public face"),
        ("from ..errors import PyroError", "pyroxfer_core.wire.v48", False, None),
        ("from ..errors import PyroError", "pyroxfer_core.wire", True, None),
        ("from .. import errors", "pyroxfer_core.serializers.table", False, None),
        ("from pyroxfer_core.cli import main", "pyroxfer_core.uri", False, "must not look up"),
    ],
)
def test_the_rules_see_what_they_should(source: str, module: str, is_package: bool, expected: str | None) -> None:
    """The reader of imports itself: lazy, relative and package imports are judged rightly."""
    (found,) = imports_of(source, module, is_package)
    why = violation_in_core(found)
    assert why is None if expected is None else expected in str(why)


@pytest.mark.parametrize(
    ("source", "module", "is_package", "absolute"),
    [
        ("from . import errors", "pyroxfer_core.client.proxy", False, "pyroxfer_core.client"),
        ("from . import errors", "pyroxfer_core.client", True, "pyroxfer_core.client"),
        ("from .. import errors", "pyroxfer_core.client.proxy", False, "pyroxfer_core"),
        ("from ..wire.message import Flags", "pyroxfer_core.client.proxy", False, "pyroxfer_core.wire.message"),
        ("from .message import Flags", "pyroxfer_core.wire", True, "pyroxfer_core.wire.message"),
    ],
)
def test_relative_imports_are_resolved(source: str, module: str, is_package: bool, absolute: str) -> None:
    """One dot means the package itself in an ``__init__.py`` and the parent elsewhere."""
    (found,) = imports_of(source, module, is_package)
    assert found.module == absolute


HEAVY = (
    "click",
    "tqdm",
    "sqlite3",
    "blake3",
    "msgspec",
    "httptools",
    "asyncio",
    "http",
    "unittest",
    "xmlrpc",
    "importlib.metadata",
)


@pytest.mark.parametrize(
    "module", ["pyroxfer_core", "pyroxfer_core.blocking", "pyroxfer_core.wire", "pyroxfer_core.errors"]
)
def test_importing_the_core_is_light(module: str) -> None:
    """Programs that only make calls do not pay for the command line, progress bars, storage engines or digests."""
    loaded = loaded_by(f"import {module}")
    base = loaded_by("import trio") if module != "pyroxfer_core.errors" else loaded_by("import ssl")
    assert not [name for name in HEAVY if name in loaded and name not in base]


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["pyroxfer_core", "pyroxfer_core.blocking", "pyroxfer_dispatcher", "pyroxfer"])
def test_importing_reads_no_environment_and_no_files(module: str) -> None:
    """An import has no side effect: no look at the environment, no socket, no thread, no file but Python's own."""
    watch = f"""
import sys, trio, serpent, msgpack, ssl, socket, tempfile, dataclasses, inspect, uuid, zlib, hmac, hashlib, json
try:
    import click, tqdm, msgspec, blake3, sqlite3
except ImportError:
    pass
import os, threading
class Environment(type(os.environ)):
    def __getitem__(self, key):
        caller = sys._getframe(1)
        names = set()
        while caller is not None:
            names.add(caller.f_globals.get("__name__", "").split(".")[0])
            caller = caller.f_back
        if names & {{"pyroxfer", "pyroxfer_core", "pyroxfer_dispatcher"}}:
            print("environment", key)
        return super().__getitem__(key)
os.environ.__class__ = Environment
def audit(event, arguments):
    if event in ("socket.__new__", "socket.bind", "subprocess.Popen", "os.mkdir", "_thread.start_new_thread"):
        print(event, arguments)
    code = (".py", ".pyc", ".so", ".pth")
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith(code):
        print(event, arguments[0])
sys.addaudithook(audit)
import {module}
assert threading.active_count() == 1
"""
    command = [sys.executable, "-B", "-c", watch]  # -B: writing byte code is Python's doing
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
