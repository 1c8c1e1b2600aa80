"""The demo from end to end, with a small large file: what a stranger runs first must work."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = (sys.executable, str(ROOT / "scripts" / "demolib" / "demonstration.py"), "--size", "3MiB")


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


@pytest.mark.timeout(600)  # much work, for a machine that is busy otherwise
def test_the_demo_verifies_everything() -> None:
    """Each row of its table is verified: every channel, both directions, and large blobs through the dispatcher."""
    done = subprocess.run(DEMO, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" yes") == 16
    assert done.stdout.rstrip().endswith("Everything verified, nothing left running.")


@pytest.fixture
def others() -> Iterator[tuple[Path, Path]]:
    """Folders of a demo that was killed, and of one that runs."""
    folders = ROOT / ".demo" / "run-killed", ROOT / ".demo" / "run-running"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "large.bin").touch()
    fd = os.open(folders[1], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield folders
    os.close(fd)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_demo_ends_without_a_word_when_nobody_reads_on(others: tuple[Path, Path]) -> None:
    """As in ``./scripts/demo | head -1``; what it started is ended first. What a demo that was killed has left is
    gone then, too."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(DEMO, env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert [folder.exists() for folder in others] == [False, True]
