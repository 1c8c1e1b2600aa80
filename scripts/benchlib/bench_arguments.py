"""What `./scripts/bench` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least

MINUTES = {
    "rpc": 30, "bulk": 5, "others": 3, "connections": 4, "files": 10,
    "dispatch": 8, "ns": 8, "gateway": 3, "scale": 13, "workers": 4,
}  # fmt: skip
"""What each suite takes on two cores, with the defaults."""
SUITES = tuple(MINUTES)
REPETITIONS = 5
SECONDS = 3.0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench",
        description="Product against peers, by turns; writes docs/measurements.md.",
        epilog=f"Minutes on two quiet cores, with the defaults: {', '.join(map(' '.join, minutes()))}. "
        "Each suite is on the page as soon as it is done, beside the others, which keep their command and day: a run "
        "that was ended says what is left to do.",
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


def minutes() -> Iterator[tuple[str, str]]:
    """What each suite takes, and all of them."""
    for name, taken in (*MINUTES.items(), ("all", sum(MINUTES.values()))):
        yield name, str(taken)


def words(chosen: argparse.Namespace, suites: Sequence[str]) -> str:
    """The command that measures these suites as it was chosen."""
    found = ["./scripts/bench", *suites]
    for option in ("repetitions", "seconds"):
        value = getattr(chosen, option)
        if value is not None:
            found += [f"--{option}", f"{value:g}"]
    return " ".join([*found, *(["--quick"] if chosen.quick else [])])


if __name__ == "__main__":
    parser().parse_args()
