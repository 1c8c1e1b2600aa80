"""The file of the records: a full disk costs records and nothing else, and a renamed file is left when told."""

from __future__ import annotations

import errno
import io
import logging
from pathlib import Path

import pytest
from doubles_dispatch import POISON, ask, blob, config_for, echo, raw_backend, raw_client

from pyroxfer_core.errors import CommunicationError
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.linefile import GATHERED_BYTES, LineFile

FULL = Path("/dev/full")


class Disk(io.FileIO):
    """Takes so many bytes, and no more until it is given room."""

    room = 0

    def write(self, data: object, /) -> int:
        assert isinstance(data, memoryview)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = super().write(data[: self.room])
        self.room -= count
        return count


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records]


def test_a_full_disk_costs_lines_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No line is cut by what comes behind it, and the log says when it begins, when it ends, and how much is lost."""
    path = tmp_path / "log"
    lines = LineFile("access_log", str(path))
    disk = lines._file = Disk(str(path), "ab")
    disk.room = 8
    with caplog.at_level(logging.INFO, "pyroxfer.dispatcher"):
        for line in (b"one", b"two-is-cut"):
            lines.add(line)
            lines.flush()
        lines.add(b"three")
        lines.flush()
        disk.room = 1000
        lines.add(b"four")
        lines.close()
    assert path.read_bytes().splitlines() == [b"one", b"two-", b"four"]
    assert events(caplog) == ["access_log_lost", "access_log_back"]
    assert "lines_lost=2" in caplog.text


def test_a_file_that_was_renamed_is_opened_again(tmp_path: Path) -> None:
    """What had gathered goes to the old one. Where the new one cannot be opened the old one goes on."""
    folder = tmp_path / "logs"
    folder.mkdir()
    path, old = folder / "log", folder / "log.1"
    lines = LineFile("access_log", str(path))
    lines.open()
    lines.add(b"one")
    path.rename(old)
    lines.open()
    lines.add(b"two")
    lines.flush()
    assert (old.read_bytes(), path.read_bytes()) == (b"one\n", b"two\n")
    folder.rename(tmp_path / "moved")
    with pytest.raises(CommunicationError, match="cannot write access_log"):
        lines.open()
    lines.add(b"three")
    lines.close()
    lines.close()
    assert (tmp_path / "moved" / "log").read_bytes() == b"two\nthree\n"


def test_many_lines_are_not_kept_for_long(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = LineFile("access_log", str(path))
    lines.open()
    for _ in range(3):
        lines.add(b"x" * (GATHERED_BYTES // 2))
    assert path.stat().st_size >= GATHERED_BYTES
    lines.close()


async def test_calls_go_on_when_they_cannot_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Enough of them for all that may gather; the dispatcher ends as usual, too."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri, head=f'access_log = "{FULL}"')) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for _ in range(GATHERED_BYTES // 300):
            assert (await ask(client, blob())).body == POISON
    assert events(caplog).count("access_log_lost") == 1


async def test_a_reload_opens_the_file_again(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    async with raw_backend(echo) as backend:
        config = config_for(backend.uri, head=f'access_log = "{path}"')
        async with Dispatcher(config) as dispatcher, raw_client(dispatcher.location) as client:
            await ask(client, blob())
            path.rename(old)
            dispatcher.reload(config)
            await ask(client, blob())
    assert [len(file.read_bytes().splitlines()) for file in (old, path)] == [1, 1]
