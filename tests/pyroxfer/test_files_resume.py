"""Resume that can be trusted: whatever happened to source, partial file or journal, what is committed is the
source."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import pyroxfer
from pyroxfer import FileServer, Progress, Receipt, errors, transfers
from pyroxfer.conversation import Conversation, open_conversation
from pyroxfer.journal import MAGIC, Heading, Writer, read_journal
from pyroxfer.offer import Offer, Ticket
from pyroxfer.receipts import KEPT_S, ReceiptsInFile, ReceiptsInMemory
from pyroxfer.runs import LEAST_STEP, Range, Run, covered, gaps, pieces
from pyroxfer.store.local import LocalStore
from pyroxfer_core import Settings
from pyroxfer_core import errors as core_errors

MIB = 1024 * 1024
SIZE = 12 * MIB + 5
HAD = 9 * MIB
"""Bytes that the interrupted attempt has at least brought, without a gap."""
Settled = Callable[[], Awaitable[None]]
RandomBytes = Callable[[int], bytes]

every_way = pytest.mark.parametrize(
    ("channel", "direction"),
    [(channel, direction) for channel in ("iter", "annot", "raw") for direction in ("send", "get")],
)


class Interrupted:
    """A transfer whose first attempt was cut; its source, and what is left at the receiver."""

    def __init__(self, server: FileServer, root: Path, here: Path, direction: str, channel: str) -> None:
        self._server, self._direction, self._channel = server, direction, channel
        sender, receiver = (here, root) if direction == "send" else (root, here)
        self.receiver = receiver
        self.source, self.final = sender / "source.bin", receiver / "final.bin"

    async def attempt(self, location: str = "", **options: Any) -> Receipt:
        place = location or self._server.location
        options = {"durability": "none", **options}
        if self._direction == "send":
            receipt = await pyroxfer.send(self.source, f"{place}/final.bin", channel=self._channel, **options)
        else:
            receipt = await pyroxfer.get(f"{place}/source.bin", self.final, channel=self._channel, **options)
        assert isinstance(receipt, Receipt)
        return receipt

    def left(self) -> list[Path]:
        return sorted(self.receiver.glob(".pyroxfer-*"))

    @property
    def partial(self) -> Path:
        (found,) = [path for path in self.left() if path.suffix != ".journal"]
        return found

    @property
    def journal(self) -> Path:
        (found,) = [path for path in self.left() if path.suffix == ".journal"]
        return found

    @property
    def noted(self) -> list[int]:
        """How long the beginnings are that the journal speaks of: every step, and what there was in the end."""
        known = read_journal(self.journal.read_bytes())
        assert known is not None
        assert all(run.start == 0 for run in known.runs)
        return [run.length for run in known.runs]

    async def resumed(self) -> int:
        """Attempt again; the bytes that were kept. What is committed is the source, and nothing else is left."""
        receipt = await self.attempt()
        assert self.final.read_bytes() == self.source.read_bytes()
        assert self.left() == []
        assert receipt.size == self.source.stat().st_size
        return receipt.resumed


@pytest.fixture
async def cut(
    server: FileServer,
    root: Path,
    here: Path,
    direction: str,
    channel: str,
    random_bytes: RandomBytes,
    cut_line: Callable[..., Any],
    settled: Settled,
    monkeypatch: pytest.MonkeyPatch,
) -> Interrupted:
    """A transfer cut once the receiver has three quarters of it. One block is under way at a time, so that what was
    acknowledged is a beginning of the file."""
    transfer = Interrupted(server, root, here, direction, channel)
    transfer.source.write_bytes(random_bytes(SIZE))
    relay = await cut_line(server.location, math.inf)

    def watch(event: Progress) -> None:
        if event.event == "progress" and event.done >= HAD:
            relay.cut()

    with monkeypatch.context() as patch:
        patch.setattr(transfers, "CREDIT_ALL", transfers.LEAST_CREDIT)
        patch.setattr("pyroxfer.progress.INTERVAL_S", 0)
        with pytest.raises((errors.TransferError, core_errors.CommunicationError)) as caught:
            await transfer.attempt(relay.location, progress=watch)
    assert relay.was_cut, caught.value
    await settled()
    assert not transfer.final.exists()
    assert transfer.left(), caught.value
    assert transfer.noted[:2] == [LEAST_STEP, 2 * LEAST_STEP]
    assert transfer.noted[-1] >= HAD
    return transfer


async def test_each_beginning_is_noted_once(server: FileServer, root: Path, settled: Settled) -> None:
    """Also the one at which the transfer was cut."""
    async with open_conversation(server.uri, Settings()) as talk:
        offer = Offer("f", 9 * MIB, origin="ab" * 16, durability="none")
        ticket = Ticket.from_dict((await talk.ask("open_upload", offer.to_dict()))["ticket"])
        for offset in range(0, 8 * MIB, MIB):
            await talk.ask("put_block", ticket.transfer_id, offset, bytes(MIB))
    await settled()
    (journal,) = root.glob("*.journal")
    known = read_journal(journal.read_bytes())
    assert known is not None
    assert [run.length for run in known.runs] == [LEAST_STEP, 2 * LEAST_STEP]


def flip(path: Path, offset: int) -> None:
    """Change one byte, and neither size nor modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@every_way
async def test_an_interrupted_transfer_goes_on_where_it_was(cut: Interrupted) -> None:
    """What had arrived without a gap is not moved again, and the receipt says so."""
    had = cut.noted[-1]
    seen: list[Progress] = []
    receipt = await cut.attempt(progress=seen.append)
    assert receipt.resumed == had
    assert cut.final.read_bytes() == cut.source.read_bytes()
    accepted = next(event for event in seen if event.event == "accept")
    assert accepted.resumed == receipt.resumed
    assert [event.done for event in seen if event.event == "progress"][-1] == SIZE
    assert cut.left() == []


@every_way
async def test_without_resume_nothing_is_used_and_nothing_kept(cut: Interrupted, settled: Settled) -> None:
    for path in cut.left():
        path.unlink()
    with trio.CancelScope() as scope:

        def stop(event: Progress) -> None:
            if event.event == "progress":
                scope.cancel()

        await cut.attempt(resume=False, progress=stop)
    await settled()
    assert cut.left() == []


@every_way
async def test_source_grew(cut: Interrupted, random_bytes: RandomBytes) -> None:
    had = cut.noted[-1]
    with cut.source.open("ab") as file:
        file.write(random_bytes(3 * MIB))
    assert await cut.resumed() == had


@every_way
async def test_source_shrank_below_what_had_arrived(cut: Interrupted) -> None:
    """Down to a noted beginning of what was there; nothing of the old file is left behind its end."""
    os.truncate(cut.source, LEAST_STEP + 5)
    assert await cut.resumed() == LEAST_STEP


@every_way
async def test_source_replaced_with_the_same_size_and_time(cut: Interrupted) -> None:
    before = cut.source.stat()
    cut.source.write_bytes(os.urandom(SIZE))
    os.utime(cut.source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await cut.resumed() == 0


@every_way
async def test_source_changed_in_one_byte_with_the_same_size_and_time(cut: Interrupted) -> None:
    """Only what is before the change is kept."""
    flip(cut.source, LEAST_STEP + MIB)
    assert await cut.resumed() == LEAST_STEP


@every_way
async def test_partial_truncated(cut: Interrupted) -> None:
    os.truncate(cut.partial, LEAST_STEP + 3 * MIB)
    assert await cut.resumed() == LEAST_STEP


@every_way
async def test_partial_with_a_tail_of_zeros(cut: Interrupted) -> None:
    """As a file system leaves it after a power failure: the length is right, the bytes are not."""
    *_, before, had = cut.noted
    with cut.partial.open("r+b") as file:
        file.seek(had - 5)
        file.write(bytes(5))
    assert await cut.resumed() == before


@every_way
async def test_partial_garbled_in_one_byte(cut: Interrupted) -> None:
    flip(cut.partial, 100)
    assert await cut.resumed() == 0


@every_way
async def test_partial_replaced(cut: Interrupted) -> None:
    """By a file of somebody else, and by a second name of one: which is not written to."""
    other = cut.receiver / "precious"
    other.write_bytes(b"precious")
    place = cut.partial
    place.unlink()
    os.link(other, place)
    receipt = await cut.attempt()
    assert receipt.resumed == 0
    assert cut.final.read_bytes() == cut.source.read_bytes()
    assert other.read_bytes() == b"precious"


@every_way
async def test_partial_gone(cut: Interrupted) -> None:
    cut.partial.unlink()
    assert await cut.resumed() == 0


@every_way
async def test_journal_lost(cut: Interrupted) -> None:
    """A partial file that nothing is known of is not used; it is removed later, as what a killed server left is."""
    orphan = cut.partial
    cut.journal.unlink()
    receipt = await cut.attempt()
    assert receipt.resumed == 0
    assert cut.final.read_bytes() == cut.source.read_bytes()
    assert cut.left() == [orphan]


@every_way
@pytest.mark.parametrize("place", ["heading", "first run", "end"])
async def test_journal_garbled(cut: Interrupted, place: str) -> None:
    """What is behind the damage does not count."""
    size, noted = cut.journal.stat().st_size, cut.noted
    flip(cut.journal, {"heading": 30, "first run": size - 75 * len(noted) + 5, "end": size - 1}[place])
    orphan = [cut.partial] if place == "heading" else []
    receipt = await cut.attempt()
    assert receipt.resumed == (noted[-2] if place == "end" else 0)
    assert cut.final.read_bytes() == cut.source.read_bytes()
    assert cut.left() == orphan


@every_way
async def test_journal_newer_than_the_data(cut: Interrupted) -> None:
    """The journal reached the disk and the bytes did not: it speaks of an end that is not there."""
    known, had = read_journal(cut.journal.read_bytes()), cut.noted[-1]
    assert known is not None
    with cut.journal.open("ab") as file:
        file.write(Writer(known.check).runs([Run(0, SIZE, "ab" * 32), Run(SIZE - MIB, MIB, "cd" * 32)], 1))
    assert await cut.resumed() == had


@pytest.mark.parametrize(("channel", "direction"), [("annot", "get"), ("raw", "get")])
async def test_a_download_that_the_server_has_forgotten_is_kept(
    server: FileServer, root: Path, here: Path, channel: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the last call is lost and the call repeated: every byte is here, and the next run only compares
    them."""
    transfer, real = Interrupted(server, root, here, direction, channel), Conversation.ask
    transfer.source.write_bytes(b"x" * SIZE)

    async def repeated(talk: Conversation, method: str, *args: object) -> Any:
        if method == "end_download":
            await real(talk, method, *args)
        return await real(talk, method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "ask", repeated)
        with pytest.raises(errors.UnknownTransferError):
            await transfer.attempt()
    assert await transfer.resumed() == SIZE


@every_way
async def test_equal_bytes_that_came_another_way_make_the_partial_file_useless(cut: Interrupted) -> None:
    """``already``: nothing is moved, and what the first attempt left is removed."""
    cut.final.write_bytes(cut.source.read_bytes())
    receipt = await cut.attempt()
    assert (receipt.reason, receipt.channel) == ("already", "none")
    assert cut.left() == []


@every_way
async def test_a_file_that_stands_there_can_be_what_is_built_on(
    server: FileServer, root: Path, here: Path, channel: str, direction: str, random_bytes: RandomBytes
) -> None:
    """``if_exists="resume"``: equal blocks are copied, the rest moved, and the file replaced in one step."""
    transfer = Interrupted(server, root, here, direction, channel)
    data = random_bytes(SIZE)
    transfer.source.write_bytes(data)
    for there, kept in (
        (data[:HAD], HAD),
        (data[:LEAST_STEP] + b"x" * MIB, LEAST_STEP),
        (b"x" + data[1:], SIZE - LEAST_STEP),
        (data[:LEAST_STEP] + b"x" + data[LEAST_STEP + 1 :], SIZE - LEAST_STEP),
        (b"other", 0),
        (data * 2, 0),
    ):
        transfer.final.write_bytes(there)
        receipt = await transfer.attempt(if_exists="resume")
        assert receipt.resumed == (SIZE if there == data * 2 else kept)
        assert transfer.final.read_bytes() == data
        assert transfer.left() == []


@pytest.mark.parametrize(("channel", "direction"), [("annot", "send"), ("annot", "get")])
async def test_a_mode_that_forbids_writing_does_not_forbid_resuming(cut: Interrupted) -> None:
    cut.source.chmod(0o440)
    assert await cut.resumed() > 0
    assert cut.final.stat().st_mode & 0o777 == 0o440


def test_a_partial_file_is_kept_a_week(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then removed with its journal, by what a server does now and then; none runs, which would do so as well."""
    with contextlib.closing(LocalStore(root)) as store:
        staged = store.stage("a/f", 9, 0o644, origin="ab" * 16)
        staged.write(0, memoryview(b"123456789"))
        staged.note([Run(0, 9, "00" * 32)], flush=False)
        staged.suspend()
        now = time.time()
        for later, count in ((6 * 24 * 3600, 2), (7 * 24 * 3600 + 60, 0)):
            monkeypatch.setattr("pyroxfer.store.leftovers.time.time", lambda later=later: now + later)
            sum(store.clean_leftovers())
            assert len(list((root / "a").iterdir())) == count


@pytest.mark.parametrize("kept_in", ["memory", "file"])
def test_receipts_are_kept_seven_days(tmp_path: Path, kept_in: str) -> None:
    now = [1000.0]
    book: Any
    if kept_in == "memory":
        book = ReceiptsInMemory(lambda: now[0])
    else:
        book = ReceiptsInFile(tmp_path / "state", "/srv", lambda: now[0])
    receipt = Receipt("f", 1, "ab" * 32, "blake3", "data", "iter", "test", 0, "cd" * 16)
    book.put(receipt)
    now[0] += KEPT_S - 1
    if kept_in == "file":
        book.close()
        assert ReceiptsInFile(tmp_path / "state", "/other", lambda: now[0]).get("cd" * 16) is None
        book = ReceiptsInFile(tmp_path / "state", "/srv", lambda: now[0])
    assert book.get("cd" * 16) == receipt
    assert book.get("ee" * 16) is None
    now[0] += 2
    assert book.get("cd" * 16) is None
    book.close()


def test_old_receipts_are_forgotten_a_part_at_a_time(tmp_path: Path) -> None:
    """However many there are, a server starts at once; and faster than others come, until none is left."""
    ReceiptsInFile(tmp_path, "/srv").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "receipts.sqlite3")) as file:

        def old() -> int:
            return int(file.execute("SELECT count(*) FROM receipts WHERE at = 0").fetchone()[0])

        rows = [("/srv", f"old {number}", 0, "{}") for number in range(5000)]
        file.executemany("INSERT INTO receipts VALUES (?, ?, ?, ?)", rows)
        file.commit()
        book = ReceiptsInFile(tmp_path, "/srv")
        assert old() == 3000
        for number in range(2000):
            book.put(Receipt("f", 1, "ab" * 32, "blake3", "data", "iter", "test", 0, f"{number:032d}"))
        assert old() == 0
        assert book.get(f"{0:032d}") is not None
        book.close()
        plan = file.execute("EXPLAIN QUERY PLAN SELECT rowid FROM receipts WHERE at <= 0 ORDER BY at").fetchall()
        assert [step[3].split()[0] for step in plan] == ["SEARCH"]  # what is young is not read on the way


def test_servers_that_begin_at_once_share_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that change its mode together are both told at once that it is locked; SQLite does not wait there."""

    class Hindered(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql:
                raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Hindered))
    book = ReceiptsInFile(tmp_path, "/srv")
    receipt = Receipt("f", 1, "ab" * 32, "blake3", "data", "iter", "test", 0, "cd" * 16)
    book.put(receipt)
    assert book.get("cd" * 16) == receipt
    book.close()


def test_receipts_that_cannot_be_kept_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "receipts.sqlite3").write_bytes(b"no database, but long enough to be looked at" * 100)
    for place in ("file", "bad"):
        with pytest.raises(errors.AddressError, match=r"receipts.*choose another folder"):
            ReceiptsInFile(tmp_path / place, "/srv")


def test_a_file_of_receipts_that_is_locked_is_left_alone_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads would wait for it one after another; what they leave meanwhile is known all the same."""
    now = [1e9]
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Impatient))
    book = ReceiptsInFile(tmp_path, "/srv", lambda: now[0])
    receipts = [Receipt("f", 1, "ab" * 32, "blake3", "data", "iter", "test", 0, f"{n:032d}") for n in range(3)]
    with contextlib.closing(sqlite3.connect(tmp_path / "receipts.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        book.put(receipts[0])
        other.execute("ROLLBACK")
        book.put(receipts[1])
        now[0] += 60
        book.put(receipts[2])
        assert other.execute("SELECT id FROM receipts").fetchall() == [(receipts[2].transfer_id,)]
    assert [book.get(receipt.transfer_id) for receipt in receipts] == receipts
    book.close()


class Impatient(sqlite3.Connection):
    """Does not wait for a lock."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        super().execute("PRAGMA busy_timeout = 0")


async def test_what_is_committed_is_said_although_the_receipt_cannot_be_written(
    root: Path, here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file of receipts breaks while the server runs, as on a full disk: each upload still has its receipt, and
    the same one when it is asked for again."""
    (here / "f").write_bytes(b"x" * 300_000)
    async with FileServer(root, state=tmp_path / "state") as server:
        with contextlib.closing(sqlite3.connect(tmp_path / "state" / "receipts.sqlite3")) as other:
            other.execute("DROP TABLE receipts")
        receipt = await pyroxfer.send(here / "f", f"{server.location}/", channel="annot")
        assert isinstance(receipt, Receipt)
        async with open_conversation(server.uri, Settings()) as talk:
            arguments = (receipt.transfer_id, receipt.size, receipt.digest, "annot", "again")
            assert (await talk.ask("commit", *arguments))["receipt"] == receipt.to_dict()
    assert "kept in memory only" in caplog.text


async def test_a_server_started_again_still_has_its_receipts(root: Path, here: Path, tmp_path: Path) -> None:
    (here / "f").write_bytes(b"x" * 300_000)
    async with FileServer(root, state=tmp_path / "state") as server:
        sent = await pyroxfer.send(here / "f", f"{server.location}/")
        assert isinstance(sent, Receipt)
    async with FileServer(root, state=tmp_path / "state") as server:
        async with open_conversation(server.uri, Settings()) as talk:
            arguments = (sent.transfer_id, sent.size, sent.digest, "annot", "test")
            again = await talk.ask("commit", *arguments)
    assert Receipt.from_dict(again["receipt"]) == sent


# --- the journal by itself --------------------------------------------------------------------------------------

HEADING = Heading("final.bin", "ab" * 16, ".pyroxfer-0123456789abcdef", 0o600)
RUNS = [Run(0, 100, "01" * 32), Run(0, 200, "02" * 32), Run(300, 50, "03" * 32)]


def written() -> bytes:
    writer = Writer()
    return writer.heading(HEADING, 1) + writer.runs(RUNS[:2], 1) + writer.lease(2) + writer.runs(RUNS[2:], 2)


def test_a_journal_is_read_as_it_was_written() -> None:
    known = read_journal(written())
    assert known is not None
    assert (known.heading, known.lease, known.runs, known.length) == (HEADING, 2, tuple(RUNS), len(written()))


def test_a_cut_journal_gives_its_whole_records() -> None:
    """At every length: a beginning of the records, never another one."""
    data = written()
    for length in range(len(data)):
        known = read_journal(data[:length])
        if known is not None:
            assert known.runs == tuple(RUNS[: len(known.runs)])
            assert known.length <= length


def test_a_flipped_bit_anywhere_ends_the_journal_there() -> None:
    data = written()
    for place in range(len(data)):
        known = read_journal(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        if known is not None:
            assert known.runs == tuple(RUNS[: len(known.runs)])
            assert known.length <= place


def test_records_cannot_change_places() -> None:
    writer = Writer()
    head = writer.heading(HEADING, 1)
    first, second = writer.runs(RUNS[:1], 1), writer.runs(RUNS[1:2], 1)
    known = read_journal(head + second + first)
    assert known is not None
    assert known.runs == ()
    assert read_journal(MAGIC) is None


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'"x"', json.dumps({"name": 5}).encode(), b"\xff"])
def test_a_heading_that_makes_no_sense_is_none(payload: bytes) -> None:
    writer = Writer()
    assert read_journal(MAGIC + writer._record(b"H", payload)) is None


def test_ranges_add_up() -> None:
    assert covered([Run(0, 10, ""), Run(0, 20, ""), Run(15, 10, ""), Run(30, 5, "")]) == [Range(0, 25), Range(30, 5)]
    assert gaps(50, [Range(0, 25), Range(30, 5)]) == [Range(25, 5), Range(35, 15)]
    assert gaps(5, []) == [Range(0, 5)]
    assert gaps(5, [Range(0, 5)]) == []
    assert list(pieces([Range(1, 5), Range(9, 2)], 3)) == [Range(1, 3), Range(4, 2), Range(9, 2)]
