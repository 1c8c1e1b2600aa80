"""What docs/scale.md says is what the simulation says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_holds_what_the_simulation_says() -> None:
    """The same seed gives the same answer, and the page quotes it whole."""
    command = [sys.executable, str(ROOT / "scripts" / "scalelib" / "simulate.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = (ROOT / "docs" / "scale.md").read_text()
    quoted = re.sub(r"\s+", " ", page)
    for line in done.stdout.splitlines():
        assert line.strip() in quoted, line
