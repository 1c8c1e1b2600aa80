"""Completion of addresses, typed into a real bash."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyroxfer import blocking

PATIENCE_S = 60.0


class Bash:
    """An interactive one, at the other end of a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def shows(self, text: str) -> None:
        """Read until it shows a text."""
        shown = b""
        while text.encode() not in shown:
            assert select.select([self._terminal], [], [], PATIENCE_S)[0], f"bash shows only {shown!r}"
            shown += os.read(self._terminal, 1000)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    """One that knows the command and how to complete it."""
    command = tmp_path / "bin" / "pyroxfer"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyroxfer "$@"\n')
    command.chmod(0o755)
    pid, terminal = pty.fork()
    if not pid:
        path = f"{command.parent}:{os.environ['PATH']}"
        os.execvpe("bash", ["bash", "--norc", "-i"], {**os.environ, "PATH": path, "TERM": "dumb", "PS1": "> "})
    found = Bash(terminal)
    found.type('eval "$(_PYROXFER_COMPLETE=bash_source pyroxfer)"; echo rea""dy\n')
    found.shows("ready")
    yield found
    os.close(terminal)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_bash_completes_an_address_although_it_has_colons(bash: Bash, root: Path) -> None:
    """A folder without a space behind it, a name with a space in it, and one in quotes."""
    (root / "folder").mkdir()
    (root / "folder" / "annual report").write_bytes(b"x")
    with blocking.serve(root) as server:
        place = server.location
        bash.type(f"pyroxfer get {place}/fo\t")
        bash.shows("lder/")
        bash.type("ann\t")
        bash.shows(r"ual\ report ")
        bash.type(f'\x15pyroxfer rm "PYRO:pyroxfer.files@{place}/folder/a\t')
        bash.shows('nnual report" ')
