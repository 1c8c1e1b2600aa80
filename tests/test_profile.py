"""The profile says where processor time goes, and its parts are the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import profile_work
import pytest

SCRIPT = Path(profile_work.__file__)


@pytest.mark.parametrize(
    ("file", "function", "expected"),
    [
        ("/x/core/pyroxfer_core/wire/v502.py", "encode", "pyroxfer_core/wire"),
        ("/x/dispatcher/pyroxfer_dispatcher/hub.py", "route", "pyroxfer_dispatcher"),
        ("/x/pyroxfer/pyroxfer/channels/raw.py", "pull", "pyroxfer"),
        ("/x/pyroxfer/core/pyroxfer_core/wire/v502.py", "encode", "pyroxfer_core/wire"),
        ("/x/pyroxfer/.venv/lib/python3.11/site-packages/trio/_core/_run.py", "unrolled_run", "trio"),
        ("/x/lib/python3.11/site-packages/trio/_core/_run.py", "unrolled_run", "trio"),
        ("/x/lib/python3.11/threading.py", "wait", "standard library"),
        ("~", "<method 'recv_into' of '_socket.socket' objects>", "system call recv_into"),
        ("~", "<built-in method posix.sendfile>", "system call sendfile"),
        ("~", "<built-in method builtins.len>", "built into Python"),
    ],
)
def test_each_function_has_its_room(file: str, function: str, expected: str) -> None:
    assert profile_work.room(file, function) == expected


def test_a_call_is_taken_apart_and_compared(tmp_path: Path) -> None:
    """Both sides, rooms that add up to what a call costs, and what they cost before."""
    saved = tmp_path / "before.json"

    def run(*more: str) -> str:
        command = [sys.executable, str(SCRIPT), "call", "64", "--seconds", "0.2", *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    text = run("--save", str(saved))
    before = json.loads(saved.read_text())
    assert set(before) == {"daemon", "proxy"}
    assert "pyroxfer_core/server" in before["daemon"]
    assert "pyroxfer_core/client" in before["proxy"]
    assert f"daemon: {sum(before['daemon'].values()):.1f} µs" in text
    assert f"was {sum(before['proxy'].values()):.1f}" in run("--against", str(saved))
