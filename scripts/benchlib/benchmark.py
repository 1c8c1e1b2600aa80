"""The benchmark's command: chooses what to measure, measures it by turns, writes the page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import bulk
import connections
import dispatch
import files
import gateway
import ns
import others
import report
import rpc
import scale
import workers
from measure import Effort

SUITES: dict[str, Any] = {
    "rpc": rpc,
    "bulk": bulk,
    "others": others,
    "connections": connections,
    "files": files,
    "dispatch": dispatch,
    "ns": ns,
    "gateway": gateway,
    "scale": scale,
    "workers": workers,
}
FULL = Effort(repetitions=5, seconds=3.0)
QUICK = Effort(repetitions=1, seconds=0.3, quick=True)


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], Any]:
    """A number for the command line, not below ``least``."""

    def number(text: str) -> float:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return value

    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description="Product against peers, by turns.")
    parser.add_argument("suites", nargs="*", choices=[*SUITES, "all"], default="all")
    parser.add_argument(
        "--quick", action="store_true", help="a look: once, less of everything; printed, and the page stays as it is"
    )
    parser.add_argument("--repetitions", type=at_least(int, 1), help=f"of everything (default {FULL.repetitions})")
    parser.add_argument(
        "--seconds", type=at_least(float, 0.1), help=f"of load in one repetition (default {FULL.seconds:g})"
    )
    chosen = parser.parse_args()
    usual = QUICK if chosen.quick else FULL
    effort = Effort(chosen.repetitions or usual.repetitions, chosen.seconds or usual.seconds, chosen.quick)
    facts = report.facts(["./scripts/bench", *sys.argv[1:]])
    begin = time.monotonic()
    measured = {}
    for name in SUITES if "all" in chosen.suites else dict.fromkeys(chosen.suites):
        suite = SUITES[name]
        measured[name] = {"title": suite.TITLE, "note": suite.NOTE, "facts": facts, "tables": suite.measure(effort)}
        if not effort.quick:
            report.write({name: measured[name]})
    print("\n".join(report.page(measured)))
    print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)


main()
