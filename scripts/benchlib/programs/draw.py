"""Draws what was measured. Usage: draw.py MEASUREMENTS_JSON FOLDER

Writes sizes.svg, latency.svg and idle.svg, each when its table has been measured.
"""

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyroxfer", "font.size": 10, "axes.grid": True})
from matplotlib import pyplot  # noqa: E402  # after its backend is chosen

measured, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def rows(suite, table):
    return measured.get(suite, {}).get("tables", {}).get(table, {}).get("rows", {})


def save(name):
    # without a date, so that the same figures give the same file
    pyplot.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close()


def sizes():
    lines = {}
    for name, row in rows("files", "By size and channel").items():
        channel, label = name.split(", ")
        number, unit = label.split()
        lines.setdefault(channel, []).append((int(number) * UNITS[unit], row["median"]))
    if not lines:
        return
    pyplot.figure(figsize=(7, 4))
    for channel, points in lines.items():
        pyplot.plot(
            *zip(*points, strict=True), marker="o", label=channel, linestyle="--" if channel == "auto" else "-"
        )
    pyplot.xscale("log", base=2)
    pyplot.yscale("log")
    pyplot.xticks(
        [1 << 0, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 30], ["1 B", "1 KiB", "64 KiB", "1 MiB", "16 MiB", "1 GiB"]
    )
    pyplot.xlabel("size of the file")
    pyplot.ylabel("MB/s, connecting and committing included")
    pyplot.legend()
    save("sizes")


def latency():
    lines = {}
    for name, row in rows("rpc", "More ways to call, on one core").items():
        if found := re.fullmatch(r"(Pyro\d) clients, (\d+), (.*)", name):
            library, clients, server = found.groups()
            lines.setdefault(f"{library} clients, {server}", []).append((int(clients), row["p50 µs"], row["p99 µs"]))
    if not lines:
        return
    _, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for panel, index, title in ((panels[0], 1, "median"), (panels[1], 2, "99th percentile")):
        for name, points in lines.items():
            ours = "our daemon" in name
            panel.plot(
                [p[0] for p in points],
                [p[index] for p in points],
                marker="o",
                label=name,
                linestyle="-" if ours else ":",
            )
        panel.set(
            xscale="log", yscale="log", title=title, xlabel="clients", xticks=[1, 8, 64], xticklabels=["1", "8", "64"]
        )
    panels[0].set_ylabel("µs a call")
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save("latency")


def idle():
    found = rows("connections", "Memory of an idle connection")
    if not found:
        return
    pyplot.figure(figsize=(6, 2.5))
    bars = pyplot.barh(list(found), [row["median"] for row in found.values()])
    pyplot.bar_label(bars, fmt="%.1f", padding=3)
    pyplot.xlabel("KiB of the server's memory")
    pyplot.gca().invert_yaxis()
    save("idle")


sizes()
latency()
idle()
