"""The service itself, spoken to call by call: a client that is wrong, hostile, dead, or a stock one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from doubles import until
from files_doubles import DATA, commit, content, opened
from own_doubles import OwnClient, own_client

import pyroxfer
from pyroxfer import FileServer, Receipt, errors
from pyroxfer.channels import choose
from pyroxfer.conversation import Conversation, open_conversation
from pyroxfer.digest import digest_of
from pyroxfer.offer import Offer, Ticket, new_transfer_id
from pyroxfer.sink import PipeSink
from pyroxfer.source import PipeSource
from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core import errors as core_errors
from pyroxfer_core.server.room import ROOM
from pyroxfer_core.uri import Uri
from pyroxfer_core.wire.message import MessageType

Settled = Callable[[], Awaitable[None]]
Leftovers = Callable[..., list[str]]


async def test_commit_is_idempotent_even_on_another_connection(talk: Conversation, server: FileServer) -> None:
    ticket = await opened(talk)
    await talk.ask("put_block", ticket.transfer_id, 0, DATA)
    first = await commit(talk, ticket)
    assert await commit(talk, ticket) == first
    async with open_conversation(server.uri, Settings()) as other:
        assert await commit(other, ticket) == first


async def test_the_same_offer_again_is_answered_with_its_receipt(talk: Conversation) -> None:
    transfer_id = new_transfer_id()
    ticket = await opened(talk, transfer_id=transfer_id)
    await talk.ask("put_block", ticket.transfer_id, 0, DATA)
    receipt = await commit(talk, ticket)
    again = await talk.ask("open_upload", Offer("f", len(DATA), transfer_id=transfer_id).to_dict())
    assert Receipt.from_dict(again["receipt"]) == receipt


@pytest.mark.parametrize(("if_exists", "reason"), [("fail", "already"), ("skip", "already"), ("replace", "test")])
async def test_equal_bytes_are_success_even_when_they_came_meanwhile(
    talk: Conversation, root: Path, if_exists: str, reason: str
) -> None:
    """Somebody else put the same bytes in place while these were on their way."""
    ticket = await opened(talk, if_exists=if_exists)
    await talk.ask("put_block", ticket.transfer_id, 0, DATA)
    (root / "f").write_bytes(DATA)
    assert (await commit(talk, ticket)).reason == reason
    assert content(root) == ["f"]


async def test_other_bytes_that_came_meanwhile_follow_the_same_rules(talk: Conversation, root: Path) -> None:
    for if_exists in ("skip", "fail"):
        ticket = await opened(talk, if_exists=if_exists)
        await talk.ask("put_block", ticket.transfer_id, 0, DATA)
        (root / "f").write_bytes(b"other")
        if if_exists == "skip":
            assert (await commit(talk, ticket)).reason == "skipped"
        else:
            with pytest.raises(errors.ExistsError):
                await commit(talk, ticket)
        assert content(root) == ["f"]
        assert (root / "f").read_bytes() == b"other"
        (root / "f").unlink()


async def test_one_transfer_cannot_be_begun_twice_at_once(
    talk: Conversation, root: Path, server: FileServer, settled: Settled
) -> None:
    """Of many openings with one id one is let in, and no partial file of the others stays."""
    offer = Offer("f", len(DATA)).to_dict()
    answers: list[str] = []

    async def one() -> None:
        try:
            answers.extend(await talk.ask("open_upload", offer))
        except errors.DeniedError:
            answers.append("denied")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert sorted(answers) == ["denied"] * 4 + ["ticket"]
    assert len(content(root)) == 1
    await talk.ask("abort", offer["transfer_id"])
    assert content(root) == []


async def test_two_commits_at_once_give_one_receipt(talk: Conversation, root: Path) -> None:
    ticket = await opened(talk)
    await talk.ask("put_block", ticket.transfer_id, 0, DATA)
    receipts: list[Receipt] = []

    async def one() -> None:
        receipts.append(await commit(talk, ticket))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert len(set(receipts)) == 1
    assert (root / "f").read_bytes() == DATA


async def test_a_lost_receipt_is_asked_for_again(
    server: FileServer, root: Path, here: Path, monkeypatch: Any
) -> None:
    """The connection breaks after the commit has run: the client asks again and gets the one receipt."""
    (here / "f").write_bytes(b"x" * 200_000)
    real = Conversation.ask
    lost: list[str] = []

    async def losing(talk: Conversation, method: str, *args: object) -> Any:
        reply = await real(talk, method, *args)
        if method == "commit" and not lost:
            lost.append(method)
            raise core_errors.ConnectionClosedError("lost", outcome=core_errors.Outcome.UNKNOWN)
        return reply

    monkeypatch.setattr(Conversation, "ask", losing)
    receipt = await pyroxfer.send(here / "f", f"{server.location}/", channel="annot")
    assert lost
    assert isinstance(receipt, Receipt)
    assert receipt.path == "f"


async def test_an_outcome_that_cannot_be_found_out_is_said_to_be_unknown(
    server: FileServer, here: Path, monkeypatch: Any
) -> None:
    (here / "f").write_bytes(b"x" * 200_000)
    real = Conversation.ask

    async def losing(talk: Conversation, method: str, *args: object) -> Any:
        if method == "commit":
            raise core_errors.ConnectionClosedError("lost", outcome=core_errors.Outcome.UNKNOWN)
        return await real(talk, method, *args)

    monkeypatch.setattr(Conversation, "ask", losing)
    with pytest.raises(errors.OutcomeUnknownError, match="Unknown"):
        await pyroxfer.send(here / "f", f"{server.location}/", channel="annot")


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([(0, DATA), (0, DATA)], errors.PeerError),
        ([(0, DATA[:100]), (50, DATA[:100])], errors.PeerError),
        ([(1, DATA)], errors.PeerError),
        ([(-1, DATA)], errors.PeerError),
        ([(0, b"")], errors.PeerError),
        ([(0, "text")], errors.PeerError),
        ([("0", DATA)], errors.PeerError),
        ([(0, b"x" * (2**20 + 1))], errors.PeerError),
    ],
)
async def test_hostile_blocks_are_refused(
    talk: Conversation, root: Path, leftovers: Leftovers, blocks: Any, expected: type[Exception]
) -> None:
    """Twice, overlapping, past the end, before the beginning, no bytes, too many: our error, and nothing is kept."""
    ticket = await opened(talk)
    with pytest.raises(expected):
        for offset, data in blocks:
            await talk.ask("put_block", ticket.transfer_id, offset, data)
        await commit(talk, ticket)
    await talk.ask("abort", ticket.transfer_id)
    assert content(root) == []


@pytest.mark.parametrize("pieces", [[], [(0, 100)], [(100, 200)], [(0, 100), (200, 300)]])
async def test_a_commit_with_missing_bytes_is_refused(talk: Conversation, root: Path, pieces: Any) -> None:
    ticket = await opened(talk)
    for start, stop in pieces:
        await talk.ask("put_block", ticket.transfer_id, start, DATA[start:stop])
    with pytest.raises(errors.IntegrityError):
        await commit(talk, ticket)
    assert content(root) == []
    with pytest.raises(errors.IntegrityError):
        await talk.ask("status", ticket.transfer_id)


async def test_blocks_in_any_order_and_of_unknown_size(talk: Conversation, root: Path) -> None:
    ticket = await opened(talk, size=None)
    for start in (5000, 0, 9000, 3000):
        end = {5000: 9000, 0: 3000, 9000: 10000, 3000: 5000}[start]
        await talk.ask("put_block", ticket.transfer_id, start, DATA[start:end])
    receipt = await commit(talk, ticket)
    assert receipt.size == len(DATA)
    assert (root / "f").read_bytes() == DATA


async def test_bytes_in_serpents_form_are_taken(talk: Conversation, root: Path) -> None:
    import base64

    ticket = await opened(talk, size=3)
    block = {"data": base64.b64encode(b"abc").decode(), "encoding": "base64"}
    await talk.ask("put_block", ticket.transfer_id, 0, block)
    await commit(talk, ticket, b"abc")
    assert (root / "f").read_bytes() == b"abc"


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ".pyroxfer-x", "a\nb", "a/", ""])
async def test_names_that_leave_the_root_are_refused_at_every_door(talk: Conversation, root: Path, path: str) -> None:
    offer = {**Offer("f", 1).to_dict(), "path": path, "digest": digest_of(b"x", "blake3")}
    with pytest.raises(errors.NameRefusedError):
        await talk.ask("open_upload", offer)
    results = (await talk.ask("put_files", [offer], b"x", [], ""))["results"]
    assert results[0]["error"]["code"] == "name_refused"
    with pytest.raises(errors.NameRefusedError):
        await talk.ask("open_download", path, "blake3")
    assert (await talk.ask("get_files", [path], "blake3"))["results"][0]["error"]["code"] == "name_refused"
    assert content(root) == []


NONSENSE: list[Any] = [None, 5, -1, "x", b"x", [], {}, {"a": 1}, "0" * 32, [None], 2**70, 1.5, True]
METHODS = {
    "about": 1, "is_folder": 1, "digest": 2, "remove": 1, "open_upload": 1, "status": 1, "commit": 5, "abort": 1,
    "put_files": 4, "open_download": 2, "end_download": 1, "get_files": 2, "put_block": 3, "put_annotated": 2,
    "get_annotated": 3, "keep": 2, "suspend": 1, "grant": 1, "compare": 2, "check_room": 2,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
async def test_nonsense_is_answered_with_our_errors(talk: Conversation, root: Path, method: str) -> None:
    """Any plain values as arguments: an answer or a TransferError, never an exception of the server's inside."""
    for value in NONSENSE:
        try:
            await talk.ask(method, *[value] * METHODS[method])
        except errors.TransferError as error:
            assert error.exit_code != 1, error
    assert content(root) == []


@pytest.mark.parametrize("largest", [1000, 2**20])
async def test_whoever_fetches_a_stream_says_how_large_its_blocks_are(
    talk: Conversation, root: Path, largest: int
) -> None:
    transfer_id = await _begun_download(talk, root)
    *blocks, _ = [item async for item in await talk.items("blocks", transfer_id, None, largest)]
    assert blocks == [DATA[start : start + largest] for start in range(0, len(DATA), largest)]


@pytest.mark.parametrize("largest", [0, -1, 2**20 + 1, "1000", None, True])
async def test_blocks_of_no_size_are_refused_and_the_download_can_go_on(
    talk: Conversation, root: Path, largest: object
) -> None:
    transfer_id = await _begun_download(talk, root)
    (refusal,) = [item async for item in await talk.items("blocks", transfer_id, None, largest)]
    assert isinstance(errors.from_record(refusal["error"]), errors.PeerError)
    await talk.ask("end_download", transfer_id)


async def _begun_download(talk: Conversation, root: Path) -> str:
    (root / "f").write_bytes(DATA)
    reply = await talk.ask("open_download", "f", "blake3")
    return str(reply["ticket"]["transfer_id"])


async def test_nonsense_in_streams_is_answered_with_our_errors(talk: Conversation) -> None:
    for value in NONSENSE:
        for method, arguments in (("walk", (value, True)), ("blocks", (value,)), ("blocks", ("ab" * 16, value))):
            stream = await talk.items(method, *arguments)
            items = [item async for item in stream]
            assert all("error" in item or "entries" in item for item in items)


async def test_a_dead_client_leaves_nothing(
    server: FileServer, root: Path, settled: Settled, leftovers: Leftovers
) -> None:
    """When its connection ends, its uploads and downloads are dropped."""
    (root / "there").write_bytes(DATA)
    async with open_conversation(server.uri, Settings()) as talk:
        ticket = await opened(talk)
        await talk.ask("put_block", ticket.transfer_id, 0, DATA[:50])
        await talk.ask("open_download", "there", "blake3")
        assert server.transfers == 2
        assert leftovers(root)
    await settled()
    assert not leftovers(root)


async def test_an_idle_transfer_is_dropped(root: Path, leftovers: Leftovers) -> None:
    """The lease ends though the connection lives; asked about it, the server says why."""
    async with (
        FileServer(root, lease_s=0.1) as server,
        open_conversation(server.uri, Settings()) as talk,
    ):
        ticket = await opened(talk)
        with trio.fail_after(30):
            while server.transfers:  # noqa: ASYNC110  # the server tells nobody
                await trio.sleep(0.02)
        assert not leftovers(root)
        with pytest.raises(errors.StalledError, match="idle"):
            await talk.ask("put_block", ticket.transfer_id, 0, DATA)


async def test_a_closing_server_leaves_nothing(root: Path, leftovers: Leftovers) -> None:
    async with FileServer(root) as server, open_conversation(server.uri, Settings()) as talk:
        await opened(talk)
        assert leftovers(root)
    assert not leftovers(root)


async def test_leftovers_of_a_server_that_died_are_removed_at_the_next_start(
    root: Path, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyroxfer.store.leftovers.GRACE_S", -1.0)
    (root / "sub").mkdir()
    (root / "sub" / ".pyroxfer-0123456789abcdef").write_bytes(b"half")
    async with FileServer(root):
        with trio.fail_after(30):
            while leftovers(root):  # noqa: ASYNC110  # the server tells nobody
                await trio.sleep(0.01)


def held_below(folder: Path) -> list[str]:
    """What this process has open there."""
    found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [path for path in found if path.startswith(str(folder))]


async def test_a_server_that_does_not_begin_holds_nothing(root: Path, tmp_path: Path) -> None:
    """Neither the folder nor the receipts, whatever keeps it from beginning."""
    state = tmp_path / "kept"
    with pytest.raises(core_errors.SecurityError) as refused:
        FileServer(root, state=state, listen="0.0.0.0:0").bind()
    assert not held_below(tmp_path), refused
    with trio.CancelScope() as scope:
        scope.cancel()
        async with FileServer(root, state=state):
            raise AssertionError("it began")
    assert scope.cancelled_caught
    assert not held_below(tmp_path)
    (state / "receipts.sqlite3").write_bytes(b"rubbish" * 1000)
    with pytest.raises(errors.AddressError, match="receipts cannot be kept") as damaged:
        FileServer(root, state=state)
    assert not held_below(tmp_path), damaged


async def test_pipes_that_do_not_wait_by_themselves_are_waited_for() -> None:
    """As some parents of a command leave its standard input and output."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    data = os.urandom(300_000)
    async with trio.open_nursery() as nursery:
        source, sink = PipeSource(reading, "in", "blake3"), PipeSink(writing, "out", "blake3")
        nursery.start_soon(sink.write_block, 0, data)
        got = await source.read_block(0, len(data))
    assert got == data
    os.close(reading)
    with pytest.raises(errors.TransferError, match="nobody reads"):
        await sink.write_block(len(data), b"x")
    with pytest.raises(errors.TransferError, match="in: "):
        await PipeSource(writing, "in", "blake3").read_block(0, 1)
    os.close(writing)


async def test_read_only_and_upload_only(root: Path, here: Path) -> None:
    (root / "there").write_bytes(DATA)
    (here / "mine").write_bytes(DATA)
    async with FileServer(root, read_only=True) as server:
        for channel in choose.CHOICES:
            with pytest.raises(errors.DeniedError):
                await pyroxfer.send(here / "mine", f"{server.location}/", channel=channel)
        with pytest.raises(errors.DeniedError):
            await pyroxfer.remove(f"{server.location}/there")
        await pyroxfer.get(f"{server.location}/there", here)
    async with FileServer(root, upload_only=True) as server:
        for call in (pyroxfer.get, pyroxfer.ls, pyroxfer.stat, pyroxfer.remove):
            with pytest.raises(errors.DeniedError, match="only takes files in"):
                await call(f"{server.location}/there")
        await pyroxfer.send(here / "mine", f"{server.location}/")
    assert (root / "mine").read_bytes() == DATA
    with pytest.raises(errors.AddressError):
        FileServer(root, read_only=True, upload_only=True)


async def test_small_files_with_a_wrong_digest_or_size_are_refused(talk: Conversation, root: Path) -> None:
    """Each file of a batch is judged by itself, by the receiver's own numbers."""
    good = Offer("good", 4, digest=digest_of(b"data", "blake3")).to_dict()
    offers = [
        {**good, "path": "a"},
        {**good, "path": "b", "size": 13},
        {**good, "path": "c", "digest": None},
        {**good, "path": "d", "if_exists": "perhaps"},
        good,
    ]
    data = b"date" + b"data and more" + b"data" + b"data" + b"data"
    results = (await talk.ask("put_files", offers, data, ["folder"], "test"))["results"]
    assert [result.get("error", {}).get("code") for result in results] == [
        "integrity", "integrity", "integrity", "peer", None, None,
    ]  # fmt: skip
    assert content(root) == ["folder", "good"]


@pytest.mark.parametrize("data", [b"", b"dat", b"data and more", None])
async def test_bytes_that_are_not_those_of_the_sizes_are_refused(
    talk: Conversation, root: Path, here: Path, data: bytes | None
) -> None:
    """Where one file ends and the next begins is known from their sizes alone, so nothing of such a call is taken."""
    offer = Offer("f", 4, digest=digest_of(b"data", "blake3")).to_dict()
    with pytest.raises(errors.PeerError):
        await talk.ask("put_files", [offer], data, ["folder"], "test")
    assert content(root) == []


async def test_a_server_that_gives_more_or_fewer_bytes_than_it_says_is_found_out(here: Path) -> None:
    end = {"size": 4, "digest": digest_of(b"data", "blake3"), "mode": 0o644, "mtime_ns": 0}
    answers: list[Any] = []

    @expose
    class Sly:
        async def hello(self) -> Any:
            return {"protocol": 1, "algorithms": ["blake3"]}

        async def about(self, path: str) -> Any:
            return {"entry": {"path": "f", "kind": "file", "size": 4, "mode": 0o644, "mtime_ns": 0}}

        async def get_files(self, paths: list[str], algorithm: str) -> Any:
            return {"results": [end], "data": answers.pop()}

    async with Daemon() as daemon:
        daemon.register(Sly(), "pyroxfer.files")
        for wrong in (b"", b"dat", b"data and more", None, "data"):
            answers.append(wrong)
            with pytest.raises(errors.PeerError):
                await pyroxfer.get(f"{daemon.location}/f", f"{here}/")
            assert content(here) == []
        answers.append(b"data")
        await pyroxfer.get(f"{daemon.location}/f", f"{here}/")
    assert content(here) == ["f"]


async def test_a_server_that_lies_about_a_small_file_is_found_out(
    server: FileServer, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from pyroxfer.small import read_small

    honest = read_small
    monkeypatch.setattr("pyroxfer.service.read_small", lambda *args: replace(honest(*args), data=b"other"))
    (root / "f").write_bytes(b"truth")
    with pytest.raises(errors.IntegrityError):
        await pyroxfer.get(f"{server.location}/f", here)
    assert content(here) == []


async def test_a_call_gives_a_bounded_number_of_bytes(talk: Conversation, root: Path) -> None:
    """However many names are asked for at once, the answer stays small enough for any receiver."""
    (root / "f").write_bytes(b"x" * 250_000)
    reply = await talk.ask("get_files", ["f"] * 100, "blake3")
    results = reply["results"]
    assert len(reply["data"]) == sum(result.get("size", 0) for result in results) < 5_000_000
    assert results[-1]["error"]["code"] == "peer"


# --- other servers ---------------------------------------------------------------------------------------------


@expose
class Other:
    """Some other object, or a file service that answers with rubbish."""

    def __init__(self, hello: Any) -> None:
        self._hello = hello

    async def hello(self) -> Any:
        return self._hello


@pytest.mark.parametrize(
    "hello", [None, 5, {}, {"protocol": 99}, {"protocol": 1}, {"protocol": 1, "algorithms": ["md5"]}, {"error": 5}]
)
async def test_a_server_that_is_no_file_service_of_ours_is_told_apart(here: Path, hello: Any) -> None:
    (here / "f").write_bytes(DATA)
    async with Daemon() as daemon:
        daemon.register(Other(hello), "pyroxfer.files")
        with pytest.raises(errors.PeerError):
            await pyroxfer.send(here / "f", f"{daemon.location}/")


async def test_a_daemon_without_the_object_is_told_apart(here: Path) -> None:
    (here / "f").write_bytes(DATA)

    @expose
    class Unrelated:
        def ping(self) -> str:
            return "pong"

    async with Daemon() as daemon:
        with pytest.raises(errors.PeerError):
            await pyroxfer.send(here / "f", f"{daemon.location}/")
        daemon.register(Unrelated(), "pyroxfer.files")
        with pytest.raises(errors.PeerError, match="not a file service"):
            await pyroxfer.send(here / "f", f"{daemon.location}/")


async def test_an_exception_of_another_program_is_one_of_ours(here: Path) -> None:
    """Whatever class a peer's method or stream fails with: a PeerError that says so, in every kind of call."""
    (here / "f").write_bytes(DATA)

    @expose
    class Failing:
        def __init__(self, at: str) -> None:
            self._at = at

        async def hello(self) -> Any:
            if self._at == "hello":
                raise ValueError("no \x1b[31mway")
            return {"protocol": 1, "algorithms": ["blake3"]}

        async def about(self, path: str) -> Any:
            return {"entry": {"path": path, "kind": "folder", "size": 0, "mode": 0, "mtime_ns": 0}}

        async def is_folder(self, path: str) -> Any:
            raise ZeroDivisionError("no way")

        async def walk(self, path: str, deep: bool) -> AsyncIterator[Any]:
            yield {"entries": []}
            raise OSError("no way")

    for at, said in (("hello", "ValueError"), ("later", "ZeroDivisionError")):
        async with Daemon() as daemon:
            daemon.register(Failing(at), "pyroxfer.files")
            with pytest.raises(errors.PeerError, match=said):
                await pyroxfer.send(here / "f", f"{daemon.location}/x")
    async with Daemon() as daemon:
        daemon.register(Failing(""), "pyroxfer.files")
        with pytest.raises(errors.PeerError, match="OSError"):
            await pyroxfer.ls(f"{daemon.location}/x")


@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_the_server_does_not_choose_the_name_here(here: Path, kind: str) -> None:
    """What was asked for decides what it is called: a server cannot slip another name into the folder."""

    @expose
    class Sly:
        async def hello(self) -> Any:
            return {"protocol": 1, "algorithms": ["blake3"]}

        async def about(self, path: str) -> Any:
            entry = {"path": "x/.bashrc", "kind": kind, "size": len(DATA), "mode": 0o755, "mtime_ns": 0}
            return {"entry": entry}

        async def walk(self, path: str, deep: bool) -> AsyncIterator[Any]:
            yield {"entries": [{"path": "f", "kind": "file", "size": len(DATA), "mode": 0o644, "mtime_ns": 0}]}

        async def get_files(self, paths: list[str], algorithm: str) -> Any:
            end = {"size": len(DATA), "digest": digest_of(DATA, algorithm), "mode": 0o644, "mtime_ns": 0}
            return {"results": [end], "data": DATA}

    async with Daemon() as daemon:
        daemon.register(Sly(), "pyroxfer.files")
        await pyroxfer.get(f"{daemon.location}/reports/may", f"{here}/")
    assert content(here) == ["may"]


# --- stock clients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack"])
async def test_plain_values_for_stock_clients(server: FileServer, root: Path, serializer: str) -> None:
    """list, stat, fetch and fetch_block need nothing of this package at the client."""
    (root / "f.bin").write_bytes(DATA * 100)
    (root / "d").mkdir()
    async with Proxy(server.uri, settings=Settings(serializer=serializer)) as proxy:
        assert [(entry["path"], entry["kind"]) for entry in await proxy.list()] == [
            ("d", "folder"),
            ("f.bin", "file"),
        ]
        assert (await proxy.stat("f.bin"))["size"] == len(DATA) * 100
        call = proxy.fetch_block("f.bin", 5, 7)
        assert await call == 7
        assert bytes(call.response_annotations["XFER"]) == (DATA * 100)[5:12]
        if serializer != "json":
            blocks = [item async for item in proxy.fetch("f.bin")]
            assert b"".join(_plain(block) for block in blocks) == DATA * 100
        for call in (proxy.list("../"), proxy.stat("nowhere"), proxy.fetch_block("d", 0, 5)):
            with pytest.raises(core_errors.PyroError, match=r"^\w+Error: "):
                await call


def _plain(block: Any) -> bytes:
    import serpent

    return bytes(serpent.tobytes(block))


async def test_blocks_that_nobody_reads_do_not_pile_up(
    talk: Conversation, server: FileServer, root: Path, random_bytes: Callable[[int], bytes]
) -> None:
    """Some are read from the file at once, the rest when the client reads at last, and all are right."""
    data, block = random_bytes(4 << 20), 1 << 20
    (root / "f").write_bytes(data)
    name = Ticket.from_dict((await talk.ask("open_download", "f", "blake3"))["ticket"]).transfer_id
    async with own_client(Uri(str(server.uri))) as client:
        asked = {number: client.invoke("get_annotated", name, number % 4 * block, block) for number in range(40)}
        await client.say(*asked.values())
        (peer,) = (peer for peer in server._daemon.peers if peer.address == address_of(client))
        await until(lambda: peer.room.held > block)
        with trio.move_on_after(0.1):
            await until(lambda: peer.room.held > ROOM)
        assert peer.room.held <= ROOM
        wanted = {request.seq: number % 4 * block for number, request in asked.items()}
        while wanted:
            answer = await client.expect(MessageType.RESULT)
            offset = wanted.pop(answer.seq)
            assert answer.annotations["XFER"] == data[offset : offset + block]


def address_of(client: OwnClient) -> str:
    """As the server says it."""
    return "{}:{}".format(*client.stream.socket.getsockname())
