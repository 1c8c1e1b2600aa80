"""Opening things below a held directory without ever following a link: in one step where the kernel can, else one
component at a time. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import AddressError, DeniedError, NameRefusedError, from_os_error
from ..names import printable
from .beneath import open_beneath

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Non-blocking, so that opening a FIFO somebody put there cannot hang; regular files do not care."""


class translated:
    """Turn an ``OSError`` inside the block into the error of this package that names ``path``.

    No generator: every small file comes through here several times, and this takes a quarter of the time.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise from_os_error(error, printable(self._path) or "the folder served") from error
        if isinstance(error, UnicodeEncodeError):
            raise NameRefusedError(
                f"{printable(self._path)}: cannot be written in this system's character set; use a UTF-8 locale"
            ) from error


def open_root(root: str | os.PathLike[str]) -> int:
    """A descriptor of the root folder, which may itself be a link.

    Raises:
        AddressError: it is not a folder that can be opened.
    """
    try:
        return os.open(root, _FOLDER)
    except OSError as error:
        name = printable(os.fspath(root))
        raise AddressError(f"{name}: {error.strerror}; name a folder that exists and can be read") from error


def open_folder(root_fd: int, parts: Sequence[str], *, create: bool = False) -> int:
    """A descriptor of the folder below the root, owned by the caller. ``create`` makes what is missing.

    Raises:
        OSError: a component is missing, a link, not a folder, or may not be entered.
    """
    if parts and (found := open_beneath(root_fd, "/".join(parts), _FOLDER)) is not None:
        return found
    current = os.open(".", _FOLDER, dir_fd=root_fd)  # not dup(): two listings would share one position
    try:
        for part in parts:
            following = _step(current, part, create)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _step(parent: int, name: str, create: bool) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        pass  # somebody else made it in the meantime: opening it decides what it is
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def open_regular(folder_fd: int, name: str) -> int:
    """A read-only descriptor of a regular file, owned by the caller.

    Raises:
        OSError: missing, a link, or no permission.
        DeniedError: a device, a pipe, a socket or a folder.
    """
    fd = os.open(name, _READ, dir_fd=folder_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DeniedError(f"{printable(name)}: is not a regular file")
    return fd


def open_source(path: str | os.PathLike[str]) -> int:
    """A read-only descriptor of a file that the user of this machine named himself; links are followed.

    Raises:
        OSError: missing or no permission.
        DeniedError: not a regular file.
    """
    fd = os.open(path, (_READ & ~os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DeniedError(f"{printable(Path(path).name)}: is not a regular file")
    return fd


def kind_of(mode: int) -> str:
    """The word for a file type, as in ``FileEntry.kind``."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"
