"""The programs of ``examples/pyro``: the stock library is one changed import away, for client and server each.

What a client prints must be the same in all four pairs.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matrix
import pytest
from peers import ANSWER_WITHIN_S, ROOT, stock_python

EXAMPLES = ROOT / "examples" / "pyro"
OURS = "import pyroxfer_core.blocking as pyro"
STOCK = {"pyro5": "import Pyro5.api as pyro", "pyro4": "import Pyro4 as pyro"}
NAMES = sorted(path.name.removesuffix("_server.py") for path in EXAMPLES.glob("*_server.py"))
LIBRARIES = {name: "pyro4" if name in ("futures", "tracebacks") else "pyro5" for name in NAMES}
"""Which stock library a program was written for."""


def command(program: str, library: str, folder: Path) -> list[str]:
    """Run a program as it is, or with its one import changed."""
    path = EXAMPLES / program
    if library == "ours":
        return [sys.executable, str(path)]
    source = path.read_text()
    assert source.count(OURS) == 1
    changed = folder / program
    changed.write_text(source.replace(OURS, STOCK[library]))
    return [stock_python(), "-W", "ignore", str(changed)]


@contextmanager
def serving(name: str, library: str, folder: Path) -> Iterator[list[str]]:
    """The server of an example; what it printed first: what its client must be told."""
    process = subprocess.Popen(command(f"{name}_server.py", library, folder), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_WITHIN_S)
        line = process.stdout.readline() if ready else ""
        assert line, f"{name} with {library} does not start"
        yield line.split()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def printed_by_client(name: str, library: str, arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [*command(f"{name}_client.py", library, folder), *arguments],
        capture_output=True,
        text=True,
        timeout=ANSWER_WITHIN_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_enough_programs() -> None:
    """Each has a client and a server, and differs from a stock program in its one import only."""
    assert len(NAMES) >= 10
    for name in NAMES:
        for role in ("client", "server"):
            source = (EXAMPLES / f"{name}_{role}.py").read_text()
            assert source.count("pyroxfer") == 1
            assert OURS in source.splitlines()


@matrix.cell("programs of examples/pyro with every pair of libraries", "{name}", "all four pairs")
@pytest.mark.parametrize("name", NAMES)
def test_a_program_is_the_same_with_every_pair_of_libraries(name: str, tmp_path: Path) -> None:
    """Stock with stock says what is right; ours must not differ on either side, nor on both."""
    stock = LIBRARIES[name]
    outputs: dict[tuple[str, str], str] = {}
    for server in (stock, "ours"):
        with serving(name, server, tmp_path) as arguments:
            for client in (stock, "ours"):
                outputs[client, server] = printed_by_client(name, client, arguments, tmp_path)
    right = outputs[stock, stock]
    assert right
    assert outputs == dict.fromkeys(outputs, right)
