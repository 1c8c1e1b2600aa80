"""A short slice of the fault campaign; `./scripts/faults` runs it for as long as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parent.parent.parent / "scripts" / "faultslib" / "campaign.py"


def test_exit_0_means_equal_bytes_whatever_breaks() -> None:
    """Cuts, flipped bits, kill -9 of either side: no violation in a few dozen runs."""
    command = [sys.executable, str(CAMPAIGN), "--count", "40", "--seed", "11"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 violations" in ended.stdout
