"""A server among many clients: nobody waits for somebody else's disk, line or fault, and everybody is told why."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from doubles import until

import pyroxfer
from pyroxfer import FileServer, Receipt, errors
from pyroxfer.channels import iter, raw
from pyroxfer.channels.base import AUTO_STREAMS, Manner
from pyroxfer.channels.choose import choose
from pyroxfer.channels.window import CREDIT, LEAST_BLOCK, MOST_CREDIT, Window, pull_blocks
from pyroxfer.conversation import open_conversation
from pyroxfer.digest import PrefixDigest
from pyroxfer.grants import DOWNLOAD, UPLOAD
from pyroxfer.offer import DEFAULT_CREDIT, Offer, Ticket
from pyroxfer.pace import Pace
from pyroxfer.runs import Range
from pyroxfer.sink import FileSink
from pyroxfer.small import SMALL
from pyroxfer.store import staged as staged_room
from pyroxfer.tasks import open_flat_nursery
from pyroxfer.transfers import LEASE_S, Upload
from pyroxfer_core import Settings, open_side_stream
from pyroxfer_core import errors as core_errors

MIB = 1024 * 1024
ENDLESS = 2**43
Settled = Callable[[], Awaitable[None]]
RandomBytes = Callable[[int], bytes]


@pytest.mark.parametrize("channel", ["annot", "raw"])
async def test_a_slow_disk_holds_up_its_own_transfer_only(
    server: FileServer, root: Path, here: Path, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many transfers as there are threads for everybody hang in the disk; another one comes through meanwhile."""
    go, hanging = threading.Event(), threading.Semaphore(0)
    real_write, real_splice = staged_room.Staged.write, os.splice

    def write(staged: Any, offset: int, view: memoryview) -> None:
        if staged.path.startswith("slow"):
            hanging.release()
            go.wait(60)
        real_write(staged, offset, view)

    def splice(source: int, target: int, count: int, **more: Any) -> int:
        if "offset_dst" in more and os.fstat(target).st_mode & 0o777 == 0o601:
            hanging.release()
            go.wait(60)
        return real_splice(source, target, count, **more)

    monkeypatch.setattr(staged_room.Staged, "write", write)
    monkeypatch.setattr(os, "splice", splice)
    for name in ("slow", "quick"):
        (here / name).write_bytes(b"x" * (2 * MIB))
    (here / "slow").chmod(0o601)

    async def slow(number: int) -> None:
        await pyroxfer.send(here / "slow", f"{server.location}/slow{number}", channel=channel, durability="none")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(slow, number)
        for _ in range(20):
            assert await trio.to_thread.run_sync(hanging.acquire, True, 10)
        receipt = await pyroxfer.send(here / "quick", f"{server.location}/", channel=channel, durability="none")
        assert isinstance(receipt, Receipt)
        assert receipt.channel == channel
        assert not (root / "slow0").exists()
        go.set()
    assert (root / "slow19").read_bytes() == (here / "slow").read_bytes()


@pytest.fixture
def endless(root: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """A file in the served folder that takes an hour to read; released each time that somebody reads on in it."""
    (root / "endless").touch()
    os.truncate(root / "endless", ENDLESS)
    reading, real = threading.Semaphore(0), PrefixDigest.catch_up

    def catch_up(digest: PrefixDigest, end: int) -> None:
        reading.release()
        real(digest, end)

    monkeypatch.setattr(PrefixDigest, "catch_up", catch_up)
    return reading


async def test_a_server_that_reads_a_large_file_stops_when_nobody_waits(
    root: Path, endless: threading.Semaphore, nursery: trio.Nursery
) -> None:
    """Digesting what stands under the name of an upload, and on demand."""
    offer = Offer("endless", ENDLESS, digest="0" * 64)
    for method, arguments in (("open_upload", [offer.to_dict()]), ("digest", ["endless", "blake3"])):
        async with FileServer(root) as server, open_conversation(server.uri, Settings()) as talk:
            async with trio.open_nursery() as asking:
                asking.start_soon(partial(talk.ask, method, *arguments))
                await until(partial(endless.acquire, False))
                asking.cancel_scope.cancel()


async def test_reading_large_files_holds_up_nobody_who_only_looks(
    server: FileServer, endless: threading.Semaphore
) -> None:
    """More of them than there are threads for short work."""
    async with open_conversation(server.uri, Settings()) as talk, trio.open_nursery() as asking:
        for _ in range(20):
            asking.start_soon(talk.ask, "digest", "endless", "blake3")
        await until(partial(endless.acquire, False))
        assert [entry.path for entry in await pyroxfer.ls(f"{server.location}/")] == ["endless"]
        asking.cancel_scope.cancel()


async def test_more_than_have_room_wait_for_their_turn(
    server: FileServer, here: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bounded queue, for a bounded time; then they are told to try later."""
    monkeypatch.setattr("pyroxfer.transfers.MAX_TRANSFERS", 2)
    (here / "f").write_bytes(b"x" * 300_000)
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(_send, here / "f", f"{server.location}/{number}")
    assert len(os.listdir(root)) == 12
    async with open_conversation(server.uri, Settings()) as talk:
        for name in ("a", "b"):
            await talk.ask("open_upload", Offer(name, 5).to_dict())
        monkeypatch.setattr("pyroxfer.transfers.WAIT_S", 0.05)
        with pytest.raises(errors.BusyError, match="no place"):
            await _send(here / "f", f"{server.location}/c")
        monkeypatch.setattr("pyroxfer.transfers.MAX_WAITING", 0)
        with pytest.raises(errors.BusyError, match="wait for their turn"):
            await talk.ask("open_download", "0", "blake3")


async def _send(path: Path, place: str, **options: Any) -> Receipt:
    receipt = await pyroxfer.send(path, place, **{"channel": "annot", "durability": "none", **options})
    assert isinstance(receipt, Receipt)
    return receipt


@pytest.mark.parametrize("channel", ["iter", "annot", "raw"])
async def test_a_server_that_stops_says_how_to_go_on(
    root: Path, here: Path, channel: str, random_bytes: RandomBytes, nursery: trio.Nursery
) -> None:
    """Its clients are told to go on later or elsewhere, and that is what then happens."""
    (here / "f").write_bytes(random_bytes(12 * MIB))
    under_way = trio.Event()
    told: list[Exception] = []

    async def client(location: str) -> None:
        def watch(event: pyroxfer.Progress) -> None:
            if event.event == "progress" and event.done > 2 * MIB:
                under_way.set()

        try:
            await _send(here / "f", f"{location}/f", channel=channel, bwlimit=8 * MIB, progress=watch)
        except (errors.TransferError, core_errors.CommunicationError) as error:
            told.append(error)

    async with FileServer(root) as server:
        nursery.start_soon(client, server.location)
        await under_way.wait()
    with trio.fail_after(30):
        while not told:  # noqa: ASYNC110  # the client is a task without a handle
            await trio.sleep(0.01)
    assert isinstance(told[0], errors.BusyError)
    assert "goes on later" in str(told[0])
    async with FileServer(root) as other:
        receipt = await _send(here / "f", f"{other.location}/f", channel=channel)
    assert receipt.resumed > 2 * MIB - 600_000
    assert os.listdir(root) == ["f"]


@pytest.mark.parametrize("direction", [UPLOAD, DOWNLOAD])
async def test_whoever_moves_a_byte_now_and_then_is_not_idle(
    server: FileServer, root: Path, direction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a stripe, and between the bytes by asking how it stands."""
    now, transfers = [0.0], server._transfers
    monkeypatch.setattr(transfers, "_clock", lambda: now[0])
    (root / "there").write_bytes(bytes(raw.STRIPE))
    async with open_conversation(server.uri, Settings()) as talk:
        method, arguments = (
            ("open_upload", [Offer("f", raw.STRIPE).to_dict()])
            if direction == UPLOAD
            else ("open_download", ["there", "blake3"])
        )
        ticket = Ticket.from_dict((await talk.ask(method, *arguments))["ticket"])
        (transfer,) = transfers._active.values()

        async def is_touched() -> None:
            await until(lambda: transfer.deadline == now[0] + LEASE_S)
            now[0] += LEASE_S - 1

        stream = await open_side_stream(server.uri, bytes.fromhex(ticket.grant))
        await raw._receive_record(stream, raw.READY)
        await raw._send_record(stream, raw.GO, 0)
        await raw._send_range_record(stream, Range(0, raw.STRIPE), True)
        if isinstance(transfer, Upload):
            await until(lambda: transfer.sink.missing() == [])  # all of it is under way
            now[0] += LEASE_S - 1
            await stream.send_all(b"x")
            await is_touched()
        await talk.ask("status", ticket.transfer_id)
        await is_touched()
        stream.abort()


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_a_side_stream_that_freezes_is_noticed(
    server: FileServer, root: Path, here: Path, direction: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something on the way forgets it and closes nothing, while the conversation goes on."""
    monkeypatch.setattr(raw, "ASK_S", 0.05)
    monkeypatch.setattr(raw, "STALL_S", 0.5)

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream, most: int) -> None:
        passed = 0
        async for data in source:
            passed += len(data)
            if passed > most:
                await trio.sleep_forever()
            await sink.send_all(data)

    async def serve(client: trio.SocketStream) -> None:
        first = await client.receive_some(4)
        most = 2**62 if first == b"PYRO" else MIB
        async with await trio.open_tcp_stream("localhost", int(server.location.rsplit(":")[-1])) as there:
            await there.send_all(first)
            with contextlib.suppress(trio.BrokenResourceError):
                async with open_flat_nursery() as pumps:
                    pumps.start_soon(pass_on, there, client, most)
                    await pass_on(client, there, most)
                    pumps.cancel_scope.cancel()

    (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
    place = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    source, target = (here, root) if direction == "send" else (root, here)
    (source / "f").write_bytes(bytes(8 * MIB))
    ends = (here / "f", f"{place}/g") if direction == "send" else (f"{place}/f", here / "g")
    with pytest.raises(errors.StalledError, match="nothing moved"):
        await getattr(pyroxfer, direction)(*ends, channel="raw")
    nursery.cancel_scope.cancel()
    assert not (target / "g").exists()


async def test_a_client_that_stalls_is_ended_with_a_reason(root: Path, here: Path, random_bytes: RandomBytes) -> None:
    """A side stream on which nothing comes any more: the lease ends it, what came is kept."""
    async with FileServer(root, lease_s=1.0) as server, open_conversation(server.uri, Settings()) as talk:
        reply = await talk.ask("open_upload", Offer("f", 9 * MIB, origin="ab" * 16, durability="none").to_dict())
        ticket = Ticket.from_dict(reply["ticket"])
        async with await open_side_stream(server.uri, bytes.fromhex(ticket.grant)) as stream:
            await stream.receive_exactly(raw._RECORD.size)
            await raw._send_record(stream, raw.GO, 0)
            await raw._send_range_record(stream, Range(0, 9 * MIB), striped=False)
            await stream.send_all(random_bytes(5 * MIB))
            with trio.fail_after(30):
                while server.transfers:  # noqa: ASYNC110  # the server tells nobody
                    await trio.sleep(0.02)
        with pytest.raises(errors.StalledError, match="idle"):
            await talk.ask("status", ticket.transfer_id)
    assert len(list(root.glob("*.journal"))) == 1


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_several_streams_move_one_file(
    server: FileServer, root: Path, here: Path, direction: str, random_bytes: RandomBytes
) -> None:
    """Stripes in any order over four streams; the file is whole, and every stripe's digest was compared."""
    data = random_bytes(40 * MIB + 3)
    (root if direction == "get" else here).joinpath("source").write_bytes(data)
    if direction == "send":
        await _send(here / "source", f"{server.location}/f", channel="raw", streams=4)
        assert (root / "f").read_bytes() == data
    else:
        await pyroxfer.get(f"{server.location}/source", here / "f", channel="raw", streams=4, durability="none")
        assert (here / "f").read_bytes() == data


async def test_a_damaged_stripe_is_found_before_it_is_kept(
    server: FileServer, root: Path, here: Path, random_bytes: RandomBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte is changed on the way into the file: the transfer ends there, and the next one goes on."""
    data = random_bytes(40 * MIB)
    (here / "f").write_bytes(data)
    real, complete = os.splice, FileSink.complete
    begun, done = threading.Event(), list[int]()

    def note_the_beginning(sink: FileSink, offset: int, length: int) -> None:
        complete(sink, offset, length)
        if not offset and length:
            begun.set()

    def splice(source: int, target: int, count: int, **more: Any) -> int:
        moved = real(source, target, count, **more)
        if not done and more.get("offset_dst", 0) >= 20 * MIB:
            begun.wait(60)  # the other stream may be slow
            done.append(more["offset_dst"])
            os.pwrite(target, bytes([data[done[0]] ^ 1]), done[0])
        return moved

    monkeypatch.setattr(os, "splice", splice)
    monkeypatch.setattr(FileSink, "complete", note_the_beginning)
    with pytest.raises(errors.LostError, match="damaged"):
        await _send(here / "f", f"{server.location}/f", channel="raw", streams=2)
    receipt = await _send(here / "f", f"{server.location}/f", channel="raw", streams=2)
    assert receipt.resumed >= 8 * MIB
    assert (root / "f").read_bytes() == data


@pytest.mark.parametrize("sent", [0.9])
@pytest.mark.parametrize("channel", ["annot", "raw"])
async def test_after_a_cut_at_nine_tenths_at_most_a_tenth_and_a_block_is_sent_again(
    server: FileServer,
    here: Path,
    root: Path,
    channel: str,
    sent: float,
    random_bytes: RandomBytes,
    cut_line: Callable[..., Any],
    settled: Settled,
) -> None:
    """Counted at the wire, in both attempts.

    On a busy machine the line would seem long, and several streams be cut in the middle of their stripes; and what
    the server has not read yet is lost with the connection, so that is made little.
    """
    size = 48 * MIB
    for listener in server.listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    (here / "f").write_bytes(random_bytes(size))
    relay = await cut_line(server.location, int(size * sent), towards_server=True)
    with pytest.raises((errors.TransferError, core_errors.CommunicationError)):
        await _send(here / "f", f"{relay.location}/f", channel=channel, streams=1)
    await settled()
    second = await cut_line(server.location, 2 * size, towards_server=True)
    await _send(here / "f", f"{second.location}/f", channel=channel, streams=1)
    moved = 2 * size - second._left
    assert moved <= size * (1 - sent) + 4 * MIB + 64 * 1024
    assert (root / "f").read_bytes() == (here / "f").read_bytes()


@pytest.mark.parametrize("direction", ["send", "get"])
@pytest.mark.parametrize("channel", ["iter", "annot", "raw"])
async def test_every_byte_goes_at_the_pace_asked_for(
    server: FileServer, root: Path, here: Path, channel: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of a tenth of a second's worth at most where the channel can."""
    taken: list[int] = []

    async def take(pace: Pace, count: int) -> None:
        await trio.lowlevel.checkpoint()
        if pace.step(MIB) < MIB:
            taken.append(count)

    monkeypatch.setattr(Pace, "take", take)
    for folder in (root, here):
        (folder / "f").write_bytes(b"x" * (2 * MIB))
    if direction == "send":
        await _send(here / "f", f"{server.location}/new", channel=channel, bwlimit=MIB)
    else:
        await pyroxfer.get(f"{server.location}/f", here / "new", channel=channel, bwlimit=MIB, durability="none")
    assert 2 * MIB <= sum(taken) <= 2.5 * MIB
    assert max(taken) <= 256 * 1024


@pytest.mark.parametrize(
    ("size", "protocol", "channel"),
    [
        (MIB, None, "annot"),
        (4 * MIB - 1, 502, "annot"),
        (4 * MIB, None, "raw"),
        (SMALL + 1, 48, "raw"),
        (None, None, "annot"),
        (None, 48, "annot"),
    ],
)
def test_few_blocks_are_worth_no_side_stream(size: int | None, protocol: int | None, channel: str) -> None:
    """Those of protocol 48 are small, and many for any file that does not travel whole."""
    assert choose("auto", size, protocol).channel.name == channel


async def test_a_pace_is_shared_and_cannot_be_saved_up(autojump_clock: trio.abc.Clock) -> None:
    pace = Pace(1000)
    await trio.sleep(20)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(pace.take, 500)
    await pace.take(1)
    assert trio.current_time() - began == pytest.approx(2.0)
    assert Pace(1000).step(MIB) == 16 * 1024
    assert Pace().step(MIB) == MIB


async def test_the_window_grows_on_a_long_line_only(autojump_clock: trio.abc.Clock) -> None:
    """Blocks that come back as fast as alone make it grow, blocks that wait for each other do not; the server's
    credit bounds it either way."""

    async def fly(window: Window, took: float, credit: int = 64 * MIB) -> None:
        began = await window.enter(256 * 1024)
        await trio.sleep(took)
        window.leave(256 * 1024, began, credit)

    long, short = Window(256 * 1024, CREDIT), Window(256 * 1024, CREDIT)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(fly, long, 0.1)
            nursery.start_soon(fly, short, 0.001 * (number % 10 + 1))
    assert long.size == MOST_CREDIT
    assert short.size < 1.5 * CREDIT
    await fly(long, 0.1, 300_000)
    assert long.size == 300_000
    await fly(long, 0.1, 1)
    assert long.size == LEAST_BLOCK


async def test_blocks_are_as_large_as_the_credit_that_was_given_last() -> None:
    """A transfer that began alone takes no more of the server's memory than its part when others have come."""
    asked: list[tuple[int, int]] = []

    async def fetch(offset: int, length: int) -> int:
        await trio.lowlevel.checkpoint()
        asked.append((offset, length))
        return 5 * MIB if offset < 3 * MIB else 300_000 if offset < 5 * MIB else 1

    ticket = Ticket("ab" * 16, 6 * MIB, "blake3", MIB, "", credit=2 * MIB)
    await pull_blocks(ticket, MIB, fetch, lambda _: None, Pace(), in_order=True)
    lengths = [length for _, length in asked]
    assert lengths[:3] == [MIB, MIB, MIB]
    assert set(lengths[3:-1]) == {MIB, 300_000, LEAST_BLOCK}
    assert sorted(lengths[3:-1], reverse=True) == lengths[3:-1]
    assert [offset for offset, _ in asked] == [sum(lengths[:place]) for place in range(len(lengths))]
    assert sum(lengths) == 6 * MIB


def test_a_long_line_has_more_items_on_the_way() -> None:
    """What is sent unasked by ``iter``, within the credit that the server gives."""
    assert iter.items_ahead(DEFAULT_CREDIT, 0.0, iter.BLOCK) == CREDIT // iter.BLOCK
    assert iter.items_ahead(DEFAULT_CREDIT, 0.05, iter.BLOCK) == 11
    assert iter.items_ahead(DEFAULT_CREDIT, 5.0, MIB) == DEFAULT_CREDIT // MIB
    assert iter.items_ahead(3 * iter.BLOCK, 5.0, iter.BLOCK) == 3
    assert iter.items_ahead(1, 0.0, iter.BLOCK) == 1


@pytest.mark.parametrize(("protocol", "largest"), [(502, MIB), (48, MIB // 4)])
async def test_blocks_are_small_where_requests_are_whole_in_memory(
    server: FileServer, here: Path, protocol: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 clients of protocol 48 at once would take more of the server's memory than it may have."""
    written: list[int] = []
    real = FileSink.write_block

    async def write_block(sink: FileSink, offset: int, data: bytes) -> None:
        written.append(len(data))
        await real(sink, offset, data)

    monkeypatch.setattr(FileSink, "write_block", write_block)
    (here / "f").write_bytes(bytes(MIB))
    await _send(here / "f", f"{server.location}/f", channel="iter", settings=Settings(protocol=protocol))
    assert written == [largest] * (MIB // largest)


def test_items_are_large_only_where_few_transfers_are_under_way() -> None:
    assert [iter.item_size(credit) for credit in (DEFAULT_CREDIT, CREDIT, CREDIT - 1)] == [MIB, MIB, iter.BLOCK]


def test_streams_are_chosen_by_the_length_of_the_line() -> None:
    large, small = (Ticket("ab" * 16, size, "blake3", MIB, "") for size in (100 * MIB, 10 * MIB))
    assert Manner(round_trip_s=0.0001).streams_for(large) == 1
    assert Manner(streams=AUTO_STREAMS, round_trip_s=0.0001).streams_for(large) == 1
    assert Manner(streams=AUTO_STREAMS, round_trip_s=0.05).streams_for(large) == 4
    assert Manner(streams=AUTO_STREAMS, round_trip_s=0.05).streams_for(small) == 1
    assert Manner(streams=3).streams_for(small) == 3


MEASURED = """
import resource, sys, trio
from pyroxfer import FileServer
async def main():
    async with FileServer(sys.argv[1]) as server:
        print(server.location, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
trio.run(main)
"""


@pytest.mark.parametrize("channel", ["annot", "raw"])
async def test_memory_stays_bounded_with_64_transfers_at_once(
    root: Path, here: Path, channel: str, random_bytes: RandomBytes
) -> None:
    """The server's largest resident size is less than 64 MiB above its idle one."""
    (here / "f").write_bytes(random_bytes(4 * MIB))
    command = [sys.executable, "-c", MEASURED, str(root)]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process: trio.Process = await nursery.start(run)
        assert process.stdout is not None
        assert process.stdin is not None
        location = (await process.stdout.receive_some()).decode().strip()
        idle = _resident(process.pid)
        async with trio.open_nursery() as senders:
            for number in range(64):
                senders.start_soon(_send_quietly, here / "f", f"{location}/{number}", channel)
        grown = _resident(process.pid) - idle
        await process.stdin.aclose()
    assert grown < 64 * MIB
    assert len(os.listdir(root)) == 64


async def _send_quietly(path: Path, place: str, channel: str) -> None:
    await _send(path, place, channel=channel)


def _resident(pid: int) -> int:
    """Largest resident size of a process so far, in bytes."""
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) * 1024


@pytest.mark.parametrize("limit", [MIB, 3 * MIB + 1, 5 * MIB + 77])
@pytest.mark.parametrize("channel", ["iter", "annot"])
async def test_a_download_that_breaks_says_so_and_what_to_do(
    server: FileServer,
    here: Path,
    root: Path,
    channel: str,
    limit: int,
    random_bytes: RandomBytes,
    cut_line: Callable[..., Any],
) -> None:
    """In the middle of a block, between two, or while nothing is waited for."""
    (root / "f").write_bytes(random_bytes(8 * MIB))
    relay = await cut_line(server.location, limit, towards_server=False)
    with pytest.raises(errors.LostError, match=r"was lost before the whole file had come.*; try again") as caught:
        await pyroxfer.get(f"{relay.location}/f", here / "f", channel=channel)
    assert relay.location in str(caught.value)
