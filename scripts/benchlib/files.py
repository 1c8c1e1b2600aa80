"""One GiB from one process to another, written to a file: our channels, digests on, against Pyro5's own four ways."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
import sizes
import tools
import trustme
from measure import Comparison, Contestant, Effort, Sample, in_turns
from processes import OURS, ROOT, Server, command, program, run_client, stock

UNIT = "MB/s"
MIB = 1024 * 1024
WHOLE = 1024 * MIB
WAYS = {"regular": 1 / 16, "iterator": 1 / 16, "annotation": 1.0, "raw": 1.0}
"""How much of the file each way of Pyro5 moves, the slow ones a part; MB/s all the same."""
FOLDER = ROOT / ".bench"
AUTHORITY, CERTIFICATE = "ca.pem", "server.pem"
TLS = "raw over TLS"
TITLE = "Files"
NOTE = """\
1 GiB (Pyro5's regular and iterator ways: 64 MiB) from the page cache to a new file, nothing synced on either
side. Pyro5 uses marshal, its fastest serializer for bytes: 10 MiB a call, items of 105 kB, annotations of 500
kB, and its raw way is sendfile to recv(60000). Ours has digests on at both ends and ends with a receipt; over TLS it
is held against scp, which encrypts, too. The limit in C is sendfile to splice, without a digest; rsync, nginx with
curl, and scp run as whole processes. `server MiB` is the server's largest resident size. The small files go into an
empty folder; each of ours has a receipt of its own, durability none, and the time includes the start of the command,
its modules compiled. By size: downloads in one process, the channels by turns, connecting and committing included."""
SMALL = "Small files"
SMALL_COUNT = 2000
SMALL_BYTES = 16 * 1024


def measure(effort: Effort) -> dict[str, Any]:
    """A table for one large file, one for many small ones."""
    whole = WHOLE // 8 if effort.quick else WHOLE
    with source_folder(whole) as source:
        print(f"files: {whole // MIB} MiB", file=sys.stderr)
        large = in_turns(contestants(source, whole), effort.repetitions)
        print(f"files: {SMALL_COUNT} of 16 KiB", file=sys.stderr)
        contenders = small_contestants(source)
        contenders[-1].run()  # compiles what the commands need
        contenders[-2].run()
        small = in_turns(contenders, effort.repetitions)
        print("files: every size over every channel", file=sys.stderr)
        by_size = sizes.measure(effort, FOLDER)
    return {
        "To a file": report.section(UNIT, large, comparisons()),
        SMALL: report.section("files/s", small, small_comparisons()),
        "By size and channel": by_size,
    }


@contextmanager
def source_folder(whole: int) -> Iterator[Path]:
    """A folder with the file to move, its pages warm; removed afterwards."""
    needed = 3 * whole
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
            for _ in range(whole // MIB):
                file.write(os.urandom(MIB))
        make_certificate()
        (source / "small").mkdir()
        for number in range(SMALL_COUNT):
            (source / "small" / f"{number:04}").write_bytes(os.urandom(SMALL_BYTES))
        yield source
    finally:
        shutil.rmtree(FOLDER)


def download_from_pyro5(source: Path, way: str, whole: int) -> Sample:
    size = int(WAYS[way] * whole)
    with fresh_target(size) as target, Server(program(stock(), "pyro5_files_server.py", source)) as server:
        client = program(stock(), "pyro5_files_client.py", server.uri, way, "big", size, target / "big")
        return sample(server, client)


def move_with_ours(source: Path, direction: str, channel: str, *, tls: bool = False) -> Sample:
    """Upload: the server writes; download: the client does."""
    certificate = ["--tls-cert", FOLDER / CERTIFICATE] if tls else []
    authority = [FOLDER / AUTHORITY] if tls else []
    with fresh_target((source / "big").stat().st_size) as target:
        served, client_side = (target, source) if direction == "upload" else (source, target)
        with Server(command("pyroxfer", "serve", served, *certificate)) as server:
            words = [f"{server.uri}/big", direction, channel, client_side / "big", *authority]
            return sample(server, program(OURS, "files_client.py", *words))


def make_certificate() -> None:
    """For a server of this run, and the authority that signed it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(FOLDER / AUTHORITY)
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(FOLDER / CERTIFICATE)


@contextmanager
def fresh_target(size: int) -> Iterator[Path]:
    """Nothing is overwritten, so everyone pays for new pages, which the machine has; nothing of an earlier run waits
    for the disk.

    Files are emptied afterwards and not removed: ext4 steps over every inode that was freed in the last minutes, and
    whoever comes after others would pay for theirs.
    """
    target = Path(tempfile.mkdtemp(dir=FOLDER / "target"))
    os.sync()
    claim_memory(target / "claimed", size)
    try:
        yield target
    finally:
        for path in target.rglob("*"):
            if path.is_file():
                os.truncate(path, 0)


def claim_memory(file: Path, size: int) -> None:
    """Fill a file for a moment. What a virtual machine has not used for seconds it gives back to its host, and who
    needs it next waits for it page by page: whoever came behind a slow one would pay for its slowness."""
    zeros = bytes(MIB)
    with open(file, "wb") as filled:
        for _ in range(size // MIB + 1):
            filled.write(zeros)
        filled.truncate(0)


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


def contestants(source: Path, whole: int) -> list[Contestant]:
    """Those that are compared stand next to each other."""
    found = [Contestant("Pyro5 regular", partial(download_from_pyro5, source, "regular", whole))]
    found += [
        Contestant(name, partial(way, source / "big", whole)) for name, way in OTHERS.items() if tools.present(name)
    ]
    for channel, way in PAIRS.items():
        found.append(Contestant(f"Pyro5 {way}", partial(download_from_pyro5, source, way, whole)))
        for direction in ("download", "upload"):
            found.append(Contestant(f"{channel}, {direction}", partial(move_with_ours, source, direction, channel)))
    for direction in ("download", "upload"):
        found.append(Contestant(f"{TLS}, {direction}", partial(move_with_ours, source, direction, "raw", tls=True)))
    return found


def limit_in_c(path: Path, size: int) -> Sample:
    with fresh_target(size) as target, Server([tools.NEEDED[tools.LIMIT][0], "file-server", str(path)]) as server:
        port = server.uri.rpartition(":")[2]
        return sample(server, [tools.NEEDED[tools.LIMIT][0], "file-client", port, str(target / "big"), str(size)])


def rsync_daemon(path: Path, size: int) -> Sample:
    with fresh_target(size) as target, tools.rsync(path.parent) as daemon:
        source = f"rsync://127.0.0.1:{daemon.port}/all/{path.name}"
        return of_tool(size, *tools.timed(daemon, ["rsync", "-a", source, f"{target}/"]))


def nginx_and_curl(path: Path, size: int) -> Sample:
    with fresh_target(size) as target, tools.nginx(path.parent) as server:
        url = f"http://127.0.0.1:{server.port}/{path.name}"
        return of_tool(size, *tools.timed(server, ["curl", "-sf", "-o", str(target / path.name), url]))


def scp(path: Path, size: int) -> Sample:
    with fresh_target(size) as target, tools.sshd() as (server, options):
        return of_tool(size, *tools.timed(server, ["scp", *options, "-r", f"127.0.0.1:{path}", f"{target}/"]))


def of_tool(size: int, seconds: float, cpu_s: float) -> Sample:
    return Sample(size / seconds / 1e6, {"CPU s/GiB": cpu_s / size * WHOLE})


OTHERS = {"limit in C": limit_in_c, "rsync daemon": rsync_daemon, "nginx and curl": nginx_and_curl, "scp": scp}


def small_contestants(source: Path) -> list[Contestant]:
    size = SMALL_COUNT * SMALL_BYTES
    tools_there = {name: OTHERS[name] for name in ("rsync daemon", "scp") if tools.present(name)}
    found = [Contestant(name, partial(per_file, way, source / "small", size)) for name, way in tools_there.items()]
    for direction in ("upload", "download"):
        found.append(Contestant(f"ours, {direction}", partial(small_with_ours, source / "small", direction)))
    return found


def per_file(way: Callable[[Path, int], Sample], folder: Path, size: int) -> Sample:
    taken = way(folder, size)
    return Sample(
        taken.value * 1e6 / SMALL_BYTES, {"CPU µs a file": taken.extra["CPU s/GiB"] * SMALL_BYTES / WHOLE * 1e6}
    )


def small_with_ours(folder: Path, direction: str) -> Sample:
    with fresh_target(SMALL_COUNT * SMALL_BYTES) as target:
        served = target if direction == "upload" else folder.parent
        with Server(command("pyroxfer", "serve", served)) as server:
            place = server.uri if direction == "upload" else f"{server.uri}/small"
            words = ["send", folder, f"{place}/"] if direction == "upload" else ["get", place, f"{target}/"]
            before = server.cpu_s()
            seconds, used = tools.timed(None, command("pyroxfer", *words, "-q", "--durability", "none"))
            used += server.cpu_s() - before
        assert len(list((target / "small").iterdir())) == SMALL_COUNT
    return Sample(SMALL_COUNT / seconds, {"CPU µs a file": used / SMALL_COUNT * 1e6})


def small_comparisons() -> list[Comparison]:
    return [
        Comparison(f"{direction}, against {peer}", f"ours, {direction}", [peer], wanted)
        for direction in ("upload", "download")
        for peer, wanted in (("rsync daemon", 0.9), ("scp", 3.0))
    ]


WANTED = {
    "raw": {"Pyro5 raw": 1.2, "limit in C": 0.75, "rsync daemon": 2.5, "nginx and curl": 1.2},
    "annot": {"Pyro5 annotation": 2.0},
    "iter": {"Pyro5 iterator": 1.5},
    TLS: {"scp": 2.0},
}
"""For each channel: the peers, and how many times faster the project wants to be."""


def comparisons() -> list[Comparison]:
    return [
        Comparison(f"{channel}, {direction}, against {peer}", f"{channel}, {direction}", [peer], wanted)
        for channel, peers in WANTED.items()
        for direction in ("download", "upload")
        for peer, wanted in peers.items()
    ]
