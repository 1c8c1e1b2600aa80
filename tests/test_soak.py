"""A short slice of the soak: mixed load and kills, and at the end every promise held against what happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import Usage
from load import Ledger, sha256
from soak import broken_promises, grown, left_open

ROOT = Path(__file__).parent.parent


def test_a_short_soak_finds_nothing_lost_run_twice_or_grown() -> None:
    """Calls, blobs, streams, files, names and rubbish for some seconds, while services and single workers of the file
    servers are killed and come back."""
    command = [sys.executable, str(ROOT / "scripts" / "soaklib" / "soak.py"), "--minutes", "0.15"]
    command += ["--workers", "2", "--seed", "232"]  # which kills a worker soon, and a file server after that
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Executed" in done.stdout


@pytest.mark.parametrize(
    ("outcome", "ran", "kept"),
    [
        ("NotSent", 0, True),
        ("NotSent", 1, False),
        ("Executed", 1, True),
        ("Executed", 0, False),
        ("Executed", 2, False),
        ("Unknown", 0, True),
        ("Unknown", 1, True),
        ("Unknown", 2, False),
    ],
)
def test_the_soak_sees_a_call_that_ran_otherwise_than_told(outcome: str, ran: int, kept: bool) -> None:
    found = broken_promises(Ledger(outcomes={7: outcome}), {7: ran})
    assert bool(found) is not kept


def test_the_soak_sees_a_file_that_is_not_what_was_committed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"as sent")
    ledger = Ledger(committed={file: sha256(file)})
    assert not broken_promises(ledger, {})
    file.write_bytes(b"otherwise")
    assert broken_promises(ledger, {})
    file.unlink()
    assert broken_promises(ledger, {})


def test_the_soak_sees_what_grows() -> None:
    flat, leak = [Usage(40_000, 12, 3)] * 100, [Usage(40_000 + 500 * n, 12 + n, 3 + n) for n in range(100)]
    assert not grown({"flat": flat})
    assert len(grown({"leak": leak})) == 3


def test_the_soak_sees_a_descriptor_that_leaks_now_and_then() -> None:
    """Ten in an hour are less than what comes and goes under load."""
    before, after = {"service": Usage(40_000, 12, 3)}, {"service": Usage(40_000, 22, 3)}
    assert not grown({"service": [Usage(40_000, 12 + n // 6, 3) for n in range(60)]})
    assert left_open(before, after) == ["service: descriptors at rest grew from 12 to 22"]
    assert left_open(before, {"service": Usage(40_000, 12, 9)}) == ["service: threads at rest grew from 3 to 9"]
    assert not left_open(before, {"service": Usage(90_000, 15, 5)})
