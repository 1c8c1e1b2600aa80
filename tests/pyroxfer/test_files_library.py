"""Events, bars, completion, and the library as an iterator and for programs without a loop."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import trio
from click.testing import CliRunner

import pyroxfer
from pyroxfer import FileServer, Progress, blocking, errors
from pyroxfer.cli.complete import remote
from pyroxfer.cli.main import main
from pyroxfer.progress import TqdmProgress

SCHEMA = json.loads((Path(__file__).parent.parent.parent / "docs" / "events.schema.json").read_text())
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """One command in this process; its exit code and events, each of which fits the schema."""
    done = CliRunner().invoke(main, [*map(str, arguments)])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    for event in events:
        CHECKER.validate(event)
    return done.exit_code, events


def test_every_event_fits_the_schema(root: Path, here: Path) -> None:
    """Sending and fetching, a tree with links and failures, a dry run, and an error that ends a run."""
    for folder in (here, root):
        (folder / "tree").mkdir()
        (folder / "tree" / "link").symlink_to("small")
        (folder / "tree" / "small").write_bytes(b"s")
        (folder / "tree" / "big").write_bytes(b"b" * 400_000)
        (folder / "tree" / "aux").write_bytes(b"trap")
    (root / "tree" / "aux").unlink()
    seen: set[str] = set()
    with blocking.serve(root) as server:
        place = server.location
        for code, words in (
            (10, ("send", here / "tree", f"{place}/new", "--links", "--dry-run")),
            (10, ("send", here / "tree", f"{place}/new")),
            (10, ("send", here / "tree", f"{place}/new2", "--links")),
            (0, ("get", f"{place}/tree", here / "back", "--links", "--dry-run")),
            (0, ("get", f"{place}/tree", here / "back", "--links")),
            (0, ("get", f"{place}/tree/big", here / "one", "--channel", "raw")),
            (3, ("get", f"{place}/nothing", here / "x")),
            (9, ("send", here / "tree" / "small", f"{place}/tree/big")),
        ):
            exit_code, events = run(*words, "--json")
            assert exit_code == code, words
            seen |= {event["event"] for event in events}
    assert seen == {one["title"] for one in SCHEMA["oneOf"]}


def test_the_schema_refuses_other_events() -> None:
    for event in ({}, {"event": "offer", "v": 1}, {"event": "progress", "v": 2, "done": 0, "total": 0}):
        assert not CHECKER.is_valid(event)


def test_the_bar_tells_resumed_bytes_apart_and_shows_large_files_of_many() -> None:
    """What was there already counts as done and not for the rate; one of many files has a bar while it moves."""
    terminal = Terminal()
    with TqdmProgress("tree", terminal) as bar:
        bar(Progress("offer", "tree", 2000, 0, 2000))
        bar(Progress("file", "f", 1000))
        bar(Progress("accept", "f", channel="raw", resumed=600))
        assert (bar._bar.initial, bar._bar.n) == (600, 600)
        assert "600 bytes resumed" in str(bar._bar.postfix)
        bar(Progress("progress", "f", 1000, 700, 2000, arrived=700))
        assert [one.n for one in bar._files.values()] == [700]
        bar(Progress("progress", "f", 1000, 1000, 2000, arrived=1000))
        assert not bar._files
        bar(Progress("progress", done=2000, total=2000))
        assert "verifying" in str(bar._bar.postfix)
        assert bar._bar.n < 2000
    assert "verifying" in terminal.getvalue()


async def test_the_shell_is_told_remote_names(server: FileServer, root: Path) -> None:
    """Folders with a slash; only what begins like the word; local words and dead servers do no harm."""
    (root / "sub").mkdir()
    for name in ("sub/report", "sub/result", "other"):
        (root / name).write_bytes(b"x")

    def ask(word: str) -> list[str]:
        context = click.Context(click.Command("get"))
        return [item.value for item in remote(context, click.Argument(["x"]), word) if item.type == "plain"]

    place = server.location
    for word, expected in {
        f"{place}/": [f"{place}/other", f"{place}/sub/"],
        f"{place}/su": [f"{place}/sub/"],
        f"{place}/sub/rep": [f"{place}/sub/report"],
        f"{place}/none/": [],
        "localhost:1/x": [],
        "./x": [],
        "x": [],
    }.items():
        assert await trio.to_thread.run_sync(ask, word) == expected


async def test_events_come_as_an_iterator(
    server: FileServer, root: Path, here: Path, random_bytes: Callable[[int], bytes]
) -> None:
    """All events in order, the result after them, and the transfer's own error out of the block."""
    (here / "f").write_bytes(random_bytes(700_000))
    async with pyroxfer.watch(pyroxfer.send, here / "f", f"{server.location}/f", channel="annot") as running:
        with pytest.raises(RuntimeError):
            _ = running.result
        events = [event.event async for event in running]
    assert (events[0], events[1], events[-1]) == ("offer", "accept", "commit")
    assert isinstance(running.result, pyroxfer.Receipt)
    assert running.result.size == 700_000
    with pytest.raises(errors.NotFoundError):
        async with pyroxfer.watch(pyroxfer.get, f"{server.location}/none", here / "x") as failing:
            async for _ in failing:
                pass


async def test_leaving_the_iterator_leaves_something_to_go_on_from(
    server: FileServer, root: Path, here: Path, random_bytes: Callable[[int], bytes], settled: Callable[[], Any]
) -> None:
    """Breaking off in the middle cancels; the next attempt takes up what has arrived."""
    (here / "f").write_bytes(random_bytes(8_000_000))
    target = f"{server.location}/f"
    async with pyroxfer.watch(pyroxfer.send, here / "f", target, channel="annot", bwlimit=4_000_000) as running:
        async for event in running:
            if event.done > 3_000_000:
                break
    assert not (root / "f").exists()
    await settled()
    receipt = await pyroxfer.send(here / "f", target)
    assert isinstance(receipt, pyroxfer.Receipt)
    assert receipt.resumed > 0
    assert (root / "f").read_bytes() == (here / "f").read_bytes()


def test_programs_without_a_loop(root: Path, here: Path) -> None:
    """Every blocking twin against a server in a thread of its own, which ends with its block."""
    (here / "f").write_bytes(b"hello")
    events: list[Progress] = []
    with blocking.serve(root) as server:
        place = server.location
        assert [one.action for one in blocking.plan_send(here / "f", f"{place}/f")] == ["move"]
        sent = blocking.send(here / "f", f"{place}/f", progress=events.append)
        assert [one.action for one in blocking.plan_get(f"{place}/f", here / "g")] == ["move"]
        got = blocking.get(f"{place}/f", here / "g")
        assert isinstance(sent, pyroxfer.Receipt)
        assert isinstance(got, pyroxfer.Receipt)
        assert sent.digest == got.digest
        assert [entry.path for entry in blocking.ls(place)] == ["f"]
        assert blocking.stat(f"{place}/f").size == 5
        blocking.remove(f"{place}/f")
    assert events[-1].event == "commit"
    assert not (root / "f").exists()
    with pytest.raises(errors.AddressError), blocking.serve(root / "none"):
        raise AssertionError("not reached")
