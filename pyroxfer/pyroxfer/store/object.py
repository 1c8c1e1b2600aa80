"""The object store: files are objects below a prefix of a bucket, and folders are what their keys say. Blocking.

A file on its way in is spooled to a local folder, so that every channel writes to a descriptor and an interrupted
upload is resumed; publishing uploads it. A file on its way out is brought into an unlinked temporary file first, one
version of it, by ranged gets side by side.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from blake3 import blake3

from ..errors import DeniedError, ExistsError, NameRefusedError, NotFoundError, TransferError
from ..names import PRIVATE_PREFIX, check_component, is_partial, printable, split_file_path, split_path
from ..offer import FileEntry
from .base import StagedFile
from .bucket import PLAIN_MODE, Bucket, Found, modified
from .ledger import Ledger
from .leftovers import forget, remove_leftovers
from .rooted import open_folder, open_root, translated
from .space import Space
from .staged import MAX_RENAME_TRIES, Staged, numbered

FOLDER_MARK: Final = f"{PRIVATE_PREFIX}folder"
"""Name of the empty object that keeps an empty folder."""
FOLDER_MODE: Final = 0o755
LEFT_S: Final = 24 * 3600.0
"""A hidden object this old is left over from a server that was killed between uploading and publishing."""


class Spooled(Staged):
    """A file being spooled for a bucket; ``publish`` uploads it and lets go of the spooled bytes."""

    def __init__(self, spool_fd: int, bucket: Bucket, path: str, mode: int, origin: str) -> None:
        super().__init__(spool_fd, _spool_name(path), 0o600, lambda: None, origin)
        self.path = path
        self._object_mode = mode & 0o777
        self._bucket = bucket

    def publish(self, size: int, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Upload and put in place under its final name, in one step; the path it got. What the store has
        acknowledged is as durable as it gets, whatever ``durability`` says.

        Raises:
            ExistsError: the name is taken.
            TransferError: what the store said; the spooled bytes are still there.
        """
        with translated(self.path):
            if os.fstat(self.fd).st_size > size:
                os.ftruncate(self.fd, size)
        folder, slash, name = self.path.rpartition("/")
        names = [self.path]
        if if_exists == "rename":
            names += [f"{folder}{slash}{numbered(name, number)}" for number in range(1, MAX_RENAME_TRIES + 1)]
        found = _new(size, self._object_mode, mtime_ns)
        path = self._bucket.publish(self.fd, names, found, overwrite=if_exists in ("replace", "resume"))
        self.discard()
        return path


class WholeObjects:
    """Reads and writes whole small files of a bucket, one request each, without the spool.

    Raises (every method):
        TransferError: as the methods of the store.
    """

    def __init__(self, store: ObjectStore, bucket: Bucket) -> None:
        self._store = store
        self._bucket = bucket
        self._folder: tuple[str, ...] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def open_file(self, path: str) -> int:
        """As ``ObjectStore.open_file``."""
        return self._store.open_file(path)

    def put(self, path: str, data: bytes | memoryview, mode: int, mtime_ns: int | None, durability: str) -> str:
        """Put an object in place under its name; the path it got.

        Raises:
            ExistsError: the name is taken, by a folder too.
        """
        parts = split_file_path(path)
        if parts[:-1] != self._folder:
            self._store.check_parents(parts)
            self._folder = parts[:-1]
        key = "/".join(parts)
        if any(below.startswith(f"{key}/") for below in self._bucket.first(key)):
            raise ExistsError(f"{printable(key)}: is a folder")
        self._bucket.put(key, bytes(data), _new(len(data), mode, mtime_ns))
        return path


class ObjectStore:
    """Files in a bucket, below a prefix.

    Args:
        url: ``s3://BUCKET/PREFIX``; everything else comes from the environment, see `Bucket`.
        spool: the folder for files on their way in, made when missing; None takes one of its own that ends with it.
        ledger: of all processes that use the spool.

    Raises (every method that takes a path):
        NameRefusedError: the path leaves the root, leads through a file, or is not portable.
        NotFoundError, DeniedError, NoSpaceError, ExistsError, LostError, TransferError: what the store said.
    """

    def __init__(self, url: str, spool: Path | None = None, ledger: Ledger | None = None) -> None:
        self._bucket = Bucket(url)
        self._own_spool = tempfile.TemporaryDirectory(prefix="pyroxfer-spool-") if spool is None else None
        place = Path(self._own_spool.name) if self._own_spool is not None else spool
        assert place is not None, "one of the two"
        with translated("the spool folder"):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spool_fd = open_root(place)
        self._space = Space(lambda: 0, ledger=ledger)

    def close(self) -> None:
        """Let go of the bucket and the spool. Open files stay usable."""
        if self._spool_fd >= 0:
            self._bucket.close()
            os.close(self._spool_fd)
            self._spool_fd = -1
        if self._own_spool is not None:
            self._own_spool.cleanup()

    def stat(self, path: str) -> FileEntry:
        """The entry of one path, its own path in it."""
        key = "/".join(split_path(path))
        found = self._bucket.find(key) if key else None
        if found is not None:
            return FileEntry(key, "file", found.size, found.mode, found.mtime_ns)
        if key and not self._bucket.first(key):
            raise NotFoundError(f"{printable(key)}: no such file or folder")
        return FileEntry(key, "folder", 0, FOLDER_MODE, 0)

    def list(self, path: str) -> list[FileEntry]:
        """The entries directly in a folder, by name; paths are relative to that folder. Modes and times are those of
        the store, which lists no others."""
        return [*self._list(self._folder_key(path))]

    def walk(self, path: str) -> Iterator[FileEntry]:
        """Everything below a folder; each folder before what it holds, paths relative to ``path``."""
        base = self._folder_key(path)
        waiting = [""]
        while waiting:
            below = waiting.pop()
            entries = self._list("/".join(filter(None, (base, below))))
            for entry in entries:
                name = f"{below}/{entry.path}" if below else entry.path
                yield FileEntry(name, entry.kind, entry.size, entry.mode, entry.mtime_ns)
            waiting += [
                f"{below}/{entry.path}" if below else entry.path
                for entry in reversed(entries)
                if entry.kind == "folder"
            ]

    def _folder_key(self, path: str) -> str:
        entry = self.stat(path)
        if entry.kind != "folder":
            raise NameRefusedError(f"{printable(entry.path)}: is not a folder")
        return entry.path

    def _list(self, key: str) -> Sequence[FileEntry]:
        prefixes, objects = self._bucket.children(key)
        start = len(key) + 1 if key else 0
        entries = [FileEntry(prefix[start:], "folder", 0, FOLDER_MODE, 0) for prefix in prefixes]
        entries += [_listed(meta, start) for meta in objects if len(meta["path"]) > start]
        return sorted(map(_checked, filter(_is_shown, entries)), key=lambda entry: entry.path)

    def open_file(self, path: str) -> int:
        """A descriptor of a local copy of one version of a file, owned by the caller: what happens to the object
        afterwards does not touch it."""
        key = "/".join(split_file_path(path))
        try:
            return self._bucket.fetch(key)
        except NotFoundError:
            if self._bucket.first(key):
                raise DeniedError(f"{printable(key)}: is not a regular file") from None
            raise

    def whole_files(self) -> WholeObjects:
        """To read and write many small files, in one thread."""
        return WholeObjects(self, self._bucket)

    def make_folder(self, path: str) -> None:
        """Make the folder, with an empty object that keeps it."""
        parts = split_path(path)
        self.check_parents((*parts, ""))
        if parts:
            self._bucket.mark("/".join((*parts, FOLDER_MARK)))

    def check_room(self, path: str, size: int) -> None:
        """A bucket takes what it is given, and the spool holds a few files at a time: each asks for itself."""

    def dress_folder(self, path: str, mode: int, mtime_ns: int) -> None:
        """A folder has neither mode nor time here: nothing is changed."""
        self._folder_key(path)

    def read_link(self, path: str) -> str:
        """There are no links here.

        Raises:
            DeniedError: always.
        """
        raise DeniedError(f"{printable(path)}: a bucket holds no symbolic links")

    def make_link(self, path: str, text: str, if_exists: str) -> bool:
        """There are no links here.

        Raises:
            DeniedError: always.
        """
        raise DeniedError(f"{printable(path)}: a bucket takes no symbolic links; send what they lead to")

    def check_writable(self, path: str) -> None:
        """Whether the path may be that of a file: who may write it is for the store to say, and for rules."""
        split_file_path(path)

    def stage(self, path: str, size: int | None, mode: int, origin: str = "") -> Spooled:
        """Begin a file in the spool, or take up what an earlier attempt from the same origin left in it.

        Raises:
            NoSpaceError: ``size`` bytes are not free in the spool now.
        """
        parts = split_file_path(path)
        self.check_parents(parts)
        folder = open_folder(self._spool_fd, ())
        try:
            with translated(path):
                staged = Spooled(folder, self._bucket, "/".join(parts), mode, origin)
        except BaseException:
            os.close(folder)
            raise
        try:
            staged.room = self._space.reserve(staged.fd, size, path)
        except BaseException:
            staged.suspend()
            raise
        return staged

    def check_parents(self, parts: tuple[str, ...]) -> None:
        """A bucket would take a file and a folder of one name; nobody could fetch both."""
        for depth in range(1, len(parts)):
            key = "/".join(parts[:depth])
            if self._bucket.find(key) is not None:
                raise NameRefusedError(f"{printable(key)}: leads through something that is not a folder")

    def build_on(self, path: str, staged: StagedFile) -> None:
        """Let the file that stands under ``path`` be what ``staged`` takes its first bytes from."""
        assert isinstance(staged, Spooled), "a store gets back what it gave"
        staged.build_on(self.open_file(path))

    def forget(self, path: str, origin: str) -> None:
        """Remove what an interrupted attempt left in the spool; nothing when it is in use."""
        with contextlib.suppress(OSError):
            forget(self._spool_fd, _spool_name("/".join(split_file_path(path))), origin)

    def remove(self, path: str) -> None:
        """Remove a file or an empty folder. A folder that nobody made ends with the last file in it."""
        key = "/".join(split_path(path))
        if not key:
            raise DeniedError("the folder served is not removed")
        if self.stat(key).kind == "file":
            self._bucket.delete(key)
            return
        mark = f"{key}/{FOLDER_MARK}"
        if self._bucket.first(key) != [mark]:
            raise ExistsError(f"{printable(key)}: the folder is not empty")
        self._bucket.delete(mark)

    def clean_leftovers(self) -> Iterator[int]:
        """Remove what nobody will take up any more from the spool, and hidden objects of killed servers."""
        yield self.clean_folder("")
        for meta in self._bucket.all(""):
            yield self._remove_if_left(meta)

    def _remove_if_left(self, meta: Any) -> int:
        if not is_partial(meta["path"].rpartition("/")[2]) or time.time() - modified(meta) / 1e9 < LEFT_S:
            return 0
        with contextlib.suppress(TransferError):
            self._bucket.delete(meta["path"])
            return 1
        return 0

    def clean_folder(self, path: str) -> int:
        """Partial files are in the spool, whatever the folder."""
        with contextlib.suppress(OSError, TransferError):
            folder = open_folder(self._spool_fd, ())
            try:
                return remove_leftovers(folder)
            finally:
                os.close(folder)
        return 0


def _new(size: int, mode: int, mtime_ns: int | None) -> Found:
    return Found(size, mode & 0o777, time.time_ns() if mtime_ns is None else mtime_ns, "")


def _spool_name(path: str) -> str:
    """One flat folder holds the files of all folders."""
    return blake3(path.encode()).hexdigest()


def _listed(meta: Any, start: int) -> FileEntry:
    return FileEntry(meta["path"][start:], "file", meta["size"], PLAIN_MODE, modified(meta))


def _is_shown(entry: FileEntry) -> bool:
    return entry.path != FOLDER_MARK and not is_partial(entry.path)


def _checked(entry: FileEntry) -> FileEntry:
    """A key that somebody else wrote may be no name here."""
    try:
        check_component(entry.path)
    except TransferError:
        return FileEntry(printable(entry.path), "unreadable")
    return entry
