"""The rooted store: nothing leaves the root, nothing half-written is seen, nothing is overwritten unasked."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyroxfer import errors
from pyroxfer.names import PRIVATE_PREFIX
from pyroxfer.offer import FileEntry
from pyroxfer.store.beneath import open_beneath
from pyroxfer.store.local import LocalStore
from pyroxfer.store.rooted import open_root
from pyroxfer.store.staged import numbered


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How folders are opened: in one step, or one component at a time as where the kernel knows no better."""
    if request.param == "walk":
        monkeypatch.setattr("pyroxfer.store.rooted.open_beneath", lambda *_: None)
    return str(request.param)


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    with contextlib.closing(LocalStore(root)) as opened:
        yield opened


def put(store: LocalStore, path: str, data: bytes, if_exists: str = "fail", durability: str = "none") -> str:
    staged = store.stage(path, len(data), 0o644)
    try:
        staged.write(0, memoryview(data))
        return staged.publish(len(data), if_exists, durability, 1_000_000_000)
    finally:
        staged.discard()


def leftovers(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(f"{PRIVATE_PREFIX}*")]


@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_a_file_is_seen_only_when_published(store: LocalStore, root: Path, durability: str) -> None:
    staged = store.stage("a/b/c.txt", 5, 0o640)
    staged.write(0, memoryview(b"hello"))
    assert not (root / "a/b/c.txt").exists()
    assert store.list("a/b") == []
    assert staged.publish(5, "fail", durability, 1_500_000_000_000_000_000) == "a/b/c.txt"
    assert (root / "a/b/c.txt").read_bytes() == b"hello"
    assert (root / "a/b/c.txt").stat().st_mtime_ns == 1_500_000_000_000_000_000
    assert (root / "a/b/c.txt").stat().st_mode & 0o777 == 0o640
    staged.discard()
    assert leftovers(root) == []
    assert (root / "a/b/c.txt").exists()


def test_a_discarded_file_leaves_nothing(store: LocalStore, root: Path) -> None:
    staged = store.stage("x", 3, 0o644)
    staged.write(0, memoryview(b"abc"))
    staged.discard()
    staged.discard()
    assert os.listdir(root) == []


def test_nothing_is_overwritten_unless_asked(store: LocalStore, root: Path) -> None:
    put(store, "x.txt", b"old")
    with pytest.raises(errors.ExistsError):
        put(store, "x.txt", b"new")
    assert (root / "x.txt").read_bytes() == b"old"
    assert put(store, "x.txt", b"second", "rename") == "x (1).txt"
    assert put(store, "x.txt", b"third", "rename") == "x (2).txt"
    assert put(store, "x.txt", b"new", "replace") == "x.txt"
    assert (root / "x.txt").read_bytes() == b"new"
    assert (root / "x (1).txt").read_bytes() == b"second"
    assert leftovers(root) == []


def test_publishing_works_without_hard_links(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where link(2) is not possible, renameat2(2) keeps the promise not to overwrite."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("pyroxfer.store.staged.os.link", no_links)
    put(store, "x", b"old")
    with pytest.raises(errors.ExistsError):
        put(store, "x", b"new")
    assert (root / "x").read_bytes() == b"old"
    assert leftovers(root) == []


def put_whole(store: LocalStore, *files: tuple[str, bytes], durability: str = "none") -> list[str]:
    with store.whole_files() as whole:
        return [whole.put(path, data, 0o640, 1_500_000_000_000_000_000, durability) for path, data in files]


@pytest.fixture(params=["as it is", "no files without a name", "no links", "no /proc"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the system lets a whole file do before it has its name."""
    real = os.open

    def named_only(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no files without a name here")
        return real(path, flags, *args, **kwargs)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if request.param == "no files without a name":
        monkeypatch.setattr("pyroxfer.store.whole.os.open", named_only)
    elif request.param == "no links":
        monkeypatch.setattr("pyroxfer.store.whole.os.link", no_links)
    elif request.param == "no /proc":
        monkeypatch.setattr("pyroxfer.store.whole._knows_nameless_files", lambda: False)
    return str(request.param)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_a_whole_file_is_seen_only_when_it_is_whole(
    store: LocalStore, root: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system lets it do, it comes with mode and time, and overwrites nothing."""
    real, before = os.utime, []

    def watched(*args: Any, **kwargs: Any) -> None:
        before.append(sorted(set(os.listdir(root / "a")) - {Path(path).name for path in leftovers(root)}))
        real(*args, **kwargs)

    monkeypatch.setattr("pyroxfer.store.whole.os.utime", watched)
    assert put_whole(store, ("a/x", b"hello"), ("a/y", b""), durability=durability) == ["a/x", "a/y"]
    assert (before[0], before[-1]) == ([], ["x"])
    assert ((root / "a/x").read_bytes(), (root / "a/y").read_bytes()) == (b"hello", b"")
    status = (root / "a/x").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (1_500_000_000_000_000_000, 0o640)
    (root / "a/link").symlink_to("y")
    for name in ("a/x", "a/link"):
        with pytest.raises(errors.ExistsError):
            put_whole(store, (name, b"other"), durability=durability)
    assert ((root / "a/x").read_bytes(), (root / "a/y").read_bytes()) == (b"hello", b"")
    assert leftovers(root) == []


@pytest.mark.parametrize(("durability", "flush"), [("data", "fdatasync"), ("full", "fsync")])
def test_a_whole_file_has_a_name_when_it_is_flushed(
    store: LocalStore, root: Path, durability: str, flush: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system need not keep what nobody could find after a crash."""
    real, named = getattr(os, flush), []

    def watched(fd: int) -> None:
        named.append(len(leftovers(root)))
        real(fd)

    monkeypatch.setattr(f"pyroxfer.store.whole.os.{flush}", watched)
    put_whole(store, ("x", b"1"), durability=durability)
    assert named[0] == 1


@pytest.mark.usefixtures("system")
def test_a_whole_file_on_a_full_disk_leaves_nothing(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(os.listdir("/proc/self/fd"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("pyroxfer.store.whole.os.write", full)
    with pytest.raises(errors.NoSpaceError):
        put_whole(store, ("x", b"1"))
    assert os.listdir(root) == []
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_folder_is_never_replaced_by_a_file(store: LocalStore, root: Path) -> None:
    (root / "d").mkdir()
    for policy in ("fail", "replace"):
        with pytest.raises(errors.ExistsError):
            put(store, "d", b"x", policy)
    assert (root / "d").is_dir()
    assert leftovers(root) == []


def test_links_are_followed_neither_for_writing_nor_for_reading(
    store: LocalStore, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    with pytest.raises(errors.NameRefusedError):
        put(store, "link/new", b"x")
    with pytest.raises(errors.NameRefusedError):
        store.open_file("link/secret")
    with pytest.raises(errors.NameRefusedError):
        store.open_file("file")
    with pytest.raises(errors.NameRefusedError):
        store.list("link")
    with pytest.raises(errors.NameRefusedError):
        store.make_folder("link/new")
    put(store, "file", b"mine", "replace")
    assert (outside / "secret").read_text() == "secret"
    assert not (root / "file").is_symlink()
    assert os.listdir(outside) == ["secret"]


def test_a_folder_is_opened_in_one_step_or_by_walking(root: Path, tmp_path: Path) -> None:
    """openat2(2), which Linux has since 5.6, gives what is below and nothing else."""
    (root / "a/b").mkdir(parents=True)
    (root / "link").symlink_to("a")
    (root / "out").symlink_to(tmp_path)
    (root / "a/file").touch()
    top = open_root(root)
    fd = open_beneath(top, "a/b", os.O_RDONLY | os.O_DIRECTORY)
    assert fd is not None
    assert os.path.sameopenfile(fd, os.open(root / "a/b", os.O_RDONLY))
    for refused in ("..", "a/../..", str(root / "a"), "link/b", "link", "out", "missing", "a/file", "", "a/\udc80"):
        assert open_beneath(top, refused, os.O_RDONLY | os.O_DIRECTORY) is None


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    store = LocalStore(tmp_path / "alias")
    put(store, "x", b"1")
    assert (root / "x").read_bytes() == b"1"
    store.close()


def test_a_moving_link_never_leads_outside(store: LocalStore, root: Path, tmp_path: Path) -> None:
    """A neighbour swaps a folder for a link all the time; the sentinel outside is never touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "sub").mkdir()
    (root / "evil").symlink_to(outside)
    sub, evil = os.fsencode(root / "sub"), os.fsencode(root / "evil")
    libc = ctypes.CDLL(None)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            libc.renameat2(-100, sub, -100, evil, 2)  # AT_FDCWD, RENAME_EXCHANGE

    swapper = threading.Thread(target=swap)
    swapper.start()
    committed = refused = number = 0
    try:
        while number < 400 or ((not committed or not refused) and number < 20_000):
            number += 1
            try:
                put(store, f"sub/{number}", b"x")
                committed += 1
            except errors.TransferError:
                refused += 1
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(outside) == []
    assert committed
    assert refused


def test_devices_pipes_and_folders_are_not_sent(store: LocalStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(errors.TransferError):
            store.open_file(name)


def test_what_does_not_exist_is_not_found(store: LocalStore) -> None:
    for call in (store.open_file, store.stat, store.list, store.remove):
        with pytest.raises(errors.NotFoundError):
            call("nowhere/x")


def test_more_than_the_free_space_is_refused_before_the_first_byte(store: LocalStore, root: Path) -> None:
    with pytest.raises(errors.NoSpaceError):
        store.stage("big", 2**62, 0o644)
    assert os.listdir(root) == []


def test_a_full_disk_is_one_clear_error(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a write goes through, the rest meets a full disk."""
    real = os.pwrite
    calls = []

    def filling(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data[: len(data) // 2], offset)

    staged = store.stage("x", 10, 0o644)
    monkeypatch.setattr("pyroxfer.store.staged.os.pwrite", filling)
    with pytest.raises(errors.NoSpaceError):
        staged.write(0, memoryview(b"0123456789"))
    staged.discard()
    assert os.listdir(root) == []
    assert calls == [0, 5]


def test_walking_shows_everything_once_and_no_partial_files(store: LocalStore, root: Path) -> None:
    put(store, "a/x", b"12")
    put(store, "a/b/y", b"3")
    store.make_folder("empty/deep")
    (root / "l").symlink_to("a")
    staged = store.stage("a/partial", 1, 0o644)
    seen = [(entry.path, entry.kind, entry.size) for entry in store.walk("")]
    staged.discard()
    assert seen == [
        ("a", "folder", 0),
        ("empty", "folder", 0),
        ("l", "link", 0),
        ("a/b", "folder", 0),
        ("a/x", "file", 2),
        ("a/b/y", "file", 1),
        ("empty/deep", "folder", 0),
    ]
    assert [entry.path for entry in store.walk("a")] == ["b", "x", "b/y"]


def test_a_file_that_only_begins_like_a_partial_one_is_kept_and_seen(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the user's own is neither removed nor left out in silence; a folder does not stop the cleaning."""
    (root / f"{PRIVATE_PREFIX}notes").write_bytes(b"x")
    (root / f"{PRIVATE_PREFIX}0000000000000000").mkdir()
    (root / f"{PRIVATE_PREFIX}ffffffffffffffff").write_bytes(b"x")
    later = time.time() + 100
    monkeypatch.setattr("pyroxfer.store.leftovers.time.time", lambda: later)
    assert sum(store.clean_leftovers()) == 1
    assert sorted(os.listdir(root)) == [f"{PRIVATE_PREFIX}0000000000000000", f"{PRIVATE_PREFIX}notes"]
    assert [entry.path for entry in store.walk("")] == [f"{PRIVATE_PREFIX}notes"]


def test_times_beyond_those_that_travel_are_bounded(store: LocalStore, root: Path) -> None:
    """A file of the year 2300 does not make its folder unreadable."""
    put(store, "f", b"")
    os.utime(root / "f", (0, 10_413_792_000))
    for entry in (store.stat("f"), *store.list("")):
        assert FileEntry.from_dict(entry.to_dict()).mtime_ns == 2**63 - 1


def test_a_name_beyond_the_character_set_is_one_clear_error(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ascii_only(name: str, *_: object, **__: object) -> None:
        name.encode("ascii")

    monkeypatch.setattr(os, "stat", ascii_only)
    with pytest.raises(errors.NameRefusedError, match="UTF-8 locale"):
        store.stat("ü")


def test_listings_at_once_do_not_disturb_each_other(store: LocalStore, root: Path) -> None:
    """Every listing has a position of its own in the folder."""
    for number in range(300):
        (root / str(number)).touch()
    seen: list[int] = []

    def look() -> None:
        for _ in range(20):
            seen.append(len(store.list("")))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {300}


def test_a_name_that_is_not_text_is_reported_not_hidden(store: LocalStore, root: Path) -> None:
    (root / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    assert [(entry.path, entry.kind) for entry in store.list("")] == [("bad\\udcff", "unreadable")]


def test_leftovers_are_removed_when_their_owner_is_gone(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = store.stage("sub/x", 1, 0o644)
    (root / "sub" / f"{PRIVATE_PREFIX}deaddeaddeaddead").write_bytes(b"x")
    (root / f"{PRIVATE_PREFIX}deaddeaddeaddead").write_bytes(b"x")
    assert sum(store.clean_leftovers()) == 0
    later = time.time() + 100
    monkeypatch.setattr("pyroxfer.store.leftovers.time.time", lambda: later)
    assert sum(store.clean_leftovers()) == 2
    assert len(leftovers(root)) == 1
    alive.discard()
    assert leftovers(root) == []


def test_the_lock_of_a_young_partial_file_is_left_to_its_owner(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has just made it takes the lock without waiting: a look at it in that moment would leave it unlocked."""
    looked_at: list[int] = []
    monkeypatch.setattr("pyroxfer.store.leftovers.lock", looked_at.append)
    (root / f"{PRIVATE_PREFIX}deaddeaddeaddead").write_bytes(b"x")
    assert sum(store.clean_leftovers()) == 0
    assert not looked_at


def test_where_there_are_no_locks_a_partial_file_waits_a_day(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("pyroxfer.store.leftovers.lock", lambda _: None)
    (root / f"{PRIVATE_PREFIX}deaddeaddeaddead").write_bytes(b"x")
    for later, removed in ((23 * 3600, 0), (25 * 3600, 1)):
        monkeypatch.setattr("pyroxfer.store.leftovers.time.time", lambda later=later: now + later)
        assert sum(store.clean_leftovers()) == removed


def test_removing(store: LocalStore, root: Path) -> None:
    put(store, "d/x", b"1")
    with pytest.raises(errors.ExistsError):
        store.remove("d")
    store.remove("d/x")
    store.remove("d")
    with pytest.raises(errors.DeniedError):
        store.remove("")
    assert os.listdir(root) == []


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("file", "nowhere"):
        with pytest.raises(errors.AddressError):
            LocalStore(tmp_path / name)


def test_numbered_names_fit() -> None:
    assert numbered("a.tar.gz", 3) == "a.tar (3).gz"
    assert numbered("a." + "b" * 253, 3) == "a." + "b" * 249 + " (3)"
    assert numbered("plain", 1) == "plain (1)"
    long = numbered("é" * 127 + "x", 12)
    assert len(long.encode()) <= 255
    assert long.endswith(" (12)")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    path=st.text(st.characters(codec=None), max_size=40)
    | st.lists(st.sampled_from(["..", ".", "", "a", "b/", "\\", "/"]), max_size=8).map("/".join)
)
def test_whatever_the_name_nothing_appears_outside_the_root(root: Path, store: LocalStore, path: str) -> None:
    """Any text as a name is our error, or a file below the root that is found again."""
    before = sorted(os.listdir(root.parent))
    try:
        published = put(store, path, b"data", "replace")
    except errors.TransferError:
        pass
    else:
        assert (root / published).resolve().is_relative_to(root.resolve())
        assert (root / published).read_bytes() == b"data"
    assert sorted(os.listdir(root.parent)) == before
    assert leftovers(root) == []
