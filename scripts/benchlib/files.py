"""One GiB from one process to another, written to a file: our channels, digests on, against Pyro5's own four ways."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import Comparison, Contestant, Sample, in_turns
from processes import OURS, ROOT, Server, command, program, run_client, stock

UNIT = "MB/s"
MIB = 1024 * 1024
WHOLE = 1024 * MIB
PART = 64 * MIB
"""What the slow ways of Pyro5 move; MB/s all the same."""
WAYS = {"regular": PART, "iterator": PART, "annotation": WHOLE, "raw": WHOLE}
FOLDER = ROOT / ".bench"
TITLE = "Files"
NOTE = """\
1 GiB (Pyro5's regular and iterator ways: 64 MiB) from the page cache to a new file, nothing synced on either
side. Pyro5 uses marshal, its fastest serializer for bytes: 10 MiB a call, items of 105 kB, annotations of 500
kB, and its raw way is sendfile to recv(60000). Ours has digests on at both ends and ends with a receipt.
`server MiB` is the server's largest resident size."""


def measure(repetitions: int, quick: bool) -> dict[str, Any]:
    """One table: everything to a file."""
    print("files: 1 GiB", file=sys.stderr)
    with source_folder() as source:
        samples = in_turns(contestants(source), repetitions)
    return {"To a file": report.section(UNIT, samples, comparisons())}


@contextmanager
def source_folder() -> Iterator[Path]:
    """A folder with the file to move, its pages warm; removed afterwards."""
    needed = 3 * WHOLE
    FOLDER.mkdir(exist_ok=True)
    free = shutil.disk_usage(FOLDER).free
    if free < needed:
        raise SystemExit(
            f"the file rows need {needed / 1e9:.1f} GB free beside the repository, there are {free / 1e9:.1f}"
        )
    source = FOLDER / "source"
    (FOLDER / "target").mkdir(exist_ok=True)
    source.mkdir(exist_ok=True)
    try:
        with open(source / "big", "wb") as file:
            for _ in range(WHOLE // MIB):
                file.write(os.urandom(MIB))
        yield source
    finally:
        shutil.rmtree(FOLDER)


def download_from_pyro5(source: Path, way: str) -> Sample:
    with fresh_target() as target, Server(program(stock(), "pyro5_files_server.py", source)) as server:
        client = program(stock(), "pyro5_files_client.py", server.uri, way, "big", WAYS[way], target / "big")
        return sample(server, client)


def move_with_ours(source: Path, direction: str, channel: str) -> Sample:
    """Upload: the server writes; download: the client does."""
    with fresh_target() as target:
        served, client_side = (target, source) if direction == "upload" else (source, target)
        with Server(command("pyroxfer", "serve", served)) as server:
            client = program(OURS, "files_client.py", f"{server.uri}/big", direction, channel, client_side / "big")
            return sample(server, client)


@contextmanager
def fresh_target() -> Iterator[Path]:
    """Nothing is overwritten, so everyone pays for new pages; nothing of an earlier run waits for the disk."""
    target = FOLDER / "target"
    os.sync()
    try:
        yield target
    finally:
        for path in target.iterdir():
            path.unlink()


def sample(server: Server, client: list[str]) -> Sample:
    before = server.cpu_s()
    result = run_client(client)
    used = result["cpu_s"] + server.cpu_s() - before
    per_gib = used / result["bytes"] * WHOLE
    return Sample(
        result["bytes"] / result["seconds"] / 1e6, {"CPU s/GiB": per_gib, "server MiB": server.peak_rss_mib()}
    )


PAIRS = {"raw": "raw", "annot": "annotation", "iter": "iterator"}
"""Our channel to Pyro5's way that moves bytes alike."""


def contestants(source: Path) -> list[Contestant]:
    """Those that are compared stand next to each other."""
    found = [Contestant("Pyro5 regular", partial(download_from_pyro5, source, "regular"))]
    for channel, way in PAIRS.items():
        found.append(Contestant(f"Pyro5 {way}", partial(download_from_pyro5, source, way)))
        for direction in ("download", "upload"):
            found.append(Contestant(f"{channel}, {direction}", partial(move_with_ours, source, direction, channel)))
    return found


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            f"{channel}, {direction}", f"{channel}, {direction}", [f"Pyro5 {way}"], 1.0 if channel == "raw" else None
        )
        for channel, way in PAIRS.items()
        for direction in ("download", "upload")
    ]
