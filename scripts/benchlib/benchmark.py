"""The benchmark's command: chooses what to measure, measures it by turns, writes the page."""

from __future__ import annotations

import argparse
import sys

import bulk
import dispatch
import files
import gateway
import ns
import others
import report
import rpc

SUITES = {
    "rpc": rpc,
    "bulk": bulk,
    "others": others,
    "files": files,
    "dispatch": dispatch,
    "ns": ns,
    "gateway": gateway,
}
QUICK = 3
FULL = 5
"""Repetitions."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description="Product against stock Pyro5, by turns.")
    parser.add_argument("suites", nargs="*", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} short repetitions instead of {FULL}")
    chosen = parser.parse_args()
    facts = report.facts(["./scripts/bench", *sys.argv[1:]])
    for name in SUITES if "all" in chosen.suites else dict.fromkeys(chosen.suites):
        suite = SUITES[name]
        tables = suite.measure(QUICK if chosen.quick else FULL, chosen.quick)
        report.write({name: {"title": suite.TITLE, "note": suite.NOTE, "facts": facts, "tables": tables}})
    print(report.PAGE.read_text())


main()
