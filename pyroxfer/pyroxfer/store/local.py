"""The rooted local store: every path is relative to one held folder and can never leave it. Blocking.

Components are opened one by one without following links, so a link inside the root leads nowhere, whatever a
neighbour does to the folders meanwhile. The root itself may be a link: the operator chose it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from ..errors import DeniedError, TransferError
from ..links import check_link
from ..names import is_private, printable, split_file_path, split_path
from ..offer import FileEntry, bounded_mtime
from .base import StagedFile
from .ledger import Ledger
from .leftovers import forget, remove_leftovers
from .links import make_link
from .rooted import kind_of, open_folder, open_regular, open_root, translated
from .space import Space
from .staged import Staged, umask
from .whole import WholeFiles


class LocalStore:
    """Files below one folder.

    Raises (every method that takes a path):
        NameRefusedError: the path leaves the root, leads through a link, or is not portable.
        NotFoundError, DeniedError, NoSpaceError, ExistsError, TransferError: what the system said.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, quota: int | None = None, ledger: Ledger | None = None
    ) -> None:
        """``quota``: bytes that all files below the root may have together; None is no limit. ``ledger``: of all
        processes that serve the root."""
        self._root_fd = open_root(root)
        self._space = Space(self._used, quota, ledger)

    def close(self) -> None:
        """Let go of the root. Open files and partial files stay usable."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def stat(self, path: str) -> FileEntry:
        """The entry of one path, its own path in it; links are reported, not followed."""
        parts = split_path(path)
        with translated(path), self._folder(parts[:-1]) as folder:
            status = os.stat(parts[-1] if parts else ".", dir_fd=folder, follow_symlinks=False)
        return _entry("/".join(parts), status)

    def list(self, path: str) -> list[FileEntry]:
        """The entries directly in a folder, by name; paths are relative to that folder."""
        with translated(path), self._folder(split_path(path)) as folder:
            return list(_scan(folder))

    def walk(self, path: str) -> Iterator[FileEntry]:
        """Everything below a folder; each folder before what it holds, paths relative to ``path``.

        Links come as ``link`` and are not entered; a folder that may not be read comes again as ``unreadable``.
        No descriptor is held between two entries.
        """
        base = split_path(path)
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            below = waiting.pop()
            prefix = "".join(f"{part}/" for part in below)
            try:
                with self._folder((*base, *below)) as folder:
                    entries = list(_scan(folder, prefix))
            except OSError as error:
                if not below:
                    with translated(path):
                        raise error
                yield FileEntry("/".join(below), "unreadable")
                continue
            yield from entries
            inner = (entry.path[len(prefix) :] for entry in reversed(entries) if entry.kind == "folder")
            waiting += [(*below, name) for name in inner]

    def open_file(self, path: str) -> int:
        """A read-only descriptor of a regular file, owned by the caller."""
        parts = split_file_path(path)
        with translated(path), self._folder(parts[:-1]) as folder:
            return open_regular(folder, parts[-1])

    def whole_files(self) -> WholeFiles:
        """To read and write many small files, in one thread."""
        return WholeFiles(self._root_fd, self._sync, self._space)

    def make_folder(self, path: str) -> None:
        """Make the folder and its parents, as far as they are missing."""
        with translated(path):
            os.close(open_folder(self._root_fd, split_path(path), create=True))

    def check_room(self, path: str, size: int) -> None:
        """Whether files of ``size`` bytes together can come below a path, which need not be there yet.

        Raises:
            NoSpaceError: not even if all that stands there is equal to them or makes room for them.
        """
        parts = split_path(path)
        with translated(path):
            folder = self._open_deepest(parts)
            try:
                self._space.check(folder, size, lambda: self._used(parts), path)
            finally:
                os.close(folder)

    def dress_folder(self, path: str, mode: int, mtime_ns: int) -> None:
        """Give a folder its permission bits, by the umask, and its modification time; its owner can use it always."""
        with translated(path), self._folder(split_path(path)) as folder:
            os.fchmod(folder, (mode & 0o777 & ~umask()) | stat.S_IRWXU)
            os.utime(folder, ns=(mtime_ns, mtime_ns))

    def read_link(self, path: str) -> str:
        """The text of a symbolic link."""
        parts = split_file_path(path)
        with translated(path), self._folder(parts[:-1]) as folder:
            return os.readlink(parts[-1], dir_fd=folder)

    def make_link(self, path: str, text: str, if_exists: str) -> bool:
        """Make a symbolic link and its parents; false when it was left as it is, being equal or to be skipped.

        Raises:
            NameRefusedError: its text could lead out of the root.
            ExistsError: something else stands there and ``if_exists`` does not say what to do.
        """
        parts = split_file_path(path)
        check_link(path, text)
        with translated(path):
            folder = open_folder(self._root_fd, parts[:-1], create=True)
            try:
                return make_link(folder, parts[-1], text, if_exists)
            finally:
                os.close(folder)

    def check_writable(self, path: str) -> None:
        """Whether the path may be that of a file: who may write it is for the system to say, and for rules."""
        split_file_path(path)

    def stage(self, path: str, size: int | None, mode: int, origin: str = "") -> Staged:
        """Begin a file: its parents are made, its space is looked up, a random hidden file beside it is open.

        With an ``origin`` the file can be kept for a later attempt, and what an earlier one from the same origin left
        is taken up. A holder in another process gets a second to let go of it.

        Raises:
            NoSpaceError: ``size`` bytes are not free now, less what files on their way have been promised, or are
                more than is left of the quota.
        """
        parts = split_file_path(path)
        with translated(path):
            folder = open_folder(self._root_fd, parts[:-1], create=True)
            try:
                staged = Staged(folder, "/".join(parts), mode, lambda: self._sync(parts[:-1]), origin)
            except BaseException:
                os.close(folder)
                raise
            try:
                staged.room = self._space.reserve(staged.fd, size, path)
            except BaseException:
                staged.suspend()
                raise
            return staged

    def build_on(self, path: str, staged: StagedFile) -> None:
        """Let the file that stands under ``path`` be what ``staged`` takes its first bytes from."""
        assert isinstance(staged, Staged), "a store gets back what it gave"
        staged.build_on(self.open_file(path))

    def forget(self, path: str, origin: str) -> None:
        """Remove what an interrupted attempt left; nothing when there is nothing, or it is in use."""
        parts = split_file_path(path)
        with contextlib.suppress(OSError), self._folder(parts[:-1]) as folder:
            forget(folder, parts[-1], origin)

    def remove(self, path: str) -> None:
        """Remove a file, a link, or an empty folder."""
        parts = split_path(path)
        if not parts:
            raise DeniedError("the folder served is not removed")
        with translated(path), self._folder(parts[:-1]) as folder:
            if stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                os.rmdir(parts[-1], dir_fd=folder)
            else:
                os.unlink(parts[-1], dir_fd=folder)
        self._space.removed()

    def clean_leftovers(self) -> Iterator[int]:
        """Remove partial files whose owner is gone and that nobody will take up, everywhere below the root; how many
        there were, by folder."""
        yield self.clean_folder("")
        for entry in self.walk(""):
            if entry.kind == "folder":
                yield self.clean_folder(entry.path)

    def clean_folder(self, path: str) -> int:
        """As ``clean_leftovers``, in one folder; what cannot be looked at is left."""
        with contextlib.suppress(OSError, TransferError), self._folder(split_path(path)) as folder:
            return remove_leftovers(folder)
        return 0

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str]) -> Iterator[int]:
        folder = open_folder(self._root_fd, parts)
        try:
            yield folder
        finally:
            os.close(folder)

    def _open_deepest(self, parts: Sequence[str]) -> int:
        """A descriptor of the last folder on the way to a path that is there already."""
        for depth in range(len(parts), 0, -1):
            with contextlib.suppress(FileNotFoundError):
                return open_folder(self._root_fd, parts[:depth])
        return open_folder(self._root_fd, ())

    def _used(self, below: tuple[str, ...] = ()) -> int:
        """Bytes of all files below a folder, partial ones among them."""
        total = 0
        waiting = [below]
        while waiting:
            parts = waiting.pop()
            with contextlib.suppress(OSError), self._folder(parts) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((*parts, entry.name))
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        return total

    def _sync(self, parts: Sequence[str]) -> None:
        """Flush the names of the folder and of every folder above it: some may have been made just now."""
        with translated("/".join(parts)):
            for depth in range(len(parts), -1, -1):
                with self._folder(parts[:depth]) as folder:
                    os.fsync(folder)


def _scan(folder_fd: int, prefix: str = "") -> Iterator[FileEntry]:
    """The entries of an open folder, by name, without partial files and their journals; ``prefix`` goes before each
    name."""
    with os.scandir(folder_fd) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if is_private(entry.name):
                continue
            try:
                entry.name.encode()
                status = entry.stat(follow_symlinks=False)
            except UnicodeEncodeError:
                yield FileEntry(prefix + printable(entry.name), "unreadable")
            except OSError:
                continue  # removed since the folder was read
            else:
                yield _entry(prefix + entry.name, status)


def _entry(path: str, status: os.stat_result) -> FileEntry:
    kind = kind_of(status.st_mode)
    size = status.st_size if kind == "file" else 0
    return FileEntry(path, kind, size, status.st_mode & 0o777, bounded_mtime(status.st_mtime_ns))
