"""What one hop through a dispatcher costs a blob call: ours against Pyro5's own, same client and same back end."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Comparison, Contestant, Sample, in_turns
from processes import Server, command, program, run_client, stock

UNIT = "µs a hop"
SIZES = {"1 KB": 1024, "64 KB": 65536}
TITLE = "Dispatcher"
NOTE = """\
A stock Pyro5 client calls a stock Pyro5 back end with a blob (msgpack), directly and through the dispatcher by
turns of 50 calls; a hop is the difference of the medians. A ratio above 1 means that our hop is cheaper."""


def measure(repetitions: int, quick: bool) -> dict[str, Any]:
    """One table."""
    print("dispatcher: one hop", file=sys.stderr)
    samples = in_turns(contestants(500 if quick else 2000), repetitions)
    return {"One blob hop": report.section(UNIT, samples, comparisons())}


CONFIG = """
listen = "127.0.0.1:0"

[[services]]
name = "topic"
[[services.backends]]
name = "only"
uri = "{backend}"
"""


def hop_of_pyro5(size: int, calls: int) -> Sample:
    with ExitStack() as running:
        backend = running.enter_context(Server(program(stock(), "pyro5_blob_backend.py")))
        dispatcher = running.enter_context(Server(program(stock(), "pyro5_blob_dispatcher.py", backend.uri)))
        return hop(backend.uri, dispatcher.uri, size, calls)


def hop_of_ours(size: int, calls: int) -> Sample:
    with Server(program(stock(), "pyro5_blob_backend.py")) as backend, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "dispatcher.toml"
        config.write_text(CONFIG.format(backend=backend.uri))
        with Server(command("pyroxfer-dispatcher", "run", "-c", config)) as dispatcher:
            return hop(backend.uri, dispatcher.uri, size, calls)


def hop(direct: str, through: str, size: int, calls: int) -> Sample:
    """Median of the calls through the dispatcher less that of the direct calls."""
    result = run_client(program(stock(), "pyro5_blob_client.py", direct, through, size, calls))
    return Sample(result["through"] - result["direct"], {"direct": result["direct"], "through": result["through"]})


def contestants(calls: int) -> list[Contestant]:
    ways = {"Pyro5's own way": hop_of_pyro5, "our dispatcher": hop_of_ours}
    return [
        Contestant(f"{name}, {label}", partial(way, size, calls))
        for label, size in SIZES.items()
        for name, way in ways.items()
    ]


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            f"one hop, {label}", f"our dispatcher, {label}", [f"Pyro5's own way, {label}"], lower_is_better=True
        )
        for label in SIZES
    ]
