"""Power failure: whatever part of the recorded writes and flushes reached the disk, resuming commits the source."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pyroxfer
from pyroxfer import FileServer, Receipt
from pyroxfer.digest import PrefixDigest
from pyroxfer.journal import read_journal
from pyroxfer.runs import Run
from pyroxfer.store.local import LocalStore

ORIGIN = "ab" * 16
STEP = 4096
SIZE = 6 * STEP + 100


@dataclass
class Disk:
    """What was asked of the disk, by file: writes in order, and how many of them each flush made sure of."""

    names: dict[int, str] = field(default_factory=dict)
    log: list[tuple[str, str, int, bytes]] = field(default_factory=list)

    def record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watch writes, flushes, cuts and renames of the store's files."""
        pwrite, fdatasync, ftruncate, rename = os.pwrite, os.fdatasync, os.ftruncate, os.rename

        def watch_write(fd: int, data: Any, offset: int) -> int:
            count = pwrite(fd, data, offset)
            self.log.append(("write", self._name(fd), offset, bytes(data[:count])))
            return count

        def watch_flush(fd: int) -> None:
            fdatasync(fd)
            self.log.append(("flush", self._name(fd), 0, b""))

        def watch_cut(fd: int, size: int) -> None:
            ftruncate(fd, size)
            self.log.append(("cut", self._name(fd), size, b""))

        def watch_rename(source: str, target: str, **more: Any) -> None:
            rename(source, target, **more)
            self.log.append(("rename", source, 0, target.encode()))

        for name, watcher in (
            ("pwrite", watch_write),
            ("fdatasync", watch_flush),
            ("ftruncate", watch_cut),
            ("rename", watch_rename),
        ):
            monkeypatch.setattr(os, name, watcher)

    @staticmethod
    def _name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name


def after_crash(log: list[tuple[str, str, int, bytes]], rng: random.Random) -> dict[str, bytes]:
    """The files as one power failure may leave them: of what was not flushed, each write whole, in part, or not at
    all, in any order; the length may have grown without the bytes."""
    flushed = {name: place for place, (kind, name, _, _) in enumerate(log) if kind == "flush"}
    files: dict[str, bytearray] = {}
    for place, (kind, name, offset, data) in enumerate(log):
        content = files.setdefault(name, bytearray())
        certain = place <= flushed.get(name, -1)
        if kind == "rename":
            files[data.decode()] = files.pop(name)
            flushed[data.decode()] = flushed.get(data.decode(), -1)
        elif kind == "cut":
            del content[offset:]
        elif kind == "write":
            part = data if certain else data[: rng.choice((0, len(data) // 2, len(data)))]
            end = offset + (len(part) if certain or rng.random() < 0.5 else len(data))
            content.extend(bytes(max(end - len(content), 0)))
            content[offset : offset + len(part)] = part
    return {name: bytes(content) for name, content in files.items()}


def writing(store: LocalStore, source: bytes) -> Iterator[None]:
    """A receiver at work: a block, then the note of it, flushed; between two steps it may lose power."""
    staged = store.stage("f", SIZE, 0o644, ORIGIN)
    digest = PrefixDigest("blake3", None)
    for offset in range(0, SIZE, STEP):
        block = memoryview(source)[offset : offset + STEP]
        staged.write(offset, block)
        digest.offer(offset, block)
        yield
        end = digest.end()
        staged.note([Run(0, end.size, end.digest)], flush=True)
        yield
    staged.suspend()


@pytest.mark.parametrize("seed", range(6))
async def test_after_any_power_failure_resuming_commits_the_source(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prefix of the record, with a legal choice of what was not flushed, then a real transfer on top of it. And
    what the journal says was flushed before it is there."""
    rng = random.Random(seed)
    source = rng.randbytes(SIZE)
    recorded, sent = tmp_path / "recorded", tmp_path / "f"
    recorded.mkdir()
    sent.write_bytes(source)
    disk = Disk()
    with monkeypatch.context() as patch:
        disk.record(patch)
        for _ in writing(LocalStore(recorded), source):
            pass
    monkeypatch.setattr("pyroxfer.sending.origin_of_path", lambda path: ORIGIN)
    monkeypatch.setattr("pyroxfer.client.origin_of_path", lambda path: ORIGIN)
    kept = 0
    for length in range(2, len(disk.log) + 1, 2):
        root = tmp_path / f"root{length}"
        root.mkdir()
        for name, content in after_crash(disk.log[:length], rng).items():
            (root / name).write_bytes(content)
            _check_order(root, source)
        async with FileServer(root) as server:
            receipt = await pyroxfer.send(sent, f"{server.location}/f", channel="annot", durability="none")
        assert isinstance(receipt, Receipt)
        assert (root / "f").read_bytes() == source
        kept += receipt.resumed
    assert kept > 0


def _check_order(root: Path, source: bytes) -> None:
    """Flushed after the data: a run of a whole journal record speaks of bytes that are there."""
    for path in root.glob("*.journal"):
        journal = read_journal(path.read_bytes())
        if journal is None:
            continue
        partial = root / journal.heading.data
        for run in journal.runs if partial.exists() else ():
            assert partial.read_bytes()[: run.length] == source[: run.length]


def test_the_record_holds_what_the_test_speaks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each note is preceded by a flush of the data, and followed by one of the journal."""
    disk = Disk()
    with monkeypatch.context() as patch:
        disk.record(patch)
        for _ in writing(LocalStore(tmp_path), random.Random(0).randbytes(SIZE)):
            pass
    kinds = [(kind, "journal" if "journal" in name else "data") for kind, name, _, _ in disk.log]
    assert [next(iter(group)) for _, group in itertools.groupby(kinds)][-4:] == [
        ("write", "data"),
        ("flush", "data"),
        ("write", "journal"),
        ("flush", "journal"),
    ]
