"""Many whole files, one after another, in one visit of a worker thread: the folder of the last one stays open."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from ..errors import ExistsError
from ..names import PRIVATE_PREFIX, printable, split_file_path
from .rooted import open_folder, open_regular, translated
from .space import Reservation, Space
from .staged import link_without_replacing

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class WholeFiles:
    """Reads and writes whole files of a local store. Use it as a context manager, in one thread.

    Raises (every method that takes a path):
        TransferError: as the methods of the store.
    """

    def __init__(self, root_fd: int, sync_folders: Callable[[Sequence[str]], None], space: Space) -> None:
        self._root_fd = root_fd
        self._space = space
        self._sync_folders = sync_folders
        self._numbers = itertools.count(secrets.randbits(63))
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
        with translated(path):
            folder = self._enter(tuple(parts), create=True)
            temporary = f"{PRIVATE_PREFIX}{next(self._numbers):016x}"
            fd = os.open(temporary, _NEW, mode & 0o777, dir_fd=folder)
            room: Reservation | None = None
            try:
                if self._space.is_shared:
                    room = self._space.reserve(fd, len(data), path)
                _fill(fd, data, mtime_ns, durability)
                link_without_replacing(temporary, name, folder)
            except BaseException as error:
                with contextlib.suppress(OSError):  # somebody tidied the folder, or the folder is gone
                    os.unlink(temporary, dir_fd=folder)
                if isinstance(error, FileExistsError):
                    raise ExistsError(f"{printable(path)}: already exists") from None
                raise
            finally:
                if room is not None:
                    room.release()
                os.close(fd)
            if durability == "full":
                self._sync_folders(parts)
        return path

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


def _fill(fd: int, data: bytes | memoryview, mtime_ns: int | None, durability: str) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    if mtime_ns is not None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))
    if durability == "data":
        os.fdatasync(fd)
    elif durability == "full":
        os.fsync(fd)
