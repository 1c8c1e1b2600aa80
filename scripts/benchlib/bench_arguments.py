"""What `./scripts/bench` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

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


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], Any]:
    """A number for the command line, not below ``least``."""

    def number(text: str) -> float:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return value

    return number


if __name__ == "__main__":
    parser().parse_args()
