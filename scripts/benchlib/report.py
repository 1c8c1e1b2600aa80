"""docs/measurements.json holds what was measured, docs/measurements.md says it in tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import quotes
import tools
from bench_arguments import SUITES
from measure import Comparison, Growth, Samples, exponent, median, median_extra, ratio, ratios_to_others
from processes import PROGRAMS, ROOT, others, stock

DATA = ROOT / "docs" / "measurements.json"
PLOTS = ROOT / "docs" / "measurements"
PAGE = ROOT / "docs" / "measurements.md"
DOCUMENTS = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != PAGE)]
OUR_PACKAGES = ("trio", "serpent", "msgpack", "blake3", "httptools")
THEIR_PACKAGES = ("Pyro5", "Pyro4", "serpent", "msgpack")
OTHER_PACKAGES = ("rpyc", "grpcio", "zerorpc")

FIGURES = {
    "sizes": ("Throughput by size and channel", "Files", "By size and channel"),
    "latency": ("Latency of a small call, by clients", "Small calls", "More ways to call, on one core"),
    "idle": ("Memory of an idle connection", "Connections", "Memory of an idle connection"),
}
"""Pictures, by file name: what they show, and below which table of which suite they stand."""

INTRODUCTION = """# Measurements

Made by `./scripts/bench`; it writes this page and `measurements.json`, nobody edits them. Product and peer run
by turns in the same run, a fresh server and client process each time, on loopback. A ratio is the median of the
ratios turn by turn, so a slow phase of the machine meets both sides. Do not compare numbers of two tables or of
two runs.
"""


def facts(command: Sequence[str]) -> dict[str, Any]:
    """What someone needs to judge or repeat the run: no names of hosts or folders."""
    return {
        "command": " ".join(command),
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short", "HEAD")
        + ("" if not git("status", "--porcelain", "-uno") else " with changes"),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": processor(),
            "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "kernel": platform.release(),
            "file system": file_system(ROOT),
            "load before": round(os.getloadavg()[0], 1),
        },
        "versions": {
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in OUR_PACKAGES},
        },
        "peer versions": {
            **packages(stock(), THEIR_PACKAGES),
            **packages(others(), OTHER_PACKAGES),
            **tools.versions(),
        },
        "absent": tools.absent(),
    }


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(path: Path) -> str:
    """Type of the file system the files were written to."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if path.is_relative_to(place) and len(place) > len(best[0]):
            best = (place, kind)
    return best[1]


def packages(python: str, names: Sequence[str]) -> dict[str, str]:
    """Versions of packages in the environment of another interpreter."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def section(
    unit: str, samples: Samples, comparisons: Sequence[Comparison], growths: Sequence[Growth] = ()
) -> dict[str, Any]:
    """The JSON form of one table."""
    return {
        "unit": unit,
        "calibration": samples.calibration,
        "rows": {
            name: {
                "median": median(taken),
                "values": [sample.value for sample in taken],
                **{key: median_extra(taken, key) for key in taken[0].extra},
            }
            for name, taken in samples.rows.items()
        },
        "ratios": [
            {
                "text": comparison.text,
                "ratio": found[0],
                "against": found[1],
                "wanted": comparison.wanted,
                "others": ratios_to_others(comparison, samples, found[1]),
            }
            for comparison in comparisons
            if (found := ratio(comparison, samples)) is not None
        ],
        "growth": [
            {
                "text": growth.text,
                "exponent": slope,
                "last step": exponent(growth, samples, last=2),
                "amounts": [amount for amount, name in growth.rows.items() if name in samples.rows],
            }
            for growth in growths
            if (slope := exponent(growth, samples)) is not None
        ],
    }


def write(suites: dict[str, dict[str, Any]]) -> None:
    """Put new suites in place of their older measurements; the others stay, with their own date and facts."""
    known = load() | suites
    known = dict(sorted(known.items(), key=lambda item: SUITES.index(item[0])))
    DATA.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text("\n".join(page(known)) + "\n")
    draw()
    for document in DOCUMENTS:
        try:
            quotes.refresh(document, known, simulated)
        except LookupError as error:
            print(f"{document.name} stays as it is: {error}", file=sys.stderr)


def simulated() -> str:
    """What the simulation of large installations says, with the new figures."""
    command = [sys.executable, str(ROOT / "scripts" / "scalelib" / "simulate.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LookupError(done.stderr.strip().rpartition("\n")[2])
    return done.stdout.rstrip("\n") + "\n\n"


def draw() -> None:
    """The pictures, by matplotlib in the environment of the peers: nothing of ours needs it."""
    PLOTS.mkdir(exist_ok=True)
    subprocess.run([others(), PROGRAMS / "draw.py", DATA, PLOTS], check=True)


def load() -> dict[str, Any]:
    """Everything measured so far, by suite."""
    known: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    return known


def page(known: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield INTRODUCTION
    for suite in known.values():
        yield f"## {suite['title']}\n"
        yield from about(suite["facts"])
        if suite.get("note"):
            yield f"\n{suite['note']}"
        for title, table in suite["tables"].items():
            yield f"\n### {title}\n"
            if table["ratios"]:
                yield from ratios(table["ratios"])
                yield ""
            yield from rows(table)
            yield from growth(table.get("growth", ()))
            yield from plot(suite["title"], title)
            yield from calibration(table.get("calibration", ()))
        yield ""


def about(known: dict[str, Any]) -> Iterator[str]:
    yield f"`{known['command']}` on {known['when']}, commit {known['commit']}.  "
    yield ", ".join(f"{key} {value}" for key, value in known["machine"].items()) + ".  "
    yield "Ours: " + ", ".join(f"{key} {value}" for key, value in known["versions"].items()) + ".  "
    yield "Peer: " + ", ".join(f"{key} {value}" for key, value in known["peer versions"].items()) + "."
    if known.get("absent"):
        yield f"\nNot installed here, and left out: {', '.join(known['absent'])}."


def ratios(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| ours | times the peer | wanted | best peer |"
    yield "|---|---:|---:|---|"
    for row in found:
        wanted = f"{row['wanted']:.3g}" if row["wanted"] is not None else ""
        peers = [row["against"], *(f"{times:.2f} × {name}" for name, times in row.get("others", {}).items())]
        yield f"| {row['text']} | {row['ratio']:.2f} | {wanted} | {'; '.join(peers)} |"


def rows(table: dict[str, Any]) -> Iterator[str]:
    extra = list(dict.fromkeys(key for row in table["rows"].values() for key in row))
    extra = [key for key in extra if key not in ("median", "values")]
    yield "| | " + " | ".join([f"{table['unit']}, median", "lowest", "highest", *extra]) + " |"
    yield "|---|" + "---:|" * (3 + len(extra))
    for name, row in table["rows"].items():
        figures = [row["median"], min(row["values"]), max(row["values"]), *(row.get(key) for key in extra)]
        yield f"| {name} | " + " | ".join(map(figure, figures)) + " |"


def plot(suite: str, table: str) -> Iterator[str]:
    for name, (title, *place) in FIGURES.items():
        if place == [suite, table]:
            yield f"\n![{title}](measurements/{name}.svg)"


def growth(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in found:
        first, *_, before, last = [f"{amount:,}" for amount in (row["amounts"][0], *row["amounts"])]
        step = (
            f", {row['last step']:.2f} from {before} to {last}"
            if len(row["amounts"]) > 2 and "last step" in row
            else ""
        )
        yield f"\n{row['text']}, {first} to {last}: exponent {row['exponent']:.2f}{step} (0 is flat)."


def calibration(found: Sequence[float]) -> Iterator[str]:
    if found:
        yield f"\nOne core meanwhile: {min(found):.1f} to {max(found):.1f} additions a microsecond."


def figure(value: float | None) -> str:
    """Three digits at least, no more than needed; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
