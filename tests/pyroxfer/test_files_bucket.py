"""A file server on a bucket of a real S3 server: the promises of a folder, and what only a bucket can get wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from seaweeds import BUCKET, Seaweed

import pyroxfer
from pyroxfer import FileServer, errors
from pyroxfer.digest import digest_of
from pyroxfer.store import bucket as bucket_module
from pyroxfer.store.bucket import PART, Bucket
from pyroxfer.store.object import ObjectStore
from pyroxfer_core import errors as core_errors

MIB = 1024 * 1024
CHANNELS = ["iter", "annot", "raw"]
Settled = Callable[[], Awaitable[None]]
every_channel = pytest.mark.parametrize("channel", CHANNELS)


@pytest.fixture
def objects(seaweed: Seaweed, url: str) -> Callable[[], dict[str, int]]:
    """Every object below the prefix with its size, the hidden ones too."""
    prefix = url.removeprefix(f"s3://{BUCKET}/")

    def objects() -> dict[str, int]:
        pages = seaweed.client(BUCKET).list(prefix)
        return {meta["path"].removeprefix(f"{prefix}/"): meta["size"] for page in pages for meta in page}

    return objects


@pytest.fixture
async def server(url: str, tmp_path: Path) -> AsyncIterator[FileServer]:
    async with FileServer(url, state=tmp_path / "state") as running:
        yield running


@pytest.fixture
def store(url: str) -> Iterator[ObjectStore]:
    with contextlib.closing(ObjectStore(url)) as store:
        yield store


def put(store: ObjectStore, path: str, data: bytes, if_exists: str = "fail", mode: int = 0o644) -> str:
    staged = store.stage(path, len(data), mode)
    try:
        staged.write(0, memoryview(data))
        return staged.publish(len(data), if_exists, "data", 7)
    finally:
        staged.discard()


def read(store: ObjectStore, path: str) -> bytes:
    with open(store.open_file(path), "rb") as file:
        return file.read()


@every_channel
@pytest.mark.parametrize("size", [PART, 2 * PART + 7])
async def test_a_file_arrives_whole_both_ways(
    channel: str,
    size: int,
    server: FileServer,
    here: Path,
    settled: Settled,
    random_bytes: Callable[[int], bytes],
    seaweed: Seaweed,
    objects: Callable[[], dict[str, int]],
) -> None:
    """The receipt is that of a folder, mode and time included, and one object is all that is left."""
    data = random_bytes(size)
    (here / "a.bin").write_bytes(data)
    (here / "a.bin").chmod(0o750)
    os.utime(here / "a.bin", ns=(1, 1_234_567_890_123_456_789))
    sent = await pyroxfer.send(here / "a.bin", f"{server.location}/in/b.bin", channel=channel)
    got = await pyroxfer.get(f"{server.location}/in/b.bin", here / "c.bin", channel=channel)
    for receipt in (sent, got):
        assert isinstance(receipt, pyroxfer.Receipt)
        assert (receipt.size, receipt.digest, receipt.channel) == (size, digest_of(data, "blake3"), channel)
    assert (here / "c.bin").read_bytes() == data
    status = (here / "c.bin").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o750, 1_234_567_890_123_456_789)
    await settled()
    assert objects() == {"in/b.bin": size}
    assert seaweed.uploads(BUCKET) == []


@every_channel
async def test_what_stands_there_is_treated_as_asked(channel: str, server: FileServer, here: Path) -> None:
    """The table of ``if_exists``, small and in parts; equal bytes are ``already`` whatever was asked."""
    for size in (2000, PART + 1):
        place = f"{server.location}/{size}.bin"
        (here / "old").write_bytes(b"o" * size)
        (here / "new").write_bytes(b"n" * size)
        await pyroxfer.send(here / "old", place, channel=channel)
        again = await pyroxfer.send(here / "old", place, channel=channel)
        with pytest.raises(errors.ExistsError):
            await pyroxfer.send(here / "new", place, channel=channel)
        skipped = await pyroxfer.send(here / "new", place, channel=channel, if_exists="skip")
        renamed = await pyroxfer.send(here / "new", place, channel=channel, if_exists="rename")
        assert isinstance(again, pyroxfer.Receipt) and isinstance(skipped, pyroxfer.Receipt)
        assert isinstance(renamed, pyroxfer.Receipt)
        assert (again.reason, skipped.reason, renamed.path) == ("already", "skipped", f"{size} (1).bin")
        await pyroxfer.get(place, here / f"{size}.kept", channel=channel)
        assert (here / f"{size}.kept").read_bytes() == b"o" * size
        await pyroxfer.send(here / "new", place, channel=channel, if_exists="replace")
        await pyroxfer.get(place, here / f"{size}.replaced", channel=channel)
        assert (here / f"{size}.replaced").read_bytes() == b"n" * size


@every_channel
async def test_a_cut_upload_shows_nothing_and_is_resumed(
    channel: str,
    server: FileServer,
    here: Path,
    cut_line: Callable[..., Any],
    settled: Settled,
    random_bytes: Callable[[int], bytes],
    objects: Callable[[], dict[str, int]],
) -> None:
    """Nothing reaches the bucket before the commit; the next run goes on from the spool."""
    data = random_bytes(12 * MIB)
    (here / "a").write_bytes(data)
    relay = await cut_line(server.location, 9 * MIB, towards_server=True)
    with pytest.raises((errors.TransferError, core_errors.CommunicationError)):
        await pyroxfer.send(here / "a", f"{relay.location}/a", channel=channel)
    await settled()
    assert objects() == {}
    receipt = await pyroxfer.send(here / "a", f"{server.location}/a", channel=channel)
    assert isinstance(receipt, pyroxfer.Receipt)
    assert receipt.resumed > 0
    assert objects() == {"a": len(data)}


async def test_two_servers_of_one_bucket_are_one_to_their_clients(
    url: str,
    server: FileServer,
    here: Path,
    tmp_path: Path,
    cut_line: Callable[..., Any],
    settled: Settled,
    random_bytes: Callable[[int], bytes],
    objects: Callable[[], dict[str, int]],
) -> None:
    """What one has committed the other lists, gives, and calls ``already``; what one has only begun does not hinder
    the other, and is forgotten once it stands there."""
    data = random_bytes(PART + 3 * MIB)
    (here / "a").write_bytes(data)
    (here / "b").write_bytes(data[::-1])
    async with FileServer(url, state=tmp_path / "other") as other:
        await pyroxfer.send(here / "a", f"{server.location}/a")
        assert [entry.path for entry in await pyroxfer.ls(f"{other.location}/")] == ["a"]
        await pyroxfer.get(f"{other.location}/a", here / "back")
        assert (here / "back").read_bytes() == data
        again = await pyroxfer.send(here / "a", f"{other.location}/a")
        relay = await cut_line(server.location, 5 * MIB)
        with pytest.raises((errors.TransferError, core_errors.CommunicationError)):
            await pyroxfer.send(here / "b", f"{relay.location}/b")
        await settled()
        whole = await pyroxfer.send(here / "b", f"{other.location}/b")
        late = await pyroxfer.send(here / "b", f"{server.location}/b")
    assert isinstance(again, pyroxfer.Receipt) and isinstance(whole, pyroxfer.Receipt)
    assert isinstance(late, pyroxfer.Receipt)
    assert (again.reason, whole.resumed, late.reason) == ("already", 0, "already")
    assert objects() == {"a": len(data), "b": len(data)}
    assert not list((tmp_path / "state").rglob(".pyroxfer-*"))


@pytest.mark.parametrize("size", [1000, PART + 1])
def test_of_many_servers_at_one_name_one_wins(url: str, size: int, objects: Callable[[], dict[str, int]]) -> None:
    """Four servers publish different bytes under one name at once: one is whole, the others say it exists."""
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(contextlib.closing(ObjectStore(url))) for _ in range(4)]
        barrier, won = threading.Barrier(4), []

        def contend(number: int) -> None:
            barrier.wait()
            with contextlib.suppress(errors.ExistsError):
                put(stores[number], "one", bytes([number]) * size)
                won.append(number)

        threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert read(stores[0], "one") == bytes(won) * size
    assert objects() == {"one": size}


def test_a_failed_multipart_upload_is_aborted(
    store: ObjectStore, seaweed: Seaweed, objects: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spooled file ends early in the middle of an upload: no object, no open upload, the spool is still there."""
    real = bucket_module._read
    seen: list[bool] = []

    def failing(fd: int, length: int, offset: int) -> bytes:
        if offset >= 3 * PART:
            seen.append(seaweed.comes_to(BUCKET, 1))
            raise OSError(5, "broken")
        return real(fd, length, offset)

    monkeypatch.setattr(bucket_module, "_read", failing)
    staged = store.stage("a", 5 * PART, 0o644)
    os.truncate(staged.fd, 5 * PART)
    with pytest.raises(errors.TransferError, match="a: "):
        staged.publish(5 * PART, "fail", "data", None)
    assert staged.fd >= 0
    staged.discard()
    assert seen == [True]
    assert seaweed.comes_to(BUCKET, 0)
    assert objects() == {}


def test_what_is_too_large_for_a_copy_does_not_overwrite_either(
    store: ObjectStore, objects: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "MAX_COPY", PART)
    data = b"x" * (PART + 1)
    assert put(store, "big.bin", data) == "big.bin"
    with pytest.raises(errors.ExistsError):
        put(store, "big.bin", b"y" * len(data))
    assert put(store, "big.bin", b"y" * len(data), "rename") == "big (1).bin"
    assert read(store, "big.bin") == data
    assert objects() == {"big.bin": len(data), "big (1).bin": len(data)}


def test_a_store_that_ignores_conditions_is_not_trusted(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that overwrites although told not to: nothing is published, only ``replace`` still works."""
    monkeypatch.setattr(Bucket, "_copy_again", lambda *_: False)
    with pytest.raises(errors.TransferError, match="ignores If-None-Match"):
        put(store, "a", b"1")
    assert put(store, "a", b"1", "replace") == "a"
    assert [entry.path for entry in store.list("")] == ["a"]


def test_folders_are_what_keys_say(store: ObjectStore) -> None:
    """Made, listed, walked, removed as in a folder; hidden objects are not shown."""
    put(store, "top.txt", b"1")
    put(store, "d/e/f.txt", b"22", mode=0o600)
    store.make_folder("d/empty")
    assert [(entry.path, entry.kind, entry.size) for entry in store.list("")] == [
        ("d", "folder", 0),
        ("top.txt", "file", 1),
    ]
    assert [entry.path for entry in store.walk("")] == ["d", "top.txt", "d/e", "d/empty", "d/e/f.txt"]
    assert [entry.path for entry in store.walk("d")] == ["e", "empty", "e/f.txt"]
    entry = store.stat("d/e/f.txt")
    assert (entry.path, entry.kind, entry.size, entry.mode, entry.mtime_ns) == ("d/e/f.txt", "file", 2, 0o600, 7)
    assert store.stat("d/empty").kind == "folder"
    with pytest.raises(errors.ExistsError, match="not empty"):
        store.remove("d")
    store.remove("d/empty")
    store.remove("d/e/f.txt")
    for missing in ("d/empty", "d/e/f.txt", "d"):
        with pytest.raises(errors.NotFoundError):
            store.stat(missing)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda store: store.stage("top/below", 1, 0o644), errors.NameRefusedError),
        (lambda store: store.make_folder("top/below"), errors.NameRefusedError),
        (lambda store: store.make_folder("top"), errors.NameRefusedError),
        (lambda store: store.list("top"), errors.NameRefusedError),
        (lambda store: store.list("missing"), errors.NotFoundError),
        (lambda store: store.open_file("missing"), errors.NotFoundError),
        (lambda store: store.open_file("folder"), errors.DeniedError),
        (lambda store: store.remove(""), errors.DeniedError),
        (lambda store: store.stat("../other"), errors.NameRefusedError),
        (lambda store: store.stat(".pyroxfer-folder"), errors.NameRefusedError),
    ],
)
def test_what_makes_no_sense_is_refused(
    store: ObjectStore, action: Callable[[ObjectStore], object], error: type[Exception]
) -> None:
    put(store, "top", b"1")
    put(store, "folder/in", b"1")
    with pytest.raises(error):
        action(store)


async def test_trees_of_small_files_go_in_and_out(server: FileServer, here: Path) -> None:
    """Batches: each file has its receipt, folders are kept, a second run moves nothing, other bytes are not
    overwritten, and a file does not take the name of a folder."""
    (here / "tree" / "sub" / "empty").mkdir(parents=True)
    for number in range(30):
        (here / "tree" / "sub" / f"{number}.txt").write_bytes(b"%d" % number)
    assert len(await _receipts(pyroxfer.send(here / "tree", f"{server.location}/"))) == 30
    await pyroxfer.get(f"{server.location}/tree", here / "back")
    for path in (here / "tree").rglob("*"):
        copy = here / "back" / path.relative_to(here / "tree")
        assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()
    again = await _receipts(pyroxfer.send(here / "tree", f"{server.location}/"))
    assert {receipt.reason for receipt in again} == {"already"}
    (here / "tree" / "sub" / "3.txt").write_bytes(b"other")
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.send(here / "tree", f"{server.location}/")
    assert [type(error) for error in caught.value.failures.values()] == [errors.ExistsError]


def test_a_small_file_does_not_take_the_name_of_a_folder(store: ObjectStore) -> None:
    with store.whole_files() as whole:
        assert whole.put("d/a", b"1", 0o644, 7, "data") == "d/a"
        for path, error in (
            ("d", errors.ExistsError),
            ("d/a", errors.ExistsError),
            ("d/a/b", errors.NameRefusedError),
        ):
            with pytest.raises(error):
                whole.put(path, b"2", 0o644, 7, "data")
    assert read(store, "d/a") == b"1"


def test_a_bucket_has_no_links(store: ObjectStore) -> None:
    with pytest.raises(errors.DeniedError, match="no symbolic links"):
        store.make_link("a", "b", "fail")
    with pytest.raises(errors.DeniedError, match="no symbolic links"):
        store.read_link("a")


@pytest.mark.parametrize("name", ["100%.txt", "a#b?.txt", "~x", "%41", "a&b=c +d", "é🎉", '"q"[1]{2}|<3>^`'])
def test_names_stay_as_they_are(store: ObjectStore, name: str) -> None:
    put(store, f"{name}/{name}", name.encode())
    assert [entry.path for entry in store.walk("")] == [name, f"{name}/{name}"]
    assert read(store, f"{name}/{name}") == name.encode()


def test_an_object_replaced_while_it_is_read_is_found_out(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of two versions never make one file."""
    put(store, "a", b"1" * (3 * PART))
    real, replaced = Bucket._fetch_parts, []

    def late(bucket: Bucket, *args: Any) -> None:
        replaced.append(put(store, "a", b"2" * (3 * PART), "replace"))
        real(bucket, *args)

    monkeypatch.setattr(Bucket, "_fetch_parts", late)
    with pytest.raises(errors.SourceChangedError):
        store.open_file("a")
    assert replaced == ["a"]


def test_leftovers_of_killed_servers_are_removed(
    store: ObjectStore, objects: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hidden object is left alone for a day, and a file of a user for ever."""
    put(store, "keep", b"1")
    store._bucket.mark("d/.pyroxfer-0123456789abcdef")
    assert sum(store.clean_leftovers()) == 0
    monkeypatch.setattr("pyroxfer.store.object.LEFT_S", -10.0)
    assert sum(store.clean_leftovers()) == 1
    assert objects() == {"keep": 1}


@pytest.mark.parametrize(
    ("changed", "where", "code", "says"),
    [
        ({}, "s3://nothere", 3, "no such bucket"),
        ({}, "s3://X", 2, "expected s3://BUCKET/PREFIX"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, f"s3://{BUCKET}", 4, "check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, f"s3://{BUCKET}", 4, "check AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, f"s3://{BUCKET}", 5, "check AWS_ENDPOINT_URL"),
        ({"AWS_ALLOW_HTTP": "false"}, f"s3://{BUCKET}", 2, "AWS_ALLOW_HTTP=true"),
    ],
)
def test_what_an_operator_gets_wrong_is_one_line(
    url: str, changed: dict[str, str], where: str, code: int, says: str
) -> None:
    """The exit code of the error, and what to do about it."""
    done = subprocess.run(
        [sys.executable, "-m", "pyroxfer", "serve", where],
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert says in line


def test_a_quota_is_refused(url: str) -> None:
    """Nobody counts a bucket: a promise that could not be kept is not given."""
    with pytest.raises(errors.AddressError, match="no quota"):
        FileServer(url, quota=1)


def test_nobody_else_needs_the_extra(tmp_path: Path) -> None:
    """Importing imports no obstore; without it the command says what to install."""
    program = "import json, sys, pyroxfer, pyroxfer.cli.main; print(json.dumps('obstore' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) is False
    (tmp_path / "obstore.py").write_text("raise ImportError('not installed')\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pyroxfer", "serve", "s3://files"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'pyroxfer[s3]'" in done.stderr


async def test_memory_stays_within_the_parts(server: FileServer, here: Path, settled: Settled) -> None:
    """A file of 40 parts goes in and out; the process never grows by as much as half of it."""
    with (here / "big").open("wb") as file:
        for number in range(40):
            file.write(bytes([number]) * PART)
    before = _resident()
    peak = 0
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal peak
                while True:
                    peak = max(peak, _resident())
                    await trio.sleep(0.01)

            nursery.start_soon(watch)
            await pyroxfer.send(here / "big", f"{server.location}/big")
            await pyroxfer.get(f"{server.location}/big", here / "back")
            scope.cancel()
    assert (here / "back").stat().st_size == 40 * PART
    assert peak - before < 20 * PART


async def _receipts(sending: Awaitable[Any]) -> list[pyroxfer.Receipt]:
    receipts = await sending
    assert isinstance(receipts, list)
    return receipts


def _resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
