"""The demo from end to end, with a small large file: what a stranger runs first must work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(600)  # much work, for a machine that is busy otherwise
def test_the_demo_verifies_everything() -> None:
    """Each row of its table is verified: every channel, both directions, and large blobs through the dispatcher."""
    program = ROOT / "scripts" / "demolib" / "demonstration.py"
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [sys.executable, str(program), "--size", "3MiB"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" yes") == 16
    assert done.stdout.rstrip().endswith("Everything verified, nothing left running.")
