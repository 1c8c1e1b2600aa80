"""What `./scripts/bench` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least

SUITES = ("rpc", "bulk", "others", "connections", "files", "dispatch", "ns", "gateway", "scale", "workers")
REPETITIONS = 5
SECONDS = 3.0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench", description="Product against peers, by turns; writes docs/measurements.md."
    )
    parser.add_argument("suites", nargs="*", choices=[*SUITES, "all"], default="all", help="(default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a look: once, less of everything; printed, and the page stays as it is"
    )
    parser.add_argument("--repetitions", type=at_least(int, 1), help=f"of everything (default: {REPETITIONS})")
    parser.add_argument(
        "--seconds", type=at_least(float, 0.1), help=f"of load in one repetition (default: {SECONDS:g})"
    )
    return parser


if __name__ == "__main__":
    parser().parse_args()
