"""Packing blocks with zstd: only where it pays, and nothing but the right bytes comes out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyroxfer
from pyroxfer import FileServer, Receipt, errors
from pyroxfer.channels import annot
from pyroxfer.conversation import open_conversation
from pyroxfer.offer import Offer
from pyroxfer.packing import TRIED, Packing, Trial, find_packing
from pyroxfer_core import Settings

MIB = 1024 * 1024


def packing() -> Packing:
    """What the development environment has."""
    found = find_packing()
    assert found is not None
    return found


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_what_shrinks_goes_in_blocks_and_arrives_whole(
    server: FileServer, root: Path, here: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` takes blocks for what a sample says shrinks, and the side stream for the rest; some blocks go
    packed: there are enough of the largest for a trial of both ways."""
    packed: list[int] = []
    real = annot._packing_here

    def watch() -> object:
        packed.append(1)
        return real()

    monkeypatch.setattr(annot, "_packing_here", watch)
    for name, data in (("text", b"the same line again\n" * 600_000), ("noise", os.urandom(6 * MIB))):
        for folder in (root, here):
            (folder / name).write_bytes(data)
        if direction == "send":
            receipt = await pyroxfer.send(
                here / name, f"{server.location}/new-{name}", compress=True, durability="none"
            )
        else:
            receipt = await pyroxfer.get(
                f"{server.location}/{name}", here / f"new-{name}", compress=True, durability="none"
            )
        assert isinstance(receipt, Receipt)
        assert receipt.channel == ("annot" if name == "text" else "raw")
        assert ((root if direction == "send" else here) / f"new-{name}").read_bytes() == data
    assert len(packed) >= TRIED


def test_a_trial_takes_the_quicker_way() -> None:
    for plain, small, decision in ((1.0, 0.5, True), (0.5, 1.0, False)):
        trial = Trial()
        way = [trial.next() for _ in range(2 * TRIED)]
        assert way == [False] * TRIED + [True] * TRIED
        assert trial.next() is False
        for packed in way:
            trial.learned(packed, 1000, small if packed else plain)
        assert trial.decided is decision
        assert trial.next() is decision


def test_only_so_many_bytes_are_unpacked() -> None:
    """A bomb, rubbish, a cut frame and another length than announced are one clear error."""
    here = packing()
    bomb = here.pack(bytes(50 * MIB))
    for data, length in ((bomb, MIB), (b"rubbish", 7), (here.pack(b"abc")[:-1], 3), (here.pack(b"abc"), 4)):
        with pytest.raises(errors.PeerError):
            here.unpack(data, length)
    assert here.unpack(memoryview(here.pack(b"abc")), 3) == b"abc"


async def test_packed_rubbish_is_refused_by_the_server(server: FileServer, root: Path) -> None:
    async with open_conversation(server.uri, Settings()) as talk:
        await talk.ask("open_upload", Offer("f", 5, transfer_id="ab" * 16).to_dict())
        for length in (5, 2**40, -1, "5", True):
            with pytest.raises(errors.PeerError):
                await talk.ask_with("put_annotated", "ab" * 16, 0, length, annotations={"XFER": b"rubbish"})


async def test_without_the_library_nothing_is_packed(
    server: FileServer, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyroxfer.packing.importlib.import_module", _missing)
    (here / "f").write_bytes(bytes(4 * MIB))
    receipt = await pyroxfer.send(here / "f", f"{server.location}/", compress=True, durability="none")
    assert isinstance(receipt, Receipt)
    assert receipt.channel == "raw"


def _missing(name: str) -> object:
    raise ImportError(name)
