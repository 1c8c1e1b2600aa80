"""Whole folders: everything arrives, nothing else does, and each failure is told by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyroxfer
from pyroxfer import FileServer, Progress, errors
from pyroxfer.many import WORKERS, work_off
from pyroxfer.offer import FileEntry
from pyroxfer.small import BATCH_BYTES, BATCH_FILES, SMALL, batch_limits, batches

Leftovers = Callable[..., list[str]]
NAMES = st.sampled_from(["a", "b c", "ü", ".h", "z" * 60])
CONTENTS = st.binary(max_size=50) | st.sampled_from([SMALL, SMALL + 1])
TREES = st.recursive(CONTENTS, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)


def plant(folder: Path, tree: Any) -> None:
    """Make a tree of dictionaries and bytes, or numbers of bytes, on the disk."""
    for name, value in tree.items():
        if isinstance(value, dict):
            (folder / name).mkdir()
            plant(folder / name, value)
        else:
            (folder / name).write_bytes(b"x" * value if isinstance(value, int) else value)


def picture(folder: Path) -> dict[str, Any]:
    """What is on the disk: content, mode and time of each file, and the folders."""
    seen: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(folder))
        seen[name] = "folder" if path.is_dir() else (path.read_bytes(), status.st_mode, status.st_mtime_ns)
    return seen


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(tree=st.dictionaries(NAMES, TREES, max_size=4))
@pytest.mark.deadline(120)
async def test_any_tree_goes_there_and_back_unchanged(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Contents, modes, times and empty folders survive the round trip."""
    work = tmp_path_factory.mktemp("tree")
    root = make(work / "root")
    plant(make(work / "tree"), tree)
    async with pyroxfer.serve(root) as server:  # an async fixture would live for the first example only
        sent = await pyroxfer.send(work / "tree", f"{server.location}/there", durability="none")
        assert picture(root / "there") == picture(work / "tree")
        got = await pyroxfer.get(f"{server.location}/there", work / "back", durability="none")
    assert picture(work / "back") == picture(work / "tree")
    assert isinstance(sent, list)
    assert isinstance(got, list)
    assert [(receipt.size, receipt.digest) for receipt in sent] == [(receipt.size, receipt.digest) for receipt in got]


@pytest.mark.parametrize("channel", ["auto", "iter", "annot", "raw"])
async def test_every_channel_moves_trees(server: FileServer, root: Path, here: Path, channel: str) -> None:
    tree = {"a": b"1", "empty": {}, "sub": {"big": b"b" * 700_000, "none": b"", "deep": {"x": b"y" * 70_000}}}
    plant(make(here / "tree"), tree)
    receipts = await pyroxfer.send(here / "tree", f"{server.location}/", channel=channel)
    await pyroxfer.get(f"{server.location}/tree", make(here / "back"), channel=channel)
    assert picture(root / "tree") == picture(here / "back" / "tree") == picture(here / "tree")
    assert isinstance(receipts, list)
    assert [receipt.path for receipt in receipts] == ["tree/a", "tree/sub/big", "tree/sub/deep/x", "tree/sub/none"]
    if channel != "auto":
        assert {receipt.channel for receipt in receipts} == {channel}


async def test_many_small_files_travel_in_few_calls(
    server: FileServer, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 000 files: a handful of calls each way."""
    from pyroxfer.conversation import Conversation

    plant(make(here / "tree"), {f"f{number}": bytes([number % 256]) * number for number in range(2000)})
    real, calls = Conversation.ask, []

    async def counting(talk: Conversation, method: str, *args: object) -> Any:
        calls.append(method)
        return await real(talk, method, *args)

    monkeypatch.setattr(Conversation, "ask", counting)
    await pyroxfer.send(here / "tree", f"{server.location}/", durability="none")
    await pyroxfer.get(f"{server.location}/tree", here / "back", durability="none")
    assert picture(here / "back") == picture(here / "tree")
    assert len(calls) <= 13


async def test_links_are_left_out_with_a_warning(server: FileServer, root: Path, here: Path) -> None:
    plant(make(here / "tree"), {"a": b"1"})
    (here / "secret").write_bytes(b"s")
    (here / "tree" / "link").symlink_to("../secret")
    (here / "tree" / "folder").symlink_to("..")
    os.mkfifo(here / "tree" / "pipe")
    seen: list[Progress] = []
    await pyroxfer.send(here / "tree", f"{server.location}/", progress=seen.append)
    assert list(picture(root / "tree")) == ["a"]
    assert [event.path for event in seen if event.event == "warn"] == ["folder", "link", "pipe"]
    (root / "tree" / "out").symlink_to("/etc/passwd")
    seen.clear()
    await pyroxfer.get(f"{server.location}/tree", here / "back", progress=seen.append)
    assert list(picture(here / "back")) == ["a"]
    assert [event.path for event in seen if event.event == "warn"] == ["out"]


@pytest.mark.parametrize("channel", ["auto", "annot"])
async def test_one_bad_file_does_not_stop_the_others(
    server: FileServer, root: Path, here: Path, channel: str, leftovers: Leftovers
) -> None:
    """What failed is named with its reason; the rest is committed; exit code 10."""
    plant(make(here / "tree"), {"a": b"1", "b": b"2", "aux": b"device", "z": {"c": b"3"}})
    (here / "tree" / os.fsdecode(b"\xff")).write_bytes(b"x")
    plant(make(root / "tree"), {"b": b"other"})
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.send(here / "tree", f"{server.location}/", channel=channel)
    failures = {path: type(error) for path, error in caught.value.failures.items()}
    assert failures == {
        "b": errors.ExistsError,
        "aux": errors.NameRefusedError,
        "\\udcff": errors.DeniedError,
    }
    assert sorted(receipt.path for receipt in caught.value.receipts) == ["tree/a", "tree/z/c"]
    assert (root / "tree" / "b").read_bytes() == b"other"
    assert not leftovers(root)


@pytest.mark.parametrize("channel", ["auto", "annot"])
async def test_one_bad_file_does_not_stop_the_others_on_the_way_back(
    server: FileServer, root: Path, here: Path, channel: str
) -> None:
    plant(make(root / "tree"), {"a": b"1", "trap.": b"2", "b": b"3"})
    plant(make(here / "back"), {"b": b"other"})
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.get(f"{server.location}/tree/", here / "back", channel=channel, if_exists="fail")
    del caught
    assert (here / "back" / "tree" / "a").read_bytes() == b"1"


async def test_a_second_run_moves_nothing(server: FileServer, root: Path, here: Path) -> None:
    plant(make(here / "tree"), {"a": b"1", "big": b"b" * 200_000})
    await pyroxfer.send(here / "tree", f"{server.location}/")
    again = await pyroxfer.send(here / "tree", f"{server.location}/")
    assert isinstance(again, list)
    assert {receipt.reason for receipt in again} == {"already"}


async def test_targets_mean_what_they_mean_for_cp(server: FileServer, root: Path, here: Path) -> None:
    """A folder that exists or a trailing slash is gone into; anything else is the new name."""
    plant(here, {"f": b"1", "t": {"x": b"2"}})
    plant(root, {"d": {}})
    place = server.location
    await pyroxfer.send(here / "f", place)
    await pyroxfer.send(here / "f", f"{place}/d")
    await pyroxfer.send(here / "f", f"{place}/new/")
    await pyroxfer.send(here / "f", f"{place}/g")
    await pyroxfer.send(here / "t", f"{place}/d")
    await pyroxfer.send(here / "t", f"{place}/u")
    await pyroxfer.send([here / "f", here / "t"], f"{place}/both/")
    names = {name for name, value in picture(root).items() if value != "folder"}
    assert names == {"f", "d/f", "new/f", "g", "d/t/x", "u/x", "both/f", "both/t/x"}
    with pytest.raises(errors.AddressError):
        await pyroxfer.send([here / "f", here / "t"], f"{place}/nowhere")
    with pytest.raises(errors.ExistsError, match="is a file at the server, and a folder is sent"):
        await pyroxfer.send(here / "t", f"{place}/f")


async def test_local_targets_mean_what_they_mean_for_cp(server: FileServer, root: Path, here: Path) -> None:
    plant(root, {"f": b"1", "t": {"x": b"2"}})
    plant(here, {"d": {}, "file": b"0"})
    place = server.location
    await pyroxfer.get(f"{place}/f", here / "d")
    await pyroxfer.get(f"{place}/f", f"{here}/new/")
    await pyroxfer.get(f"{place}/f", here / "g")
    await pyroxfer.get(f"{place}/t", here / "d")
    await pyroxfer.get(f"{place}/t", here / "u")
    await pyroxfer.get([f"{place}/f", f"{place}/t"], f"{here}/both/")
    await pyroxfer.get(place, here / "all")
    names = {name for name, value in picture(here).items() if value != "folder"}
    assert names == {"file", "d/f", "new/f", "g", "d/t/x", "u/x", "both/f", "both/t/x", "all/f", "all/t/x"}
    with pytest.raises(errors.AddressError):
        await pyroxfer.get([f"{place}/f", f"{place}/t"], here / "file")
    with pytest.raises(errors.ExistsError):
        await pyroxfer.get(f"{place}/t", here / "file")


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_a_folder_that_was_begun_is_gone_on_with(
    server: FileServer, root: Path, here: Path, direction: str
) -> None:
    """A run that ends in the middle says how: without a word the next one would put the folder into what is there."""
    plant(here if direction == "send" else root, {"t": {"deep": {"a": b"1", "bad:name": b"2"}, "b": b"3"}})
    begun = (root if direction == "send" else here) / "new"
    ends = (here / "t", f"{server.location}/new") if direction == "send" else (f"{server.location}/t", here / "new")
    transfer, plan = getattr(pyroxfer, direction), getattr(pyroxfer, f"plan_{direction}")
    told: list[str] = []
    with pytest.raises(errors.SomeFilesFailedError):
        await transfer(*ends, names="portable", progress=lambda event: told.append(event.text))
    assert "is not whole yet; the same command with -T goes on" in told
    planned = await plan(*ends, exact=True)
    assert sorted(one.action for one in planned) == ["already", "already", "move"]
    await transfer(*ends, exact=True)
    found = sorted(str(path.relative_to(begun)) for path in begun.rglob("*"))
    assert found == ["b", "deep", "deep/a", "deep/bad:name"]
    with pytest.raises(errors.AddressError, match="-T"):
        await transfer([ends[0], f"{ends[0]}/b"], ends[1], exact=True)
    with pytest.raises(errors.ExistsError):
        await transfer(f"{ends[0]}/b", ends[1], exact=True)
    await transfer(*ends)
    assert (begun / "t" / "b").exists()


async def test_of_two_things_with_one_name_none_takes_the_place_of_the_other(
    server: FileServer, root: Path, here: Path
) -> None:
    """Nothing moves, whatever is to be done with what exists; one that is named twice is one."""
    for folder in (root, here):
        for name in ("a/x", "b/x"):
            (folder / name).parent.mkdir()
            (folder / name).write_text(name)
    there, sources = f"{server.location}/to/", [here / "a" / "x", here / "b" / "x"]
    addresses = [f"{server.location}/a/x", f"{server.location}/b/x"]
    for transfer, arguments in (
        (pyroxfer.send, (sources, there)),
        (pyroxfer.plan_send, (sources, there)),
        (pyroxfer.get, (addresses, f"{here}/to/")),
        (pyroxfer.plan_get, (addresses, f"{here}/to/")),
    ):
        with pytest.raises(errors.AddressError, match="are called 'x'"):
            await transfer(*arguments, if_exists="replace")
    assert not (root / "to").exists()
    assert not (here / "to").exists()
    await pyroxfer.send([here / "a" / "x"] * 2, there)
    assert (root / "to" / "x").read_text() == "a/x"


async def test_of_several_things_the_good_ones_arrive(server: FileServer, root: Path, here: Path) -> None:
    """Files and folders named together: one that fails does not stop the next, and all failures are told."""
    plant(here, {"a": b"1", "b": b"2", "t": {"x": b"3", "y": b"4"}})
    plant(root, {"b": b"other", "t": {"x": b"other"}})
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.send([here / "b", here / "t", here / "a"], server.location)
    assert sorted(receipt.path for receipt in caught.value.receipts) == ["a", "t/y"]
    assert len(caught.value.failures) == 2
    place = server.location
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.get([f"{place}/missing", f"{place}/a", f"{place}/t"], f"{here}/back/")
    assert sorted(receipt.path for receipt in caught.value.receipts) == ["a", "t/x", "t/y"]
    assert [type(error) for error in caught.value.failures.values()] == [errors.NotFoundError]


def test_batches_keep_order_and_limits() -> None:
    entries = [FileEntry(str(number), "file", size) for number, size in enumerate([0] * 600 + [SMALL] * 40)]
    packed = list(batches(entries))
    assert [entry for batch in packed for entry in batch] == entries
    assert all(len(batch) <= BATCH_FILES and sum(entry.size for entry in batch) <= BATCH_BYTES for batch in packed)
    assert [len(batch) for batch in packed] == [512, 104, 16, 8]
    assert list(batches([])) == []
    assert all(sum(entry.size for entry in batch) <= 3 * SMALL for batch in batches(entries, 3 * SMALL))


def test_a_long_line_and_a_disk_that_flushes_have_more_under_way() -> None:
    near, far = batch_limits(0.0001, "none"), batch_limits(0.1, "none")
    assert far == batch_limits(0.1, "data") == (BATCH_BYTES, WORKERS)
    assert near < batch_limits(0.0001, "full") < far
    assert near[1] >= 2, "one is on the line while another is read"


async def test_no_more_jobs_are_under_way_than_may_be(autojump_clock: object) -> None:
    under_way, most = 0, 0

    async def job() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(1)
        under_way -= 1

    for at_once in (2, 4):
        most = 0
        await work_off([job] * 7, at_once)
        assert most == at_once
