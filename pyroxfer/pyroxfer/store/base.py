"""What the engine needs of a place where files live. Blocking; called from worker threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from ..offer import FileEntry
from ..runs import Range, Run


class StagedFile(Protocol):
    """One file on its way into a store, until ``publish``, ``suspend`` or ``discard``."""

    path: str
    """Where it shall stand."""
    fd: int
    """A descriptor to write to and read back from; -1 once it is over."""
    found: tuple[Run, ...]
    """What an earlier attempt noted of its bytes, to be digested again before it is believed."""
    basis: int
    """A descriptor of the file that ``found`` speaks of: ``fd`` itself, or another one to copy from."""
    keeps: bool
    """``note`` and ``suspend`` keep what is written for a later attempt."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``."""

    def adopt(self, ranges: Sequence[Range]) -> None:
        """Take these ranges of the basis over; nothing else of it stays."""

    def note(self, runs: Sequence[Run], *, flush: bool) -> None:
        """Note runs as written, after flushing the bytes when asked."""

    def publish(self, size: int, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Flush and put in place under its final name, in one step; the path it got.

        Raises:
            ExistsError: the name is taken.
            NoSpaceError: flushing found no space.
        """

    def suspend(self) -> None:
        """Let go of it, and keep it for a later attempt."""

    def discard(self) -> None:
        """Remove it. Nothing happens when it is over already."""


class WholeFiles(Protocol):
    """Many whole files, one after another, in one visit of a worker thread. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def open_file(self, path: str) -> int:
        """As ``Store.open_file``."""

    def put(self, path: str, data: bytes | memoryview, mode: int, mtime_ns: int | None, durability: str) -> str:
        """Write a file and put it in place under its name, making missing folders; the path it got.

        Raises:
            ExistsError: the name is taken.
        """


class Store(Protocol):
    """Files below one root.

    Raises (every method that takes a path):
        TransferError: one of its kinds; see ``LocalStore``.
    """

    def stat(self, path: str) -> FileEntry:
        """The entry of one path."""

    def list(self, path: str) -> list[FileEntry]:
        """The entries directly in a folder, by name, relative to it."""

    def walk(self, path: str) -> Iterator[FileEntry]:
        """Everything below a folder, relative to it; each folder before what it holds."""

    def open_file(self, path: str) -> int:
        """A read-only descriptor of a regular file, owned by the caller."""

    def whole_files(self) -> WholeFiles:
        """To read and write many small files."""

    def make_folder(self, path: str) -> None:
        """Make the folder and its parents, as far as they are missing."""

    def check_room(self, path: str, size: int) -> None:
        """Whether files of ``size`` bytes together can come below a path, which need not be there yet.

        Raises:
            NoSpaceError: not even if all that stands there is equal to them or makes room for them.
        """

    def dress_folder(self, path: str, mode: int, mtime_ns: int) -> None:
        """Give a folder its permission bits and its modification time."""

    def read_link(self, path: str) -> str:
        """The text of a symbolic link."""

    def make_link(self, path: str, text: str, if_exists: str) -> bool:
        """Make a symbolic link whose text stays inside the root; whether it was made, and not left as it is."""

    def check_writable(self, path: str) -> None:
        """Whether whoever uses the store may bring a file to this path; the path is looked at, not what is there."""

    def stage(self, path: str, size: int | None, mode: int, origin: str = "") -> StagedFile:
        """Begin a file, or take up what an earlier attempt from the same origin left of it."""

    def build_on(self, path: str, staged: StagedFile) -> None:
        """Let the file that stands under ``path`` be what ``staged`` takes its first bytes from."""

    def forget(self, path: str, origin: str) -> None:
        """Remove what an interrupted attempt left; nothing when there is nothing, or it is in use."""

    def remove(self, path: str) -> None:
        """Remove a file, a link, or an empty folder."""

    def clean_leftovers(self) -> Iterator[int]:
        """Remove partial files that nobody will take up any more; how many there were, by folder."""

    def clean_folder(self, path: str) -> int:
        """As ``clean_leftovers``, in one folder; what cannot be looked at is left."""

    def close(self) -> None:
        """Let go of the root."""
