"""Side streams: who may open one, and what becomes of those that lie, break or come late."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from files_doubles import DATA, commit, content, opened

import pyroxfer
from pyroxfer import FileServer, Receipt, errors
from pyroxfer.channels import annot, raw
from pyroxfer.conversation import Conversation
from pyroxfer.offer import Ticket
from pyroxfer.runs import Range
from pyroxfer_core import errors as core_errors
from pyroxfer_core import open_side_stream

Settled = Callable[[], Awaitable[None]]
Leftovers = Callable[..., list[str]]


async def stream_answer(server: FileServer, token: bytes) -> bytes:
    """What the server sends on a side stream opened with a token."""
    async with await open_side_stream(server.uri, token) as stream:
        with trio.fail_after(30), contextlib.suppress(core_errors.ConnectionClosedError):
            await raw._send_record(stream, raw.GO, 0)
            await raw._send_range_record(stream, Range(0, len(DATA)), striped=False)
            await raw._send_record(stream, raw.DONE, 0)
            answer = b""
            while part := await stream.receive_some():
                answer += part
            return answer
    return b""


async def test_only_a_fresh_grant_opens_a_side_stream(
    talk: Conversation, server: FileServer, root: Path, leftovers: Leftovers, settled: Settled
) -> None:
    """Rubbish, a flipped bit, and the second use of a grant get nothing but the end of the stream."""
    (root / "there").write_bytes(DATA)
    ticket = Ticket.from_dict((await talk.ask("open_download", "there", "blake3"))["ticket"])
    grant = bytes.fromhex(ticket.grant)
    flipped = bytes([*grant[:20], grant[20] ^ 1, *grant[21:]])
    for token in (b"", b"x" * 120, flipped):
        assert await stream_answer(server, token) == b""
    answer = await stream_answer(server, grant)
    assert answer[raw._RECORD.size : -raw._RECORD.size] == DATA
    assert await stream_answer(server, grant) == b""


async def test_a_side_stream_that_ends_early_or_lies_is_not_committed(
    talk: Conversation, server: FileServer, root: Path, leftovers: Leftovers, settled: Settled
) -> None:
    """Cut in the middle, before the end record, or before the last one; a stripe with another digest; rubbish; a
    range beyond what was granted."""
    end = raw._RECORD.pack(raw.END, len(DATA), bytes(32))
    for place, striped, tail, expected in (
        (Range(0, len(DATA)), False, DATA[:-1], errors.LostError),
        (Range(0, len(DATA)), False, DATA, errors.LostError),
        (Range(0, len(DATA)), False, DATA + end, errors.LostError),
        (Range(0, len(DATA)), True, DATA + end, errors.LostError),
        (Range(0, len(DATA)), False, DATA + b"x" * 44, errors.PeerError),
        (Range(1, len(DATA)), False, DATA + end, errors.PeerError),
        (Range(2**62, 2**62), True, DATA + end, errors.PeerError),
    ):
        ticket = await opened(talk)
        async with await open_side_stream(server.uri, bytes.fromhex(ticket.grant)) as stream:
            await stream.receive_exactly(raw._RECORD.size)
            await raw._send_record(stream, raw.GO, 0)
            await raw._send_range_record(stream, place, striped)
            await stream.send_all(tail)
        await settled()
        with pytest.raises(expected):
            await commit(talk, ticket)
        assert content(root) == []


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_a_side_stream_that_comes_too_late_harms_nothing(
    server: FileServer, root: Path, here: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has given it up and moves the bytes another way: its late arrival does not end the transfer."""
    for folder in (root, here):
        (folder / "f").write_bytes(b"x" * 3_000_000)
    real, arrived = server._daemon.side_stream_handler, []
    assert real is not None

    async def late(stream: Any) -> None:
        arrived.append(stream)
        await trio.sleep(0.06)
        await real(stream)

    server._daemon.side_stream_handler = late
    monkeypatch.setattr(raw, "OPEN_S", 0.05)
    if direction == "send":
        receipt = await pyroxfer.send(here / "f", f"{server.location}/new", channel="raw")
    else:
        receipt = await pyroxfer.get(f"{server.location}/f", here / "new", channel="raw")
    assert isinstance(receipt, Receipt)
    assert (len(arrived), receipt.channel) == (1, "annot")


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_raw_falls_back_and_says_why(
    root: Path, here: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side stream that does not open in time: the bytes go another way, and the receipt has the reason."""
    monkeypatch.setattr(raw, "OPEN_S", 0.2)
    (here / "f").write_bytes(DATA)
    (root / "g").write_bytes(DATA)

    async def never(stream: Any) -> None:
        await trio.sleep_forever()

    async with FileServer(root) as server:
        server._daemon.side_stream_handler = never
        if direction == "send":
            receipt = await pyroxfer.send(here / "f", f"{server.location}/", channel="raw")
        else:
            receipt = await pyroxfer.get(f"{server.location}/g", here, channel="raw")
        server._daemon.side_stream_handler = None
        other = await pyroxfer.send(here / "f", f"{server.location}/other", channel="raw")
    assert isinstance(receipt, Receipt)
    assert (receipt.channel, receipt.reason) == ("annot", "the side stream did not open within 0.2 s")
    assert isinstance(other, Receipt)
    assert (other.channel, other.reason) == ("annot", "the side stream was not accepted")


@pytest.mark.parametrize("direction", ["send", "get"])
@pytest.mark.parametrize("taken", [True, False], ids=["taken", "on its way"])
async def test_a_side_stream_that_comes_late_does_not_harm_the_next_channel(
    root: Path, here: Path, direction: str, taken: bool, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that waited in vain goes another way; whatever becomes of the stream then is no affair of that way."""
    monkeypatch.setattr(raw, "OPEN_S", 0.2)
    (here / "f").write_bytes(DATA)
    (root / "g").write_bytes(DATA)
    gone_on, served = trio.Event(), trio.Event()
    method = "push" if direction == "send" else "pull"
    moving = getattr(annot.AnnotChannel, method)

    async def once_the_stream_was_served(*args: Any) -> Any:
        gone_on.set()
        await served.wait()
        return await moving(*args)

    monkeypatch.setattr(annot.AnnotChannel, method, once_the_stream_was_served)

    async def late(stream: Any) -> None:
        sending = stream.send_all

        async def held_back(data: bytes) -> None:
            await gone_on.wait()
            await sending(data)

        if taken:
            stream.send_all = held_back
        else:
            await gone_on.wait()
        await raw.serve_side_stream(server._transfers, stream)
        served.set()

    async with FileServer(root) as server:
        server._daemon.side_stream_handler = late
        if direction == "send":
            receipt = await pyroxfer.send(here / "f", f"{server.location}/", channel="raw")
        else:
            receipt = await pyroxfer.get(f"{server.location}/g", here, channel="raw")
    assert isinstance(receipt, Receipt)
    assert (receipt.channel, receipt.reason) == ("annot", "the side stream did not open within 0.2 s")
    assert (root / "f" if direction == "send" else here / "g").read_bytes() == DATA
    assert leftovers(root, here) == []


async def test_a_side_stream_that_breaks_before_any_byte_leaves_the_transfer_alone(
    talk: Conversation, server: FileServer, root: Path
) -> None:
    """Accepted, then reset on the way: the same transfer goes on by blocks."""
    ticket = await opened(talk)
    async with await open_side_stream(server.uri, bytes.fromhex(ticket.grant)) as stream:
        await stream.receive_exactly(raw._RECORD.size)
    await talk.ask("put_block", ticket.transfer_id, 0, DATA)
    assert (await commit(talk, ticket)).channel == "iter"
    assert content(root) != []
