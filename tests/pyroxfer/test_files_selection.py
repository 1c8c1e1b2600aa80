"""What is taken of folders, links as links, modes and times of folders, and runs that change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyroxfer
from pyroxfer import FileServer, Progress, errors
from pyroxfer.links import check_link
from pyroxfer.offer import FileEntry
from pyroxfer.selection import Selection, read_list


def plant(folder: Path, tree: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in tree.items():
        if isinstance(value, dict):
            plant(folder / name, value)
        else:
            (folder / name).write_bytes(value)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


TREE = {
    "a.o": b"1",
    "a.c": b"2",
    "build": {"x": b"3", "keep.c": b"4"},
    "sub": {"b.o": b"5", "b.c": b"6"},
    "empty": {},
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a.c", "a.o", "build", "build/keep.c", "build/x", "empty", "sub", "sub/b.c", "sub/b.o"]),
        ({"exclude": ["*.o", "/build/"]}, ["a.c", "empty", "sub", "sub/b.c"]),
        ({"exclude": ["*"], "include": ["*.c"]}, ["a.c", "build", "build/keep.c", "sub", "sub/b.c"]),
        ({"include": ["/sub/"]}, ["sub", "sub/b.c", "sub/b.o"]),
        ({"only": ["sub", "a.c"]}, ["a.c", "sub", "sub/b.c", "sub/b.o"]),
        ({"only": ["./sub/", "a.c"], "exclude": ["*.o"]}, ["a.c", "sub", "sub/b.c"]),
        (
            {"exclude": ["*.o", "!b.o"]},
            ["a.c", "build", "build/keep.c", "build/x", "empty", "sub", "sub/b.c", "sub/b.o"],
        ),
    ],
)
async def test_the_selection_is_the_same_both_ways(
    server: FileServer, root: Path, here: Path, options: Any, expected: list[str]
) -> None:
    """Exactly what the patterns and lists pick arrives, sent or fetched, and a dry run says so before."""
    plant(here / "tree", TREE)
    plant(root / "source", TREE)
    planned = await pyroxfer.plan_send(here / "tree", f"{server.location}/there", **options)
    assert not (root / "there").exists()
    receipts = await pyroxfer.send(here / "tree", f"{server.location}/there", **options)
    assert names(root / "there") == expected
    assert isinstance(receipts, list)
    assert sorted(one.path for one in planned) == sorted(receipt.path for receipt in receipts)
    fetched = await pyroxfer.plan_get(f"{server.location}/source", here / "back", **options)
    assert not (here / "back").exists()
    await pyroxfer.get(f"{server.location}/source", here / "back", **options)
    assert names(here / "back") == expected
    assert sorted(one.path for one in fetched) == [name for name in expected if (here / "back" / name).is_file()]


@pytest.mark.parametrize("direction", ["send", "get"])
async def test_names_that_other_systems_take_for_one_are_told(
    server: FileServer, root: Path, here: Path, direction: str
) -> None:
    """Case and normal form, of files and of folders: warned of, or refused with all below them before a byte moves,
    as is punctuation that not every system takes; the same in a dry run."""
    twins = {"README": b"1", "readme": b"2", "caf\u00e9": b"3", "cafe\u0301": b"4", "Sub": {"x": b"5"}, "sub": {}}
    tree = {**twins, "a:b": b"6", "fine": b"7", "deep": {"what?": b"8"}}
    source, target = (here, root) if direction == "send" else (root, here)
    plant(source / "tree", tree)
    transfer, plan = getattr(pyroxfer, direction), getattr(pyroxfer, f"plan_{direction}")
    ends = [str(here / "tree"), f"{server.location}/to"] if direction == "send" else [f"{server.location}/tree", here]
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await transfer(*ends[:1], f"{ends[1]}{'' if direction == 'send' else '/to'}", names="portable")
    refused = [*twins, "Sub/x", "a:b", "deep/what?"]
    assert sorted(caught.value.failures) == sorted(refused)
    assert all(isinstance(error, errors.NameRefusedError) for error in caught.value.failures.values())
    assert names(target / "to") == ["deep", "fine"]
    planned = await plan(*ends[:1], f"{ends[1]}{'' if direction == 'send' else '/to2'}", names="portable")
    assert sorted(one.path for one in planned if one.action == "refuse") == sorted(refused)
    events: list[Progress] = []
    await transfer(*ends[:1], f"{ends[1]}{'' if direction == 'send' else '/all'}", progress=events.append)
    warned = {event.path for event in events if event.event == "warn"}
    assert len(warned) == 3
    assert warned < set(twins)


async def test_one_file_gets_a_portable_name_only_if_asked(server: FileServer, root: Path, here: Path) -> None:
    (here / "f").write_bytes(b"x" * 300_000)
    place = f"{server.location}/12:00"
    with pytest.raises(errors.NameRefusedError, match="':'"):
        await pyroxfer.send(here / "f", place, names="portable")
    await pyroxfer.send(here / "f", place)
    with pytest.raises(errors.NameRefusedError, match="':'"):
        await pyroxfer.get(place, here, names="portable")
    assert os.listdir(here) == ["f"]
    with pytest.raises(errors.AddressError, match="names cannot be"):
        await pyroxfer.get(place, here, names="odd")


async def test_a_listed_file_that_is_missing_is_a_failure(server: FileServer, here: Path) -> None:
    plant(here / "tree", TREE)
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.send(here / "tree", f"{server.location}/there", only=["a.c", "gone"])
    assert {path: type(error) for path, error in caught.value.failures.items()} == {"gone": errors.NotFoundError}
    for bad in (["/etc/passwd"], ["../x"]):
        with pytest.raises(errors.AddressError):
            await pyroxfer.send(here / "tree", f"{server.location}/there", only=bad)
    with pytest.raises(errors.AddressError):
        await pyroxfer.send(here / "tree" / "a.c", f"{server.location}/there", only=["a.c"])


async def test_a_dry_run_says_what_would_be_refused_and_skipped(server: FileServer, root: Path, here: Path) -> None:
    """Wanted, already there, different, and a name that is a trap: each is said, and nothing is changed."""
    plant(here / "tree", {"new": b"1", "same": b"2", "other": b"3", "aux": b"4"})
    plant(root / "tree", {"same": b"2", "other": b"!"})
    before = names(root)
    planned = await pyroxfer.plan_send(here / "tree", f"{server.location}/")
    actions = {one.path.removeprefix("tree/"): one.action for one in planned}
    assert actions == {"new": "move", "same": "already", "other": "refuse", "aux": "refuse"}
    skipping = await pyroxfer.plan_send(here / "tree", f"{server.location}/", if_exists="skip")
    assert {one.path: one.action for one in skipping}["tree/other"] == "skipped"
    (one,) = await pyroxfer.plan_get(f"{server.location}/tree/same", here / "tree" / "other")
    assert (one.action, type(one.error)) == ("refuse", errors.ExistsError)
    assert names(root) == before
    assert (root / "tree" / "other").read_bytes() == b"!"


async def test_folders_keep_their_modes_and_times(server: FileServer, root: Path, here: Path) -> None:
    """Also of folders that get files after they were made, and of the one that is named itself."""
    plant(here / "tree", {"sub": {"deep": {"f": b"x"}}, "empty": {}})
    for place, name in enumerate(["sub/deep", "sub", "empty", "."]):
        os.chmod(here / "tree" / name, 0o750)
        os.utime(here / "tree" / name, ns=(10**18 + place, 10**18 + place))
    await pyroxfer.send(here / "tree", f"{server.location}/there")
    await pyroxfer.get(f"{server.location}/there", here / "back")
    for name in ("sub/deep", "sub", "empty", "."):
        wanted = (here / "tree" / name).stat()
        for copy in (root / "there" / name, here / "back" / name):
            assert (copy.stat().st_mode, copy.stat().st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns), name


async def test_links_are_made_where_they_stay_inside(server: FileServer, root: Path, here: Path) -> None:
    """Asked for, links arrive as links; those that could lead out are refused by name, at either end."""
    tree = plant(here / "tree", {"a": b"1", "sub": {}})
    good = {"near": "a", "sub/up": "../a", "dangling": "nowhere"}
    bad = {"absolute": "/etc/passwd", "out": "../../secret", "through": "sub/../../x"}
    for name, text in {**good, **bad}.items():
        (tree / name).symlink_to(text)
    seen: list[Progress] = []
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.send(tree, f"{server.location}/there", links=True, progress=seen.append)
    assert set(caught.value.failures) == set(bad)
    assert {name: os.readlink(root / "there" / name) for name in good} == good
    assert not any((root / "there" / name).is_symlink() for name in bad)
    assert {event.path for event in seen if event.event == "link"} == set(good)
    (root / "there" / "evil").symlink_to("/etc/passwd")
    with pytest.raises(errors.SomeFilesFailedError) as caught:
        await pyroxfer.get(f"{server.location}/there", here / "back", links=True)
    assert set(caught.value.failures) == {"evil"}
    assert {name: os.readlink(here / "back" / name) for name in good} == good
    assert not (here / "back" / "evil").is_symlink()


async def test_a_link_in_the_way_is_treated_by_the_rules(server: FileServer, root: Path, here: Path) -> None:
    """Equal links are left, others fail, are skipped, replaced or numbered as asked."""
    tree = plant(here / "there", {})
    (tree / "l").symlink_to("new")
    there = plant(root / "there", {})
    (there / "l").symlink_to("old")
    place = f"{server.location}/"
    with pytest.raises(errors.SomeFilesFailedError):
        await pyroxfer.send(tree, place, links=True)
    await pyroxfer.send(tree, place, links=True, if_exists="skip")
    assert os.readlink(there / "l") == "old"
    await pyroxfer.send(tree, place, links=True, if_exists="rename")
    assert {path.name: os.readlink(path) for path in there.iterdir()} == {"l": "old", "l (1)": "new"}
    await pyroxfer.send(tree, place, links=True, if_exists="replace")
    assert os.readlink(there / "l") == "new"


@given(text=st.lists(st.sampled_from(["..", ".", "", "a", "b"]), min_size=1, max_size=7).map("/".join))
def test_an_allowed_link_never_leads_out(text: str) -> None:
    """Whatever is let through stays below the root, also when every name on its way is a link to the root's edge."""
    try:
        check_link("x/y/link", text)
    except errors.NameRefusedError:
        return
    assert not os.path.isabs(text)
    assert not os.path.normpath(os.path.join("x/y", text)).startswith("..")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    assert parts == sorted(parts, key=lambda part: part != ".."), "after a name nothing goes up"


def test_lists_of_files_are_read_by_line_or_by_nul() -> None:
    assert read_list(b"a\nb c\r\n\n") == ["a", "b c"]
    assert read_list(b"a\nb\0c\0") == ["a\nb", "c"]
    with pytest.raises(errors.AddressError):
        read_list(b"\xff")
    assert Selection(only=["x/y/"]).picks(FileEntry("x/y/z", "file"))
    with pytest.raises(errors.AddressError):
        Selection(exclude=["/!", "**a\\"])


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyroxfer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=60)


@pytest.mark.deadline(120)
async def test_the_command_takes_patterns_and_lists(server: FileServer, root: Path, here: Path) -> None:
    """Patterns, a list on standard input and a dry run from the command line; exit 10 when some would be refused."""
    import trio

    plant(here / "tree", {**TREE, "aux": b"trap"})
    place = f"{server.location}/there"
    send = [here / "tree", place, "--exclude", "*.o", "--dry-run"]
    done = await trio.to_thread.run_sync(lambda: run("send", *send, "--json"))
    plans = [json.loads(line) for line in done.stdout.splitlines() if '"plan"' in line]
    assert done.returncode == 10
    assert {plan["path"]: plan["action"] for plan in plans} == {
        "there/a.c": "move",
        "there/aux": "refuse",
        "there/build/keep.c": "move",
        "there/build/x": "move",
        "there/sub/b.c": "move",
    }
    assert not (root / "there").exists()
    done = await trio.to_thread.run_sync(
        lambda: run("send", here / "tree", place, "--files-from", "-", "-q", stdin="a.c\nsub/b.c\n")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert names(root / "there") == ["a.c", "sub", "sub/b.c"]
