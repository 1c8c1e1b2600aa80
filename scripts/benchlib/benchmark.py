"""The benchmark's command: chooses what to measure, measures it by turns, writes the page."""

from __future__ import annotations

import sys
import time
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
from bench_arguments import REPETITIONS, SECONDS, SUITES, parser
from measure import Effort
from processes import kept_bytecode

MODULES: dict[str, Any] = dict(
    zip(SUITES, (rpc, bulk, others, connections, files, dispatch, ns, gateway, scale, workers), strict=True)
)
FULL = Effort(REPETITIONS, SECONDS)
QUICK = Effort(repetitions=1, seconds=0.3, quick=True)


def main() -> None:
    chosen = parser().parse_args()
    usual = QUICK if chosen.quick else FULL
    effort = Effort(chosen.repetitions or usual.repetitions, chosen.seconds or usual.seconds, chosen.quick)
    facts = report.facts(["./scripts/bench", *sys.argv[1:]])
    for peer in facts["absent"]:
        print(f"{peer} is not installed here: its rows are left out", file=sys.stderr)
    begin = time.monotonic()
    measured = {}
    with kept_bytecode():
        for name in SUITES if "all" in chosen.suites else dict.fromkeys(chosen.suites):
            suite, begun = MODULES[name], time.monotonic()
            tables = suite.measure(effort)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
            measured[name] = {"title": suite.TITLE, "note": suite.NOTE, "facts": facts, "tables": tables}
            if not effort.quick:
                report.write({name: measured[name]})
    print("\n".join(report.page(measured)))
    print(f"together: {time.monotonic() - begin:.0f} s", file=sys.stderr)


main()
