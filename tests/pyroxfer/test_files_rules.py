"""Rules by identity and path, quotas and promised space, links that are swapped in, and hostile names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyroxfer
from pyroxfer import FileServer, errors
from pyroxfer.conversation import open_conversation
from pyroxfer.names import split_path
from pyroxfer.offer import Offer
from pyroxfer.rules import Rule, Rules
from pyroxfer.store.local import LocalStore
from pyroxfer.store.space import Space
from pyroxfer_core import Settings, Tokens

TOKENS = {"alice": "a-token-of-alice-0", "bob": "b-token-of-bob-000"}
RULES = ("*:public:read", "alice::write", "alice:frozen:read", "bob:public/bob:write", "bob:public/secret:none")
RACE = Path(__file__).parent.parent.parent / "scripts" / "swapslib" / "race.py"


def test_the_longest_path_decides_and_a_name_before_everybody() -> None:
    """A table of callers, paths and levels."""
    rules = Rules([Rule.parse(text) for text in RULES])
    table = {
        ("alice", "x/y"): "write",
        ("alice", "frozen/y"): "read",
        ("alice", "public/x"): "read",
        ("bob", "public/x"): "read",
        ("bob", "public/bob"): "write",
        ("bob", "public/bobby"): "read",
        ("bob", "public/secret/x"): "none",
        ("bob", "x"): "none",
        (None, "public"): "read",
        (None, "x"): "none",
        ("*", "x"): "none",
    }
    assert {(who, path): rules.of(who).level(split_path(path)) for who, path in table} == table
    assert rules.of(None).sees(())
    assert not Rules([]).of("alice").sees(())
    for bad in ("alice", "alice:x", "alice:x:all", ":x:read", "alice:../x:read"):
        with pytest.raises(errors.AddressError):
            Rule.parse(bad)


async def test_callers_do_what_the_rules_let_them(root: Path, here: Path) -> None:
    """Sent, fetched, listed and removed over the wire, by token, in both ways that files travel."""
    (here / "f").write_bytes(b"small")
    (here / "big").write_bytes(b"b" * 400_000)
    for name in ("public/bob", "public/secret", "private"):
        (root / name).mkdir(parents=True)
    (root / "private" / "f").write_bytes(b"p")
    (root / "public" / "secret" / "s").write_bytes(b"s")
    settings = Settings(tokens=Tokens(TOKENS))
    bob, alice = (Settings(token=TOKENS[name]) for name in ("bob", "alice"))
    async with pyroxfer.serve(root, rules=RULES, settings=settings) as server:
        place = server.location
        for name in ("f", "big"):
            await pyroxfer.send(here / name, f"{place}/public/bob/", settings=bob)
            await pyroxfer.send(here / name, f"{place}/", settings=alice)
            for target in ("", "public/", "private/"):
                with pytest.raises(errors.DeniedError):
                    await pyroxfer.send(here / name, f"{place}/{target}x", settings=bob)
        with pytest.raises(errors.DeniedError):
            await pyroxfer.get(f"{place}/private/f", here / "got", settings=bob)
        with pytest.raises(errors.DeniedError):
            await pyroxfer.remove(f"{place}/public/x", settings=bob)
        assert [entry.path for entry in await pyroxfer.ls(f"{place}/", settings=bob)] == ["public"]
        await pyroxfer.get(f"{place}/public", here / "copy", settings=bob)
        found = sorted(str(path.relative_to(here / "copy")) for path in (here / "copy").rglob("*"))
        assert found == ["bob", "bob/big", "bob/f"]
        with pytest.raises(errors.DeniedError):
            await pyroxfer.plan_send(here / "f", f"{place}/private/x", settings=bob)
        (planned,) = await pyroxfer.plan_send(here / "f", f"{place}/public/x", settings=bob)
        assert planned.action == "refuse"
        async with open_conversation(server.uri, alice) as hers, open_conversation(server.uri, bob) as his:
            offer = Offer("public/bob/x", 5).to_dict()
            await his.ask("open_upload", offer)
            with pytest.raises(errors.DeniedError, match="rules"):
                await hers.ask("open_upload", offer)
            assert (await his.ask("status", offer["transfer_id"]))["received"] == 0
        await pyroxfer.remove(f"{place}/f", settings=alice)
        assert not (root / "f").exists()


async def test_a_quota_is_known_before_the_first_byte(root: Path, here: Path) -> None:
    """What does not fit is refused before it moves, small or large; removing makes room again; exit code 8."""
    (root / "old").write_bytes(b"o" * 500_000)
    (here / "big").write_bytes(b"b" * 600_000)
    (here / "small").write_bytes(b"s" * 100_000)
    async with pyroxfer.serve(root, quota=1_000_000) as server:
        place = server.location
        with pytest.raises(errors.NoSpaceError) as caught:
            await pyroxfer.send(here / "big", f"{place}/big")
        assert "of the quota are left" in str(caught.value)
        for name in "abcde":
            await pyroxfer.send(here / "small", f"{place}/{name}")
        with pytest.raises(errors.NoSpaceError):
            await pyroxfer.send(here / "small", f"{place}/f")
        await pyroxfer.remove(f"{place}/old")
        await pyroxfer.send(here / "small", f"{place}/f")
        assert not list(root.rglob(".pyroxfer-*"))


async def test_a_folder_that_cannot_fit_is_refused_as_a_whole(root: Path, here: Path) -> None:
    """Before its first file, sent or planned; what stands there already, and what is left out, is not counted."""
    (here / "tree").mkdir()
    for number in range(5):
        (here / "tree" / f"{number}").write_bytes(b"%d" % number * 300_000)
    async with pyroxfer.serve(root, quota=1_300_000) as server:
        place = f"{server.location}/"
        with pytest.raises(errors.NoSpaceError, match=r"^tree: 1500000 bytes more are needed and 1300000 are free"):
            await pyroxfer.send(here / "tree", place)
        (planned,) = await pyroxfer.plan_send(here / "tree", place)
        assert isinstance(planned.error, errors.NoSpaceError)
        assert not list(root.iterdir())
        await pyroxfer.send(here / "tree", place, exclude=["3", "4"])
        for number in (3, 4):
            (here / "tree" / f"{number}").unlink()
        await pyroxfer.send(here / "tree", place)
        (here / "tree" / "0").write_bytes(b"other" * 60_000)
        await pyroxfer.send(here / "tree", place, if_exists="replace")
        assert (root / "tree" / "0").read_bytes() == b"other" * 60_000


async def test_a_folder_that_finds_no_room_here_is_not_fetched(
    root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "tree" / "empty").mkdir(parents=True)
    (root / "tree" / "f").write_bytes(b"x" * 5000)
    async with pyroxfer.serve(root) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Space, "_free", lambda *_: 4999)
            says = "^tree: 5000 bytes more are needed and 4999 are free"
            with pytest.raises(errors.NoSpaceError, match=says):
                await pyroxfer.get(f"{server.location}/tree", f"{here}/")
            with pytest.raises(errors.NoSpaceError, match=says):
                await pyroxfer.plan_get(f"{server.location}/tree", f"{here}/")
        assert not list(here.iterdir())


async def test_a_folder_of_which_some_is_allowed_is_judged_file_by_file(
    root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write below the target only in places is not told about the room of all of it."""
    for name in ("public", "private"):
        (here / "tree" / name).mkdir(parents=True)
        (here / "tree" / name / "f").write_bytes(b"x" * 100)
    monkeypatch.chdir(here / "tree")
    async with FileServer(root, rules=["*:public:write"], quota=150) as server:
        with pytest.raises(errors.SomeFilesFailedError) as caught:
            await pyroxfer.send(".", server.location)
        assert {receipt.path for receipt in caught.value.receipts} == {"public/f"}


def test_space_is_promised_once(tmp_path: Path) -> None:
    """Two uploads at once cannot both count on the same room; what ends gives back what it did not use."""
    store = LocalStore(tmp_path, quota=1000)
    first = store.stage("a", 700, 0o644)
    with pytest.raises(errors.NoSpaceError):
        store.stage("b", 400, 0o644)
    with store.whole_files() as whole, pytest.raises(errors.NoSpaceError):
        whole.put("b", b"x" * 400, 0o644, None, "none")
    pipe = store.stage("c", None, 0o644)
    pipe.write(0, memoryview(b"x" * 300))
    with pytest.raises(errors.NoSpaceError):
        pipe.write(300, memoryview(b"x"))
    pipe.discard()
    first.discard()
    second = store.stage("b", 900, 0o644)
    second.write(0, memoryview(b"x" * 900))
    second.publish(900, "fail", "none", None)
    with pytest.raises(errors.NoSpaceError):
        store.stage("d", 101, 0o644)
    store.stage("d", 100, 0o644).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    store.close()


@pytest.mark.deadline(120)
def test_nothing_outside_is_touched_while_links_are_swapped_in() -> None:
    """A slice of `./scripts/swaps`: every operation of the store against a folder that becomes a link."""
    command = [sys.executable, str(RACE), "--count", "2000", "--seed", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("0 touches outside\n")


HOSTILE = st.text(st.characters(codec=None), max_size=12) | st.lists(
    st.sampled_from(["..", ".", "", "a", "CON", "x.", "\u202e", "e\u0301", "\ud800", "\x00", "~", "é"]), max_size=5
).map("/".join)


@given(path=HOSTILE)
def test_no_name_leaves_the_root(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any text as a path: put below the root under exactly that name, or refused; never anything beside the root."""
    work = tmp_path_factory.mktemp("names")
    (work / "root").mkdir()
    store = LocalStore(work / "root")
    try:
        with store.whole_files() as whole:
            whole.put(path, b"x", 0o644, None, "none")
    except errors.TransferError:
        assert not [found for found in (work / "root").rglob("*") if found.is_file()]
    else:
        assert (work / "root" / path).read_bytes() == b"x"
    finally:
        store.close()
    assert [found.name for found in work.iterdir()] == ["root"]


async def test_a_bad_rule_is_told_at_the_start(root: Path) -> None:
    with pytest.raises(errors.AddressError):
        FileServer(root, rules=["nonsense"])
