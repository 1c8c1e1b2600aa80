"""The benchmark's command: chooses what to measure, measures it by turns, writes the page."""

from __future__ import annotations

import sys
import time
from typing import Any

import bench_arguments  # first: it says where what scripts share lies
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
from children import clean_up_when_told_to_end
from measure import Effort
from processes import kept_bytecode

MODULES: dict[str, Any] = dict(
    zip(
        bench_arguments.SUITES,
        (rpc, bulk, others, connections, files, dispatch, ns, gateway, scale, workers),
        strict=True,
    )
)
FULL = Effort(bench_arguments.REPETITIONS, bench_arguments.SECONDS)
QUICK = Effort(repetitions=1, seconds=0.3, quick=True)


def main() -> None:
    chosen = bench_arguments.parser().parse_args()
    clean_up_when_told_to_end()
    usual = QUICK if chosen.quick else FULL
    effort = Effort(chosen.repetitions or usual.repetitions, chosen.seconds or usual.seconds, chosen.quick)
    facts = report.facts(["./scripts/bench", *sys.argv[1:]])
    for peer in facts["absent"]:
        print(f"{peer} is not installed here: its rows are left out", file=sys.stderr)
    begin = time.monotonic()
    measured: dict[str, Any] = {}
    left = list(bench_arguments.SUITES if "all" in chosen.suites else dict.fromkeys(chosen.suites))
    try:
        with kept_bytecode():
            while left:
                measured[left[0]] = measure(left[0], effort, facts)
                if not effort.quick:
                    report.write({left[0]: measured[left[0]]})
                del left[0]
    except BaseException as error:
        print(f"ended in {left[0]}; what is left to do: {bench_arguments.words(chosen, left)}", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise
    print("\n".join(report.page(measured)))
    print(f"together: {time.monotonic() - begin:.0f} s", file=sys.stderr)


def measure(name: str, effort: Effort, facts: dict[str, Any]) -> dict[str, Any]:
    """One suite, with what its part of the page says of it."""
    suite, begun = MODULES[name], time.monotonic()
    tables = suite.measure(effort)
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return {"title": suite.TITLE, "note": suite.NOTE, "facts": facts, "tables": tables}


main()
