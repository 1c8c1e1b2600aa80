"""Many whole files, one after another, in one visit of a worker thread: the folder of the last one stays open."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..errors import ExistsError
from ..names import PRIVATE_PREFIX, printable, split_file_path
from .rooted import open_folder, open_regular, translated
from .space import Reservation, Space
from .staged import link_without_replacing

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS: Final = os.O_WRONLY | getattr(os, "O_TMPFILE", 0) | os.O_CLOEXEC
_DESCRIPTORS: Final = "/proc/self/fd"
"""The only way for everybody from a descriptor to a name."""

_Content = tuple[str, "bytes | memoryview", "int | None", str]
"""Path, bytes, modification time and durability."""


@functools.cache
def _knows_nameless_files() -> bool:
    return hasattr(os, "O_TMPFILE") and Path(_DESCRIPTORS).exists()


class WholeFiles:
    """Reads and writes whole files of a local store. Use it as a context manager, in one thread.

    Raises (every method that takes a path):
        TransferError: as the methods of the store.
    """

    def __init__(self, root_fd: int, sync_folders: Callable[[Sequence[str]], None], space: Space) -> None:
        self._root_fd = root_fd
        self._space = space
        self._sync_folders = sync_folders
        self._nameless = _knows_nameless_files()
        self._room: Reservation | None = None
        self._parts: tuple[str, ...] | None = None
        self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def open_file(self, path: str) -> int:
        """A read-only descriptor of a regular file, owned by the caller."""
        *parts, name = split_file_path(path)
        with translated(path):
            return open_regular(self._enter(tuple(parts), create=False), name)

    def put(self, path: str, data: bytes | memoryview, mode: int, mtime_ns: int | None, durability: str) -> str:
        """Write a file and put it in place under its name, making missing folders; the path it got.

        Raises:
            NoSpaceError: others have been promised the space, or the quota is used up.
            ExistsError: the name is taken. Like after every other error, nothing is left behind.
        """
        *parts, name = split_file_path(path)
        content = (path, data, mtime_ns, durability)
        with translated(path):
            folder = self._enter(tuple(parts), create=True)
            try:
                # btrfs, for one, keeps nothing of a file that is flushed before it has a name
                if durability != "none" or not self._put_nameless(folder, name, mode & 0o777, content):
                    self._put_hidden(folder, name, mode & 0o777, content)
            except FileExistsError:
                raise ExistsError(f"{printable(path)}: already exists") from None
            if durability == "full":
                self._sync_folders(parts)
        return path

    def _put_nameless(self, folder: int, name: str, mode: int, content: _Content) -> bool:
        """Have no name before the final one: quicker than two names, and what is cut short vanishes by itself. False
        when it did not work, be it that something here knows no such files, or what the other way will find, too.

        Raises:
            FileExistsError: the name is taken.
        """
        if self._nameless:
            try:
                fd = os.open(".", _NAMELESS, mode, dir_fd=folder)
                try:
                    self._fill(fd, *content)
                    os.link(f"{_DESCRIPTORS}/{fd}", name, dst_dir_fd=folder)
                finally:
                    self._close(fd)
            except FileExistsError:
                raise
            except OSError:
                self._nameless = False
        return self._nameless

    def _put_hidden(self, folder: int, name: str, mode: int, content: _Content) -> None:
        """Have a random hidden name first.

        Raises:
            FileExistsError: the name is taken.
        """
        temporary = f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
        fd = os.open(temporary, _NEW, mode, dir_fd=folder)
        try:
            self._fill(fd, *content)
            link_without_replacing(temporary, name, folder)
        except BaseException:
            with contextlib.suppress(OSError):  # somebody tidied the folder, or the folder is gone
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            self._close(fd)

    def _fill(self, fd: int, path: str, data: bytes | memoryview, mtime_ns: int | None, durability: str) -> None:
        if self._space.is_shared:
            self._room = self._space.reserve(fd, len(data), path)
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        if durability == "data":
            os.fdatasync(fd)
        elif durability == "full":
            os.fsync(fd)

    def _close(self, fd: int) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None
        os.close(fd)

    def _enter(self, parts: tuple[str, ...], *, create: bool) -> int:
        if parts != self._parts:
            self._leave()
            self._folder = open_folder(self._root_fd, parts, create=create)
            self._parts = parts
        return self._folder

    def _leave(self) -> None:
        if self._parts is not None:
            self._parts = None
            os.close(self._folder)
