"""One suite for every channel and direction, a folder and a bucket: the same promises whatever moves the bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from places import Folder, Place, Prefix

import pyroxfer
from pyroxfer import FileServer, Progress, Receipt, errors
from pyroxfer.channels import annot, raw
from pyroxfer.channels.base import MAX_BLOCK
from pyroxfer.digest import digest_of
from pyroxfer.offer import End
from pyroxfer.source import FileSource
from pyroxfer_core import errors as core_errors

CHANNELS = ["iter", "annot", "raw"]
BORDERS = {"iter": MAX_BLOCK, "annot": annot.BLOCK, "raw": raw.STEP}
MIB = 1024 * 1024
Settled = Callable[[], Awaitable[None]]

WAYS = [(channel, direction) for channel in CHANNELS for direction in ("send", "get")]


def ways(in_bucket: Sequence[object] = (), **in_folder: Sequence[object]) -> pytest.MarkDecorator:
    """Every channel and direction, with a folder and with a bucket at the server; another parameter may have fewer
    values there, of which each costs requests to another process."""
    (name, values), *_ = *in_folder.items(), ("", ())
    chosen = [("folder", *way, value) for way in WAYS for value in values]
    chosen += [("bucket", *way, value) for way in WAYS for value in in_bucket]
    return pytest.mark.parametrize(("keeper", "channel", "direction", name), chosen)


every_way = pytest.mark.parametrize(
    ("keeper", "channel", "direction"), [(keeper, *way) for keeper in ("folder", "bucket") for way in WAYS]
)
source_seen_while_read = pytest.mark.parametrize(
    ("keeper", "channel", "direction"),
    [(keeper, *way) for keeper in ("folder", "bucket") for way in WAYS if (keeper, way[1]) != ("bucket", "get")],
)
"""All but downloads from a bucket: there a server reads one version of an object, whatever becomes of it."""


class Ends:
    """The two ends of one transfer, whichever way it goes."""

    def __init__(self, direction: str, served: Place, here: Folder) -> None:
        self.direction = direction
        self.served, self.here = served, here
        self.sender: Place = here if direction == "send" else served
        self.receiver: Place = served if direction == "send" else here

    def give(self, data: bytes, name: str = "source.bin", **more: int) -> None:
        self.sender.put(name, data, **more)

    def got(self, name: str = "final.bin") -> bytes | None:
        return self.receiver.read(name)

    async def move(self, location: str, channel: str, source: str = "source.bin", **options: Any) -> Receipt:
        if self.direction == "send":
            path = self.here.path / source
            receipt = await pyroxfer.send(path, f"{location}/final.bin", channel=channel, **options)
        else:
            final = self.here.path / "final.bin"
            receipt = await pyroxfer.get(f"{location}/{source}", final, channel=channel, **options)
        assert isinstance(receipt, Receipt)
        return receipt

    def path_of_source(self) -> Path:
        assert isinstance(self.sender, Folder)
        return self.sender.path / "source.bin"

    def leftovers(self) -> list[str]:
        """Partial files at either end."""
        return [name for place in (self.served, self.here) for name in place.names() if ".pyroxfer-" in name]

    def nothing_left(self) -> bool:
        return self.got() is None and not self.leftovers()

    def only_resumable_left(self) -> bool:
        """Nothing under the final name; at the receiver a partial file with its journal, or nothing."""
        left = set(self.leftovers())
        return self.got() is None and len(left) in (0, 2) and left <= self.receiver.names()


@pytest.fixture
def ends(keeper: str, direction: str, root: Path, here: Path, request: pytest.FixtureRequest) -> Ends:
    if keeper == "folder":
        return Ends(direction, Folder(root), Folder(here))
    prefix = Prefix(request.getfixturevalue("seaweed"), request.getfixturevalue("url"))
    return Ends(direction, prefix, Folder(here))


@pytest.fixture
async def server(
    keeper: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[FileServer]:
    served = root if keeper == "folder" else request.getfixturevalue("url")
    async with FileServer(served, state=tmp_path / "state") as running:
        yield running


@ways(size=[0, 1, "border-1", "border", "border+1", 3 * MIB + 7], in_bucket=[0, "border", 3 * MIB + 7])
async def test_every_size_arrives_whole(
    ends: Ends,
    channel: str,
    size: int | str,
    server: FileServer,
    settled: Settled,
    random_bytes: Callable[[int], bytes],
) -> None:
    """The receipt says what stands under the final name: path, count, digest, channel."""
    count = size if isinstance(size, int) else eval(size.replace("border", str(BORDERS[channel])))
    data = random_bytes(count)
    ends.give(data)
    receipt = await ends.move(server.location, channel)
    assert ends.got() == data
    assert (receipt.path, receipt.size, receipt.channel) == ("final.bin", count, channel)
    assert (receipt.digest, receipt.algorithm) == (digest_of(data, "blake3"), "blake3")
    assert (receipt.reason, receipt.durability, receipt.resumed) == ("as asked", "data", 0)
    await settled()
    assert not ends.leftovers()


@every_way
async def test_mode_and_time_come_along(ends: Ends, channel: str, server: FileServer) -> None:
    ends.give(b"#!/bin/sh\n", mode=0o750, mtime_ns=1_234_567_890_123_456_789)
    await ends.move(server.location, channel)
    assert ends.receiver.about("final.bin") == (0o750, 1_234_567_890_123_456_789)


@every_way
@pytest.mark.parametrize("lie", ["digest", "size"])
async def test_a_lie_about_digest_or_size_is_found_out(
    ends: Ends, channel: str, lie: str, server: FileServer, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver believes its own numbers; nothing is put in place when the sender's differ."""
    honest = FileSource.end

    async def lying(source: FileSource) -> End:
        end = await honest(source)
        return replace(end, digest="00" * 32) if lie == "digest" else replace(end, size=end.size + 1)

    monkeypatch.setattr(FileSource, "end", lying)
    ends.give(b"x" * 100_000)
    with pytest.raises(errors.IntegrityError):
        await ends.move(server.location, channel)
    await settled()
    assert ends.nothing_left()


@ways(cut=[0, 1, 600, 5000, "border-1", "border", "border+1", "2*border"], in_bucket=[5000, "2*border"])
async def test_a_cut_connection_leaves_nothing_but_what_can_be_resumed(
    ends: Ends,
    channel: str,
    cut: int | str,
    server: FileServer,
    random_bytes: Callable[[int], bytes],
    cut_line: Callable[..., Any],
    settled: Settled,
) -> None:
    """Wherever the line is cut: an error and nothing under the final name; the next attempt brings the rest."""
    border = min(BORDERS[channel], 2 * MIB)
    limit = cut if isinstance(cut, int) else eval(cut.replace("border", str(border)))
    data = random_bytes(6 * MIB)
    ends.give(data)
    relay = await cut_line(server.location, max(limit, 1), towards_server=ends.direction == "send")
    with pytest.raises((errors.TransferError, core_errors.CommunicationError)) as caught:
        await ends.move(relay.location, channel)
    assert relay.was_cut, caught.value
    await settled()
    assert ends.only_resumable_left(), caught.value
    receipt = await ends.move(server.location, channel)
    assert ends.got() == data
    assert receipt.resumed <= max(limit, 1)
    await settled()
    assert not ends.leftovers()


@source_seen_while_read
async def test_a_source_that_changes_is_not_committed(
    ends: Ends, channel: str, server: FileServer, settled: Settled
) -> None:
    """A file that is written to while it is sent would arrive as a mixture."""
    ends.give(b"a" * MIB)
    source = ends.path_of_source()

    def meddle(event: Progress) -> None:
        if event.event == "accept":
            with source.open("r+b") as file:
                file.seek(MIB - 1)
                file.write(b"changed, and longer")

    with pytest.raises(errors.SourceChangedError):
        await ends.move(server.location, channel, progress=meddle)
    await settled()
    assert ends.only_resumable_left()
    await ends.move(server.location, channel)
    assert ends.got() == ends.sender.read("source.bin")


@source_seen_while_read
async def test_a_source_that_shrinks_is_not_committed(
    ends: Ends, channel: str, server: FileServer, settled: Settled
) -> None:
    ends.give(b"a" * (3 * MIB))
    source = ends.path_of_source()

    def shrink(event: Progress) -> None:
        if event.event == "accept":
            os.truncate(source, MIB + 5)

    with pytest.raises(errors.SourceChangedError):
        await ends.move(server.location, channel, progress=shrink)
    await settled()
    assert ends.only_resumable_left()
    await ends.move(server.location, channel)
    assert ends.got() == ends.sender.read("source.bin")


@every_way
async def test_cancelling_anywhere_leaves_nothing_but_what_can_be_resumed(
    ends: Ends, channel: str, server: FileServer, settled: Settled, random_bytes: Callable[[int], bytes]
) -> None:
    """Cancelled at each of its events in turn, a transfer leaves nothing, and the next one is right."""
    data = random_bytes(4 * MIB + 5)
    ends.give(data)
    for stop_at in range(1, 4):
        seen = 0
        with trio.CancelScope() as scope:

            def count(_: Progress, stop_at: int = stop_at, scope: trio.CancelScope = scope) -> None:
                nonlocal seen
                seen += 1
                if seen == stop_at:
                    scope.cancel()

            await ends.move(server.location, channel, progress=count)
        await settled()
        if scope.cancelled_caught:
            assert ends.only_resumable_left()
        else:
            ends.receiver.remove("final.bin")
    await ends.move(server.location, channel)
    assert ends.got() == data


@pytest.mark.parametrize("direction", ["send"])
@pytest.mark.parametrize("keeper", ["folder", "bucket"])
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("times", [1, 2])
async def test_a_receipt_that_is_lost(
    ends: Ends, server: FileServer, channel: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost once, the client asks again and gets the one receipt; lost for good, it says Unknown, and the next run of
    the same command finds out that the file is committed."""
    from pyroxfer.conversation import Conversation

    ends.give(b"x" * 600_000)
    real = Conversation.ask
    lost: list[str] = []

    async def losing(talk: Conversation, method: str, *args: object) -> Any:
        reply = await real(talk, method, *args)
        if method == "commit" and len(lost) < times:
            lost.append(method)
            raise core_errors.ConnectionClosedError("lost", outcome=core_errors.Outcome.UNKNOWN)
        return reply

    monkeypatch.setattr(Conversation, "ask", losing)
    if times == 1:
        assert (await ends.move(server.location, channel)).channel == channel
    else:
        with pytest.raises(errors.OutcomeUnknownError):
            await ends.move(server.location, channel)
        assert (await ends.move(server.location, channel)).reason == "already"
    assert len(lost) == times
    assert not ends.leftovers()


@every_way
async def test_a_second_run_takes_over_from_one_that_hangs(
    ends: Ends, channel: str, server: FileServer, random_bytes: Callable[[int], bytes], nursery: trio.Nursery
) -> None:
    """The first run stands still in the middle, its connection alive; the second one commits, and whatever the first
    still does afterwards does no harm."""
    data = random_bytes(12 * MIB + 1)
    ends.give(data)
    middle, ended = trio.Event(), trio.Event()

    def watch(event: Progress) -> None:
        if event.event == "progress" and event.done >= MIB:
            middle.set()

    async def slow() -> None:
        with pytest.raises((errors.TransferError, core_errors.CommunicationError)):
            await ends.move(server.location, channel, bwlimit=2 * MIB, progress=watch, durability="none")
        ended.set()

    async with trio.open_nursery() as both:
        scope = both.cancel_scope
        both.start_soon(slow)
        await middle.wait()
        receipt = await ends.move(server.location, channel, durability="none")
        assert ends.got() == data
        assert receipt.size == len(data)
        if ends.direction == "send":
            await ended.wait()
        scope.cancel()
    assert ends.got() == data


@every_way
async def test_equal_bytes_in_place_are_success_without_moving(ends: Ends, channel: str, server: FileServer) -> None:
    """Before ``if_exists`` is looked at: the final name is read and compared, and the answer is ``already``."""
    ends.give(b"same" * 100_000)
    first = await ends.move(server.location, channel)
    version = ends.receiver.version("final.bin")
    for policy in ("fail", "skip", "replace", "rename"):
        again = await ends.move(server.location, channel, if_exists=policy)
        assert (again.reason, again.channel, again.digest) == ("already", "none", first.digest)
    assert ends.receiver.version("final.bin") == version
    assert ends.receiver.names() == {"final.bin"}


@ways(size=[100, 300_000], in_bucket=[300_000])
async def test_other_bytes_in_place_are_treated_as_asked(
    ends: Ends, channel: str, size: int, server: FileServer
) -> None:
    """The table of ``if_exists``, for other bytes of equal and of other size."""
    new = b"new" * 100_000
    ends.give(new)
    ends.receiver.put("final.bin", b"o" * size)
    with pytest.raises(errors.ExistsError):
        await ends.move(server.location, channel, if_exists="fail")
    skipped = await ends.move(server.location, channel, if_exists="skip")
    assert (skipped.reason, skipped.channel, skipped.size) == ("skipped", "none", size)
    assert ends.got() == b"o" * size
    renamed = await ends.move(server.location, channel, if_exists="rename")
    assert renamed.path == "final (1).bin"
    assert ends.got("final (1).bin") == new
    assert ends.got() == b"o" * size
    await ends.move(server.location, channel, if_exists="replace")
    assert ends.got() == new
    assert not ends.leftovers()


@every_way
async def test_of_many_at_once_to_one_name_one_wins(
    ends: Ends, channel: str, server: FileServer, settled: Settled
) -> None:
    """Eight transfers of different bytes race for one name: one is committed whole, the others say it exists."""
    results: list[object] = []

    async def contend(number: int) -> None:
        ends.give(bytes([number]) * 200_000, f"source{number}.bin")
        try:
            await ends.move(server.location, channel, f"source{number}.bin")
            results.append(number)
        except errors.ExistsError as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(contend, number)
    (winner,) = [result for result in results if isinstance(result, int)]
    assert ends.got() == bytes([winner]) * 200_000
    await settled()
    assert not ends.leftovers()


@every_way
async def test_progress_counts_what_the_receiver_has(
    ends: Ends, channel: str, server: FileServer, random_bytes: Callable[[int], bytes]
) -> None:
    """Counts grow, never pass the total, reach it, and the commit comes last."""
    ends.give(random_bytes(5 * MIB))
    seen: list[Progress] = []
    await ends.move(server.location, channel, progress=seen.append)
    assert [event.event for event in seen if event.event != "progress"] == ["offer", "accept", "commit"]
    counts = [event.done for event in seen if event.event == "progress"]
    assert counts == sorted(counts)
    assert counts[-1] == 5 * MIB
    assert all(event.total == 5 * MIB for event in seen if event.event == "progress")
    assert seen[-1].event == "commit"
    assert seen[1].channel == channel


@every_way
async def test_a_full_disk_is_one_clear_error(
    ends: Ends, channel: str, server: FileServer, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills in the middle: NoSpaceError at the client; with room again the next attempt brings the rest."""
    import errno

    real_pwrite, real_splice = os.pwrite, os.splice

    def full_pwrite(fd: int, data: Any, offset: int) -> int:
        if offset >= MIB:
            raise OSError(errno.ENOSPC, "full")
        return real_pwrite(fd, data, offset)

    def full_splice(src: int, dst: int, count: int, **more: Any) -> int:
        if more.get("offset_dst", 0) >= MIB:
            raise OSError(errno.ENOSPC, "full")
        return real_splice(src, dst, count, **more)

    ends.give(b"x" * (4 * MIB))
    monkeypatch.setattr(os, "pwrite", full_pwrite)
    monkeypatch.setattr(os, "splice", full_splice)
    with pytest.raises(errors.NoSpaceError):
        await ends.move(server.location, channel)
    await settled()
    assert ends.only_resumable_left()
    monkeypatch.undo()
    await ends.move(server.location, channel)
    assert ends.got() == ends.sender.read("source.bin")
