"""The page of the matrix shows every cell that there are tests for, and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matrix
from peers import ROOT, has_ipv6

PAGE = ROOT / "docs" / "interoperability.md"


def collected() -> set[matrix.Cell]:
    """The cells of all tests in this folder."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/interop",
        "--collect-only",
        "--cells",
        "-qq",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("cells: "))
    return {matrix.Cell(*texts) for texts in json.loads(line.removeprefix("cells: "))}


def test_no_cell_can_vanish() -> None:
    """A cell that is added or removed needs a new page: ./scripts/interop."""
    shown = {place for place in matrix.read(PAGE) if has_ipv6() or "ipv6" not in place.column}
    assert collected() == shown


def test_nothing_failed() -> None:
    """The page is made of a run in which every cell passed or failed as it must."""
    assert f" {matrix.FAILED} " not in PAGE.read_text()
    assert ", 0 failed.**" in PAGE.read_text()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Passed, failed and impossible cells keep their place, and the text around them stays."""
    one, two, three = (
        matrix.Cell("a to b", "row", "x"),
        matrix.Cell("a to b", "row", "y", "nobody can"),
        matrix.Cell("c", "other", "y"),
    )
    path = tmp_path / "page.md"
    path.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n")
    cells = {one: matrix.PASSED, two: matrix.CANNOT, three: matrix.FAILED}
    matrix.write(path, cells)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "3 cells: 1 passed, 1 not applicable (the reason stands below its table), 1 failed" in text
    assert "(1) nobody can" in text
    assert matrix.read(path) == cells
