"""A short slice of the campaign that restarts back ends and dispatcher one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from peers import ROOT, stock_python
from rolling import broken


def test_nobody_notices_that_everything_is_started_again() -> None:
    """Clients of ours lose no call, stock clients are cut between two calls at most, and nothing runs twice."""
    command = [sys.executable, str(ROOT / "scripts" / "soaklib" / "rolling.py"), "--count", "6", "--callers", "1"]
    environment = {**os.environ, "PYROXFER_PEERS": stock_python()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "nobody noticed" in done.stdout


@pytest.mark.parametrize(
    ("kind", "told", "ran", "kept"),
    [
        ("trio", "Executed", 1, True),
        ("trio", "Executed", 0, False),
        ("trio", "Executed", 2, False),
        ("blocking", "cut", 0, False),
        ("blocking", "NotSent: x", 0, False),
        ("stock", "cut", 0, True),
        ("stock", "cut", 1, False),
        ("stock", "NotSent", 0, False),
        ("stock", "Unknown", 0, False),
    ],
)
def test_the_campaign_sees_who_noticed(kind: str, told: str, ran: int, kept: bool) -> None:
    assert (broken({1: (kind, told)}, Counter({1: ran}) if ran else Counter()) == []) is kept


def test_the_campaign_sees_a_call_that_nobody_accounts_for() -> None:
    assert broken({}, Counter({7: 1})) == ["call 7 ran, and its client was told nothing"]
