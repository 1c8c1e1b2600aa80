"""A folder served by several workers: whatever a transfer needs may arrive at any of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from certificates import Certificates
from doubles import until

import pyroxfer
from pyroxfer import FileServer, Progress, Receipt, errors, siblings
from pyroxfer.conversation import Conversation, open_conversation
from pyroxfer.digest import digest_of
from pyroxfer.grants import issuer_of
from pyroxfer.offer import End, Offer, Ticket
from pyroxfer.siblings import SiblingEnd
from pyroxfer.store.ledger import Ledger
from pyroxfer.store.local import LocalStore
from pyroxfer_core import Settings, Worker, expose, open_side_stream

MIB = 1024 * 1024
ORIGIN = "ab" * 16
RandomBytes = Callable[[int], bytes]
pytestmark = pytest.mark.deadline(120)


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What the workers share."""
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@asynccontextmanager
async def workers(root: Path, shared: Path, settings: Settings | None = None) -> AsyncIterator[list[FileServer]]:
    """Three workers, each with an address of its own, so that a test can choose."""
    async with AsyncExitStack() as stack:
        servers = [FileServer(root, worker=Worker(n, 3, shared, [listening()]), settings=settings) for n in range(3)]
        for server in servers:
            await stack.enter_async_context(server)
        yield servers


@pytest.fixture
async def three(root: Path, shared: Path) -> AsyncIterator[list[FileServer]]:
    async with workers(root, shared) as servers:
        yield servers


@pytest.fixture
async def talks(three: list[FileServer]) -> AsyncIterator[list[Conversation]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_conversation(server.uri, Settings())) for server in three]


class Switch:
    """One address: its first connection leads to the first worker, the others to the others in turn."""

    def __init__(self, servers: list[FileServer]) -> None:
        self._ports = [int(server.location.rpartition(":")[2]) for server in servers]
        self._came = 0
        self.location = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.location = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        port = self._ports[0 if self._came == 0 else 1 + self._came % 2]
        self._came += 1
        async with client, await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
                try:
                    while data := await source.receive_some(65536):
                        await target.send_all(data)
                    await target.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)


@pytest.fixture
async def switch(three: list[FileServer], nursery: trio.Nursery) -> Switch:
    found = Switch(three)
    await nursery.start(found.run)
    return found


async def opened(talk: Conversation, size: int, origin: str = "") -> Ticket:
    reply = await talk.ask("open_upload", Offer("f", size, durability="none", origin=origin).to_dict())
    return Ticket.from_dict(reply["ticket"])


async def committed(talk: Conversation, ticket: Ticket, data: bytes) -> Receipt:
    reply = await talk.ask("commit", ticket.transfer_id, len(data), digest_of(data, "blake3"), "iter", "test")
    return Receipt.from_dict(reply["receipt"])


# --- calls


async def test_every_call_about_an_upload_may_come_to_another_worker(
    talks: list[Conversation], root: Path, random_bytes: RandomBytes
) -> None:
    """Blocks in both ways, status, a further grant, the commit, and the commit again at the third."""
    first, second, third = talks
    data = random_bytes(2 * MIB)
    ticket = await opened(first, len(data))
    await second.ask("put_block", ticket.transfer_id, 0, data[:MIB])
    await third.ask_with("put_annotated", ticket.transfer_id, MIB, annotations={"XFER": data[MIB:]})
    assert (await second.ask("status", ticket.transfer_id))["received"] == len(data)
    assert issuer_of(bytes.fromhex(await third.grant(ticket.transfer_id))) == 0
    receipt = await committed(second, ticket, data)
    assert (root / "f").read_bytes() == data
    assert await committed(third, ticket, data) == receipt
    assert await committed(first, ticket, data) == receipt


async def test_every_call_about_a_download_may_come_to_another_worker(
    talks: list[Conversation], root: Path, random_bytes: RandomBytes
) -> None:
    """Digests, blocks beside calls, the stream of blocks, and the end."""
    data = random_bytes(3 * MIB)
    (root / "f").write_bytes(data)
    reply = await talks[0].ask("open_download", "f", "blake3")
    name = Ticket.from_dict(reply["ticket"]).transfer_id
    digests = (await talks[1].ask("compare", name, [[0, MIB]]))["digests"]
    assert digests == [digest_of(data[:MIB], "blake3")]
    _, annotations = await talks[1].ask_with("get_annotated", name, MIB, 1000)
    assert annotations["XFER"] == data[MIB : MIB + 1000]
    items = await talks[2].items("blocks", name)
    *blocks, end = [item async for item in items]
    assert b"".join(blocks) == data
    assert End.from_dict(end["end"]) == End(len(data), digest_of(data, "blake3"))
    with pytest.raises(errors.UnknownTransferError):
        await talks[1].ask("end_download", name)


async def test_what_ended_a_transfer_is_told_everywhere(talks: list[Conversation]) -> None:
    """An aborted one is over for all; one that never was is unknown to all."""
    ticket = await opened(talks[0], 3)
    await talks[1].ask("abort", ticket.transfer_id)
    for talk in talks:
        with pytest.raises(errors.PeerError, match="given up"):
            await talk.ask("status", ticket.transfer_id)
        with pytest.raises(errors.UnknownTransferError):
            await talk.ask("status", "00" * 16)


async def test_an_upload_is_taken_over_from_another_worker(
    talks: list[Conversation], root: Path, random_bytes: RandomBytes
) -> None:
    """What it brought is kept, its holder is told, and the new one commits."""
    data = random_bytes(6 * MIB)
    old = await opened(talks[0], len(data), origin=ORIGIN)
    for offset in range(0, 4 * MIB, MIB):
        await talks[0].ask("put_block", old.transfer_id, offset, data[offset : offset + MIB])
    new = await opened(talks[1], len(data), origin=ORIGIN)
    assert [run.end for run in new.kept] == [4 * MIB]
    with pytest.raises(errors.TakenOverError):
        await talks[0].ask("put_block", old.transfer_id, 4 * MIB, data[4 * MIB : 5 * MIB])
    await talks[1].ask("keep", new.transfer_id, [0])
    for offset, length in new.missing:
        for start in range(offset, offset + length, MIB):
            await talks[2].ask("put_block", new.transfer_id, start, data[start : min(start + MIB, offset + length)])
    assert (await committed(talks[1], new, data)).resumed == 4 * MIB
    assert (root / "f").read_bytes() == data
    assert os.listdir(root) == ["f"]


# --- side streams


async def test_all_workers_are_asked_to_let_go_at_the_same_time(
    three: list[FileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs costs its own time only: each answers here when the other has been asked, too."""
    asked: list[object] = []

    async def take_over(_: SiblingEnd, offer: object) -> bool:
        asked.append(offer)
        await until(lambda: len(asked) == 2)
        return True

    monkeypatch.setattr(SiblingEnd, "take_over", expose(take_over))
    monkeypatch.setattr(siblings, "LET_GO_S", 60.0)
    mine = three[0]._siblings
    assert mine is not None
    with trio.fail_after(30):
        assert await mine.take_over(Offer("f", 1))


@pytest.mark.parametrize("streams", [1, 4])
async def test_side_streams_go_on_in_the_worker_that_granted_them(
    three: list[FileServer], switch: Switch, root: Path, here: Path, random_bytes: RandomBytes, streams: int
) -> None:
    """A client whose further connections come to other workers moves files by the raw channel all the same."""
    data = random_bytes(20 * MIB)
    (here / "f").write_bytes(data)
    sent = await pyroxfer.send(str(here / "f"), f"{switch.location}/f", streams=streams)
    assert isinstance(sent, Receipt) and sent.channel == "raw"
    assert (root / "f").read_bytes() == data
    got = await pyroxfer.get(f"{switch.location}/f", str(here / "g"), streams=streams)
    assert isinstance(got, Receipt) and got.channel == "raw"
    assert (here / "g").read_bytes() == data


async def test_side_streams_under_tls_are_handed_over_too(
    certificates: Certificates,
    root: Path,
    shared: Path,
    here: Path,
    nursery: trio.Nursery,
    random_bytes: RandomBytes,
) -> None:
    """The worker with the keys goes on to encrypt."""
    client = certificates.settings()
    data = random_bytes(12 * MIB)
    (here / "f").write_bytes(data)
    async with workers(root, shared, certificates.settings()) as servers:
        switch = Switch(servers)
        await nursery.start(switch.run)
        place = switch.location.replace("127.0.0.1", "localhost")
        sent = await pyroxfer.send(str(here / "f"), f"{place}/f", settings=client, streams=2)
        assert isinstance(sent, Receipt) and sent.channel == "raw"
        got = await pyroxfer.get(f"{place}/f", str(here / "g"), settings=client)
        assert isinstance(got, Receipt) and got.channel == "raw"
        assert (here / "g").read_bytes() == (root / "f").read_bytes() == data


async def test_a_grant_is_good_once_in_all_workers(three: list[FileServer], talks: list[Conversation]) -> None:
    """Used at one worker it is void at the others, and forged ones are void everywhere."""
    ticket = await opened(talks[0], 3)
    token = bytes.fromhex(ticket.grant)
    async with await open_side_stream(three[1].uri, token) as stream:
        assert await stream.receive_exactly(4) == b"REDY"
        for server in three:
            async with await open_side_stream(server.uri, token) as again:
                assert await again.receive_some() == b""
    forged = bytes(len(token))
    async with await open_side_stream(three[2].uri, token[:40] + forged[40:]) as stream:
        assert await stream.receive_some() == b""


# --- space


def test_promises_of_other_processes_count_until_their_files_are_closed(tmp_path: Path) -> None:
    """A quota holds for all workers together: bytes of others that are promised, partial, committed, and removed."""
    root, shared = tmp_path / "root", tmp_path / "shared"
    root.mkdir()
    one, two = (LocalStore(root, quota=1000, ledger=Ledger(shared, number, 2)) for number in range(2))
    staged = one.stage("a", 700, 0o644)
    with pytest.raises(errors.NoSpaceError, match="300 of the quota"):
        two.stage("b", 400, 0o644)
    staged.write(0, memoryview(bytes(500)))
    with pytest.raises(errors.NoSpaceError, match="300 of the quota"):
        two.stage("b", 400, 0o644)
    staged.write(500, memoryview(bytes(200)))
    staged.publish(700, "fail", "none", None)
    with pytest.raises(errors.NoSpaceError, match="300 of the quota"):
        two.stage("b", 400, 0o644)
    one.remove("a")
    two.stage("b", 1000, 0o644).discard()


def test_promises_of_a_process_that_died_are_void(tmp_path: Path) -> None:
    """Its descriptors are gone, and so is what was promised to them."""
    root, shared = tmp_path / "root", tmp_path / "shared"
    root.mkdir()
    store = LocalStore(root, quota=1000, ledger=Ledger(shared, 0, 2))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from pyroxfer.store.ledger import Ledger; from pyroxfer.store.local import LocalStore\n"
        "store = LocalStore(sys.argv[1], quota=1000, ledger=Ledger(Path(sys.argv[2]), 1, 2))\n"
        "staged = store.stage('a', 900, 0o644); print('promised', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(shared)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"promised\n"
        with pytest.raises(errors.NoSpaceError, match="100 of the quota"):
            store.stage("b", 500, 0o644)
        process.kill()
        process.wait(60)
        store.stage("b", 500, 0o644).discard()


# --- as processes


@contextmanager
def serving(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``pyroxfer serve`` with two workers, and where."""
    command = [sys.executable, "-m", "pyroxfer", "serve", str(root), "--workers", "2", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r" at (\S+) ", process.stdout.readline())
        assert found is not None
        yield process, found[1]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return sorted(int(pid) for found in lists for pid in found.read_text().split())


def holder_of_partial(process: subprocess.Popen[str]) -> int:
    """The worker that has a partial file open."""
    for pid in workers_of(process):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if fd.is_symlink() and ".pyroxfer-" in os.readlink(fd):
                return pid
    raise AssertionError("nobody has one")


async def test_a_worker_killed_during_a_transfer_costs_nothing_that_was_kept(
    root: Path, here: Path, random_bytes: RandomBytes
) -> None:
    """The client is told that the same command goes on; it does at whatever worker, and the bytes are equal."""
    data = random_bytes(40 * MIB)
    (here / "f").write_bytes(data)
    with serving(root) as (process, place):
        victims: list[int] = []

        def kill_midway(event: Progress) -> None:
            if event.event == "progress" and list(root.glob(".pyroxfer-*.journal")) and not victims:
                victims.append(holder_of_partial(process))
                os.kill(victims[0], signal.SIGKILL)

        with pytest.raises((errors.TransferError, pyroxfer.errors.LostError)):
            await pyroxfer.send(str(here / "f"), f"{place}/f", progress=kill_midway, bwlimit=30 * MIB)
        assert victims
        receipt = await pyroxfer.send(str(here / "f"), f"{place}/f")
        assert isinstance(receipt, Receipt)
        assert receipt.resumed > 0
        assert (root / "f").read_bytes() == data
        assert os.listdir(root) == ["f"]
        await until(lambda: len(workers_of(process)) == 2 and victims[0] not in workers_of(process))
        process.terminate()
        assert process.wait(60) == 0


async def test_many_transfers_at_once_are_spread_and_all_arrive(
    root: Path, here: Path, random_bytes: RandomBytes
) -> None:
    """Eight senders, eight receivers: equal bytes, nothing left, and a name in the name server is not needed."""
    data = random_bytes(5 * MIB)
    (here / "f").write_bytes(data)
    with serving(root) as (_, place):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(pyroxfer.send, str(here / "f"), f"{place}/f{number}")
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(pyroxfer.get, f"{place}/f{number}", str(here / f"g{number}"))
        assert all((here / f"g{number}").read_bytes() == data for number in range(8))
        assert not list(root.rglob(".pyroxfer-*"))


# --- what they leave


DAY_S = 24 * 3600.0
LOOKS = {
    "alone": (None, False, [0, 90, 90 + DAY_S]),
    "first": (0, False, [0, 90, 90 + DAY_S]),
    "second": (1, False, []),
    "instead of one that died": (1, True, [0, 90]),
}


@pytest.mark.deadline(2 * DAY_S)  # of a clock that jumps
@pytest.mark.parametrize("who", LOOKS)
async def test_leftovers_are_looked_for_again_when_none_is_too_young_any_more(
    root: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, who: str
) -> None:
    """What was left a moment ago might still be taken up when a server or a worker takes the place of another."""
    looks: list[float] = []
    number, replaces, wanted = LOOKS[who]
    worker = None if number is None else Worker(number, 3, shared, [], replaces=replaces)

    async def look() -> None:
        looks.append(trio.current_time())

    server = FileServer(root)
    monkeypatch.setattr(server, "_worker", worker)
    monkeypatch.setattr(server, "_clean_once", look)
    begun = trio.current_time()
    with trio.move_on_after(1.5 * DAY_S):
        await server._clean_leftovers()
    server._let_go()
    assert [at - begun for at in looks] == wanted
