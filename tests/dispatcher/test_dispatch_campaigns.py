"""Short slices of the campaigns that run for long from a script."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from dispatch_kills import broken

SCRIPTS = Path(__file__).parent.parent.parent / "scripts" / "soaklib"


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(SCRIPTS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_nothing_runs_twice_while_backends_and_dispatcher_are_killed() -> None:
    """Every call of every way through is accounted for, by what its back end noted."""
    said = run("dispatch_kills.py", "--count", "1000", "--seed", "3")
    assert "every call is accounted for; none ran twice" in said


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
        ("unexpected: x", 0, False),
    ],
)
def test_the_campaign_sees_a_broken_promise(outcome: str, ran: int, kept: bool) -> None:
    assert (broken({1: outcome}, Counter({1: ran}) if ran else Counter()) == []) is kept


def test_the_campaign_sees_a_call_that_nobody_accounts_for() -> None:
    assert broken({}, Counter({7: 1})) == ["call 7 ran and has no outcome"]


def test_large_messages_of_many_clients_pass_in_bounded_memory() -> None:
    """A slice of 64 clients with 256 MiB each: there and back, in less than 64 MiB, the interpreter included."""
    assert "the dispatcher held" in run("dispatch_memory.py", "--clients", "16", "--mib", "8")
