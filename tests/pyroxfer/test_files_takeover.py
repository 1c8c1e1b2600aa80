"""Take-over: a second connection goes on with a transfer, and nothing that the first still writes does harm."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import pyroxfer
from pyroxfer import FileServer, Receipt, errors
from pyroxfer.conversation import Conversation, open_conversation
from pyroxfer.digest import digest_of
from pyroxfer.offer import Offer, Ticket
from pyroxfer.runs import Range, Run
from pyroxfer.store import staged as staged_room
from pyroxfer.store.local import LocalStore
from pyroxfer_core import Settings

MIB = 1024 * 1024
ORIGIN = "ab" * 16
RandomBytes = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second each in earnest."""
    monkeypatch.setattr("pyroxfer.transfers.TAKE_OVER_S", 0.1)
    monkeypatch.setattr("pyroxfer.store.staged.PATIENCE_S", 0.1)


@pytest.fixture
async def first(server: FileServer) -> AsyncIterator[Conversation]:
    async with open_conversation(server.uri, Settings()) as talk:
        yield talk


@pytest.fixture
async def second(server: FileServer) -> AsyncIterator[Conversation]:
    async with open_conversation(server.uri, Settings()) as talk:
        yield talk


async def opened(talk: Conversation, size: int, **more: Any) -> Ticket:
    reply = await talk.ask("open_upload", Offer("f", size, origin=ORIGIN, durability="none", **more).to_dict())
    return Ticket.from_dict(reply["ticket"])


async def put(talk: Conversation, ticket: Ticket, data: bytes, start: int, end: int) -> None:
    for offset in range(start, end, MIB):
        await talk.ask("put_block", ticket.transfer_id, offset, data[offset : min(offset + MIB, end)])


async def go_on(talk: Conversation, ticket: Ticket, data: bytes) -> Receipt:
    """Keep everything that is left, send the rest, commit."""
    await talk.ask("keep", ticket.transfer_id, list(range(len(ticket.kept))))
    for offset, length in ticket.missing:
        await put(talk, ticket, data, offset, offset + length)
    return await commit(talk, ticket, data)


async def commit(talk: Conversation, ticket: Ticket, data: bytes) -> Receipt:
    reply = await talk.ask("commit", ticket.transfer_id, len(data), digest_of(data, "blake3"), "iter", "test")
    return Receipt.from_dict(reply["receipt"])


async def test_the_second_connection_goes_on_and_the_first_is_told(
    first: Conversation, second: Conversation, root: Path, random_bytes: RandomBytes
) -> None:
    data = random_bytes(5 * MIB)
    old = await opened(first, len(data))
    await put(first, old, data, 0, 3 * MIB)
    new = await opened(second, len(data))
    assert [run.end for run in new.kept] == [3 * MIB]
    with pytest.raises(errors.TakenOverError):
        await put(first, old, data, 3 * MIB, 4 * MIB)
    with pytest.raises(errors.TakenOverError):
        await commit(first, old, data)
    receipt = await go_on(second, new, data)
    assert receipt.resumed == 3 * MIB
    assert (root / "f").read_bytes() == data
    assert os.listdir(root) == ["f"]


async def test_the_same_id_over_another_connection_is_a_take_over_too(
    first: Conversation, second: Conversation, root: Path
) -> None:
    old = await opened(first, 3)
    new = await opened(second, 3, transfer_id=old.transfer_id)
    await put(second, new, b"abc", 0, 3)
    assert (await commit(second, new, b"abc")).size == 3
    assert os.listdir(root) == ["f"]


async def test_another_origin_is_another_transfer(first: Conversation, second: Conversation, root: Path) -> None:
    """Two senders of one name do not disturb each other; the first to commit wins."""
    old = await opened(first, 3)
    other = Offer("f", 3, origin="cd" * 16, durability="none")
    new = Ticket.from_dict((await second.ask("open_upload", other.to_dict()))["ticket"])
    await put(first, old, b"abc", 0, 3)
    await put(second, new, b"xyz", 0, 3)
    await commit(first, old, b"abc")
    with pytest.raises(errors.ExistsError):
        await commit(second, new, b"xyz")
    assert (root / "f").read_bytes() == b"abc"


async def test_a_write_in_flight_lands_in_a_file_of_its_own(
    first: Conversation,
    second: Conversation,
    server: FileServer,
    root: Path,
    random_bytes: RandomBytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old holder hangs in the middle of a write: the new one copies what it keeps, and commits; then the late
    write comes."""
    data = random_bytes(5 * MIB)
    old = await opened(first, len(data))
    await put(first, old, data, 0, 3 * MIB)
    async with open_conversation(server.uri, Settings()) as early:
        await early.ask("suspend", old.transfer_id)
    old = await opened(first, len(data))
    await first.ask("keep", old.transfer_id, [0])
    hangs, go = threading.Event(), threading.Event()
    real = staged_room.Staged.write

    def write(staged: Any, offset: int, view: memoryview) -> None:
        if bytes(view[:4]) == b"late":
            hangs.set()
            go.wait(60)
        real(staged, offset, view)

    monkeypatch.setattr(staged_room.Staged, "write", write)

    async def late() -> None:
        with pytest.raises(errors.TransferError):
            await first.ask("put_block", old.transfer_id, 3 * MIB, b"late" * 1000)
            await first.ask("status", old.transfer_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.to_thread.run_sync(hangs.wait)
        new = await opened(second, len(data))
        assert [run.end for run in new.kept] == [3 * MIB]
        receipt = await go_on(second, new, data)
        go.set()
    assert receipt.resumed == 3 * MIB
    assert (root / "f").read_bytes() == data
    with trio.fail_after(30):
        while os.listdir(root) != ["f"]:  # noqa: ASYNC110  # the server tells nobody
            await trio.sleep(0.01)
    assert (root / "f").read_bytes() == data


async def test_a_splice_in_flight_does_no_harm(
    server: FileServer, root: Path, here: Path, random_bytes: RandomBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sender's bytes are in the kernel's pipe and come out when the second has committed other ones."""
    data = random_bytes(12 * MIB)
    (here / "f").write_bytes(data)
    hangs, go = threading.Event(), threading.Event()
    real = os.splice

    def splice(source: int, target: int, count: int, **more: Any) -> int:
        if more.get("offset_dst", 0) >= 6 * MIB and not hangs.is_set():
            hangs.set()
            go.wait(60)
        return real(source, target, count, **more)

    monkeypatch.setattr(os, "splice", splice)

    async def send(name: str) -> Receipt:
        receipt = await pyroxfer.send(
            here / "f", f"{server.location}/{name}", channel="raw", durability="none", if_exists="replace"
        )
        assert isinstance(receipt, Receipt)
        return receipt

    async def black_hole() -> None:
        with pytest.raises(errors.LostError):
            await send("f")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(black_hole)
        await trio.to_thread.run_sync(hangs.wait)
        changed = data[: 7 * MIB] + random_bytes(5 * MIB)
        (here / "f").write_bytes(changed)
        receipt = await send("f")
        go.set()
    assert (root / "f").read_bytes() == changed
    assert receipt.size == len(changed)


async def test_the_commit_looks_again_at_what_was_taken_over(
    first: Conversation, second: Conversation, root: Path, random_bytes: RandomBytes
) -> None:
    """A late write that nothing could stop changes a kept block after it was digested: no commit."""
    data = random_bytes(5 * MIB)
    old = await opened(first, len(data))
    await put(first, old, data, 0, 3 * MIB)
    new = await opened(second, len(data))
    await second.ask("keep", new.transfer_id, [0])
    (partial,) = [path for path in root.iterdir() if path.suffix != ".journal"]
    with partial.open("r+b") as file:
        file.write(b"late")
    await put(second, new, data, 3 * MIB, 5 * MIB)
    with pytest.raises(errors.IntegrityError, match="somebody else"):
        await commit(second, new, data)
    assert os.listdir(root) == []


async def test_only_one_of_many_that_begin_at_once_is_let_in(server: FileServer, root: Path) -> None:
    """The others are refused or taken over; one commits, and one file is there."""
    done: list[Receipt] = []

    async def one() -> None:
        async with open_conversation(server.uri, Settings()) as talk:
            try:
                ticket = await opened(talk, 3)
                await put(talk, ticket, b"abc", 0, 3)
                done.append(await commit(talk, ticket, b"abc"))
            except (errors.DeniedError, errors.TakenOverError, errors.ExistsError):
                pass
            except KeyError:
                pass  # ``needs``: another one had committed already

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
    assert done
    assert os.listdir(root) == ["f"]


def test_a_holder_in_another_process_is_left_alone(root: Path) -> None:
    """Its lock says that it lives: what it has is copied, and both may come to their end."""
    one, other = LocalStore(root), LocalStore(root)
    holder = one.stage("f", 6, 0o644, ORIGIN)
    holder.write(0, memoryview(b"abc"))
    holder.note([Run(0, 3, digest_of(b"abc", "blake3"))], flush=True)
    taker = other.stage("f", 6, 0o644, ORIGIN)
    assert [run.end for run in taker.found] == [3]
    assert taker.basis != taker.fd
    taker.adopt([Range(0, 3)])
    taker.write(3, memoryview(b"DEF"))
    taker.note([Run(0, 6, digest_of(b"abcDEF", "blake3"))], flush=False)
    holder.write(0, memoryview(b"???xyz"))
    holder.note([Run(0, 6, digest_of(b"???xyz", "blake3"))], flush=False)
    assert taker.publish(6, "fail", "none", None) == "f"
    assert (root / "f").read_bytes() == b"abcDEF"
    holder.discard()
    assert os.listdir(root) == ["f"]


async def test_a_client_that_hangs_does_not_keep_the_next_one_waiting(
    server: FileServer, here: Path, root: Path, random_bytes: RandomBytes, nursery: trio.Nursery
) -> None:
    """The first one's line goes silent without breaking; a second run of the same command commits."""
    (here / "f").write_bytes(random_bytes(4 * MIB))
    silent = trio.Event()

    async def hang(_: Any) -> None:
        silent.set()
        await trio.sleep_forever()

    async def stuck() -> None:
        from pyroxfer.channels.annot import AnnotChannel

        class Hanging(Conversation):
            async def ask_with(self, *args: Any, **more: Any) -> Any:
                if args[2] >= 2 * MIB:
                    await hang(None)
                return await super().ask_with(*args, **more)

        original = AnnotChannel.push

        async def push(channel: Any, talk: Any, *rest: Any) -> Any:
            talk.__class__ = Hanging
            return await original(channel, talk, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnnotChannel, "push", push)
            nursery.start_soon(_quiet_send, here / "f", f"{server.location}/f")
            await silent.wait()

    await stuck()
    receipt = await pyroxfer.send(here / "f", f"{server.location}/f", channel="annot", durability="none")
    assert isinstance(receipt, Receipt)
    assert 0 < receipt.resumed <= 2 * MIB
    assert (root / "f").read_bytes() == (here / "f").read_bytes()


async def _quiet_send(path: Path, place: str) -> None:
    await pyroxfer.send(path, place, channel="annot", durability="none")
