"""A first look at an installed wheel: imports, commands, one file there and back. Usage: smoke.py FOLDER"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("pyroxfer_core", "pyroxfer_core.blocking", "pyroxfer_dispatcher", "pyroxfer")


def check_imports() -> None:
    """Everything comes from the environment, not from a checkout, and has its types."""
    for name in PACKAGES:
        module = importlib.import_module(name)
        place = Path(str(module.__file__))
        assert place.is_relative_to(sys.prefix), f"{name} was imported from {place}"
        assert (Path(sys.prefix) / place).parents[name.count(".")].joinpath("py.typed").exists(), (
            f"{name} has no py.typed"
        )


def check_commands() -> None:
    for command in ("pyroxfer", "pyroxfer-dispatcher"):
        subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)


def check_transfer(folder: Path) -> None:
    """One file to a server and back, equal at the end."""
    served, source, back = folder / "served", folder / "source.bin", folder / "back.bin"
    served.mkdir()
    source.write_bytes(bytes(range(256)) * 10_000)
    command = ["pyroxfer", "serve", str(served), "--listen", "localhost:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            match = re.search(r"localhost:\d+", server.stdout.readline())
            assert match is not None, "the server did not say where it listens"
            subprocess.run(["pyroxfer", "send", str(source), f"{match[0]}/copy.bin"], check=True)
            subprocess.run(["pyroxfer", "get", f"{match[0]}/copy.bin", str(back)], check=True)
        finally:
            server.terminate()
    assert (served / "copy.bin").read_bytes() == back.read_bytes() == source.read_bytes()


check_imports()
check_commands()
check_transfer(Path(sys.argv[1]))
print("the wheel works")
