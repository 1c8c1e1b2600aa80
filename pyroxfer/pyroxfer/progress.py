"""What a transfer tells while it runs: events, their one schema, and the bar in a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import trio

from .names import printable
from .offer import Receipt

if TYPE_CHECKING:
    from tqdm import tqdm

SCHEMA: Final = 1
"""Version of the events; a field may be added without a new one."""
INTERVAL_S: Final = 0.05
"""Shortest time between two ``progress`` events."""


def human(size: int) -> str:
    """A number of bytes for people, such as ``1.5 MiB``."""
    if size < 1024:
        return f"{size} bytes"
    value, units = size / 1024, ["TiB", "GiB", "MiB", "KiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}"


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a transfer.

    ``event`` is one of ``offer`` (path, size), ``accept`` (path, channel, reason, resumed), ``progress`` (done,
    total), ``file`` (path, size: its turn within many has come), ``link`` (path, text: a link with this text stands
    at the receiver), ``plan`` (path, size, action, text: of a dry run), ``warn`` (path, text), ``commit`` (path,
    receipt) and ``error`` (path, text, code). Counts are bytes.
    """

    event: str
    path: str = ""
    size: int | None = None
    done: int = 0
    """Bytes that the receiver has acknowledged, of everything in this run."""
    total: int | None = None
    """Bytes of everything in this run; None when it is not known."""
    arrived: int = 0
    """Of a ``progress`` event: bytes that the receiver has of the file ``path``, which is of ``size`` bytes."""
    channel: str = ""
    reason: str = ""
    resumed: int = 0
    """Bytes of this file that an earlier attempt had brought; they count as done."""
    action: str = ""
    text: str = ""
    code: str = ""
    receipt: Receipt | None = None

    def to_dict(self) -> dict[str, Any]:
        """The event as one JSON object."""
        record: dict[str, Any] = {"event": self.event, "v": SCHEMA}
        if self.event == "progress":
            return {**record, "done": self.done, "total": self.total}
        record["path"] = self.path
        if self.event in ("offer", "file"):
            record["size"] = self.size
        elif self.event == "accept":
            record |= {"channel": self.channel, "reason": self.reason, "resumed": self.resumed}
        elif self.event == "plan":
            record |= {"size": self.size, "action": self.action, "text": self.text}
        elif self.event in ("warn", "error", "link"):
            record["text"] = self.text
            if self.code:
                record["code"] = self.code
        elif self.receipt is not None:
            record |= self.receipt.to_dict()
        return record


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Keeps the counts of one run and tells the callback, if there is one."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._done = 0
        self._total: int | None = 0
        self._told = 0.0
        self._shown: set[str] = set()
        self.again = "the same command goes on"
        """How what was interrupted is gone on with."""

    def _tell(self, event: Progress) -> None:
        if self._callback is not None:
            self._callback(event)

    def offer(self, path: str, size: int | None) -> None:
        """Something is about to be sent or fetched."""
        self._total = None if size is None or self._total is None else self._total + size
        self._tell(Progress("offer", path, size, self._done, self._total))

    def accept(self, path: str, channel: str, reason: str, resumed: int = 0) -> None:
        """The other end agreed; bytes go by this channel, but for ``resumed`` ones that it has already."""
        self._done += resumed
        self._tell(Progress("accept", path, None, self._done, self._total, 0, channel, reason, resumed))

    def interrupted(self, path: str, kept: int | None, where: str) -> None:
        """A transfer did not come to its end; how much is kept of it, if that is known, and how to go on."""
        if kept is None:
            self.warn(path, f"interrupted; {self.again} from what has arrived {where}")
        elif kept:
            self.warn(path, f"interrupted; {human(kept)} are kept {where}, and {self.again} from there")

    @contextlib.contextmanager
    def beginning(self, path: str, *, already: bool) -> Iterator[None]:
        """While a folder is moved to a path; when that does not end well, and the folder was not there ``already``,
        how to go on: without a word about it, the next run would put the folder into what this one began."""
        before = self.again
        if not already:
            self.again = "the same command with -T goes on"
        try:
            yield
        except BaseException:
            if not already:
                self.warn(path, f"is not whole yet; {self.again}")
            raise
        finally:
            self.again = before

    def file(self, path: str, size: int) -> None:
        """The turn of one file among many."""
        if self._callback is not None:  # of many small files each event would cost as much as a system call
            self._callback(Progress("file", path, size, self._done, self._total))

    def link(self, path: str, text: str) -> None:
        """A symbolic link of a folder stands at the receiver."""
        self._tell(Progress("link", path, text=text))

    def plan(self, path: str, size: int, action: str, text: str) -> None:
        """What would become of one file in a real run."""
        self._tell(Progress("plan", path, size, action=action, text=text))

    def mover(self, path: str, size: int | None, resumed: int = 0) -> Callable[[int], None]:
        """What a channel calls with each number of bytes that the receiver has more of one file."""
        arrived = resumed

        def moved(count: int) -> None:
            nonlocal arrived
            arrived += count
            self._done += count
            if self._callback is not None and (
                trio.current_time() - self._told >= INTERVAL_S or (arrived == size and path in self._shown)
            ):
                self._shown.add(path)
                self._tell_progress(path, size, arrived)
            if arrived == size:
                self._shown.discard(path)

        return moved

    def _tell_progress(self, path: str = "", size: int | None = None, arrived: int = 0) -> None:
        self._told = trio.current_time()
        self._tell(Progress("progress", path, size, self._done, self._total, arrived=arrived))

    def warn(self, path: str, text: str) -> None:
        """Something to know that is no failure."""
        self._tell(Progress("warn", path, text=text))

    def commit(self, receipt: Receipt, *, moved: bool) -> None:
        """A file is in place. ``moved`` is false when its bytes are to be counted now, since none were moved."""
        self._done += 0 if moved else receipt.size
        if self._callback is not None:
            self._tell_progress()
            self._callback(Progress("commit", receipt.path, receipt.size, self._done, self._total, receipt=receipt))

    def error(self, path: str, error: Exception) -> None:
        """One file among many failed."""
        self._tell(Progress("error", path, text=str(error), code=getattr(error, "code", "")))


class TqdmProgress:
    """A bar on standard error: silent unless that is a terminal.

    The bar counts bytes acknowledged by the receiver and stays below 100 % until `complete` is called.
    """

    MOST_FILES: Final = 4
    """Bars of single files at once."""
    HELD_BACK: Final = 0.994
    """Largest fraction shown before everything is committed: the next would be rounded to 100 %."""

    def __init__(self, label: str, file: TextIO | None = None) -> None:
        from tqdm import tqdm  # half of this module's import time, and useless without a terminal

        tqdm.monitor_interval = 0
        self._file = file or sys.stderr
        self._tqdm = tqdm
        self._bar = self._new_bar(label, 0, leave=True)
        self._files: dict[str, tqdm[NoReturn]] = {}
        self._many = False
        self._resumed = 0

    def _new_bar(self, label: str, total: int, *, leave: bool) -> tqdm[NoReturn]:
        return self._tqdm(
            total=total,
            desc=printable(label)[:40],
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None,
            miniters=1,  # by time alone: what tqdm would learn from fast files would freeze the bar on slow ones
            leave=leave,
            file=self._file,
        )

    def __call__(self, event: Progress) -> None:
        bar = self._bar
        if event.event == "offer":
            bar.total = event.total
        elif event.event == "accept":
            self._accepted(event)
        elif event.event == "file":
            self._many = True
        elif event.event == "warn":  # errors of single files come together at the end
            bar.write(f"{printable(event.path)}: {printable(event.text)}", file=self._file)
        elif event.event in ("progress", "commit"):
            self._show(event)
            self._show_file(event)

    def _accepted(self, event: Progress) -> None:
        """Name the channel, and what was there already: that is no part of the rate."""
        self._resumed += event.resumed
        self._bar.initial += event.resumed
        self._bar.n += event.resumed
        text = f"{event.channel}, {human(self._resumed)} resumed" if self._resumed else event.channel
        self._bar.set_postfix_str(text, refresh=False)

    def _show(self, event: Progress) -> None:
        bar = self._bar
        shown = event.done
        if event.total:
            shown = min(shown, int(event.total * self.HELD_BACK))
            if event.done >= event.total:
                bar.set_postfix_str("verifying", refresh=False)
        bar.update(shown - bar.n)

    def _show_file(self, event: Progress) -> None:
        """Among many files, one that takes a while has a bar of its own as long as it moves."""
        if not self._many or not event.path or event.event != "progress" or not event.size:
            return
        bar = self._files.get(event.path)
        if event.arrived >= event.size:
            if bar is not None:
                self._files.pop(event.path).close()
            return
        if bar is None and len(self._files) < self.MOST_FILES:
            bar = self._files[event.path] = self._new_bar(event.path, event.size, leave=False)
            bar.initial = bar.n = event.arrived
        elif bar is not None:
            bar.update(event.arrived - bar.n)

    def complete(self) -> None:
        """Everything is committed: show 100 %."""
        bar = self._bar
        bar.set_postfix_str("committed", refresh=False)
        bar.update((bar.total or bar.n) - bar.n)
        bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        for bar in self._files.values():
            bar.close()
        self._files.clear()
        self._bar.close()

    def __enter__(self) -> TqdmProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
