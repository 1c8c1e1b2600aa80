"""Objects below one prefix of a bucket: what the object store needs of obstore. Blocking; memory bounded by parts."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from ..errors import AddressError, ExistsError, NoSpaceError, TransferError
from ..names import MAX_COMPONENT_BYTES, PRIVATE_PREFIX, printable, split_path
from ..offer import bounded_mtime
from ..tasks import check_cancelled
from .object_errors import translated

PART: Final = 5 * 1024 * 1024
"""Bytes of one part: the least that S3 takes, so that parts under way stay small."""
MAX_PARTS: Final = 10_000
"""Of one multipart upload, by S3; a file over 10,000 parts of ``PART`` gets larger ones."""
UPLOADS: Final = 2
UPLOAD_PARTS: Final = 3
FETCH_PARTS: Final = 4
"""Uploads at once, parts of one upload at once, and parts fetched at once by one server: together 10 parts, and what
each upload reads ahead."""
MAX_COPY: Final = 5 * 1024**3
"""Largest object that S3 copies in one request."""
MODE: Final = "pyroxfer-mode"
MTIME: Final = "pyroxfer-mtime-ns"
"""Names of an object's metadata: permission bits in octal, modification time in nanoseconds."""
PLAIN_MODE: Final = 0o644
"""Of an object that says nothing about it."""
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RETRY: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


@dataclass(frozen=True, slots=True)
class Found:
    """One object."""

    size: int
    mode: int
    mtime_ns: int
    tag: str
    """Names this version of it."""


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``.

    Raises:
        AddressError: it cannot be read.
        NameRefusedError: the prefix has a component that no path may have.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        raise AddressError(
            f"{printable(url)[:MAX_COMPONENT_BYTES]}: expected s3://BUCKET/PREFIX, with a bucket name of 3 to 63"
            " lower-case letters, digits, dots and hyphens; keys and endpoint come from the environment"
        )
    return bucket, "/".join(split_path(prefix))


class Bucket:
    """A bucket below a prefix; keys are paths relative to it.

    Endpoint, region and credentials are what the environment says (``AWS_ENDPOINT_URL``, ``AWS_REGION``,
    ``AWS_ACCESS_KEY_ID`` and their like).

    Raises (every method): the errors of `object_errors.translated`.
    """

    def __init__(self, url: str) -> None:
        self.name, prefix = split_url(url)
        with translated(self.name, ""):
            self._store = S3Store(
                self.name,
                prefix=prefix or None,
                copy_if_not_exists="header:If-None-Match:*",
                retry_config=_RETRY,  # type: ignore[arg-type]
            )
        self._fetchers = ThreadPoolExecutor(FETCH_PARTS, "pyroxfer-fetch")
        self._uploads = threading.BoundedSemaphore(UPLOADS)
        self._probe_lock = threading.Lock()
        self._is_careful = False
        self.first("")

    def close(self) -> None:
        """End its threads."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def find(self, key: str) -> Found | None:
        """The object under a key, or None."""
        with translated(self.name, key):
            try:
                got = self._get(key, {"head": True})
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            return found_of(got)

    def children(self, key: str) -> tuple[list[str], list[Any]]:
        """The prefixes and the objects (obstore's ``ObjectMeta``) directly below a key."""
        with translated(self.name, key):
            listed = self._store.list_with_delimiter(key or None)
            return list(listed["common_prefixes"]), list(listed["objects"])

    def all(self, key: str) -> Iterator[Any]:
        """Every object below a key, page by page."""
        pages = self._store.list(key or None, chunk_size=1000)
        while True:
            with translated(self.name, key):
                page = next(pages, None)
            if page is None:
                return
            yield from page

    def first(self, key: str) -> list[str]:
        """At most two keys below a key."""
        with translated(self.name, key):
            page = next(iter(self._store.list(key or None, chunk_size=2)), ())
            return [meta["path"] for meta in page][:2]

    def delete(self, key: str) -> None:
        """Remove an object; nothing when there is none."""
        with translated(self.name, key):
            self._store.delete(key)

    def mark(self, key: str) -> None:
        """An empty object."""
        with translated(self.name, key):
            self._store.put(key, b"", use_multipart=False)

    def fetch(self, key: str) -> int:
        """A descriptor of an unlinked temporary file with one version of an object in it, its mode and time on it.

        Raises:
            SourceChangedError: it was replaced meanwhile.
            NoSpaceError: the folder for temporary files has no room for it.
        """
        with translated(self.name, key):
            found = found_of(self._get(key, {"head": True}))
            with tempfile.TemporaryFile(buffering=0) as file:
                _check_room(found.size, key)
                self._fetch_parts(key, found, file.fileno())
                os.fchmod(file.fileno(), found.mode)
                os.utime(file.fileno(), ns=(found.mtime_ns, found.mtime_ns))
                return os.dup(file.fileno())

    def _fetch_parts(self, key: str, found: Found, fd: int) -> None:
        """Parts side by side; the first error, or a cancellation, is raised once nobody writes any more."""

        def fetch(offset: int) -> None:
            end = min(offset + PART, found.size)
            data = self._get(key, {"range": (offset, end), "if_match": found.tag}).bytes()
            _write(fd, memoryview(data), offset)

        parts = [self._fetchers.submit(fetch, offset) for offset in range(0, found.size, PART)]
        try:
            for part in parts:
                check_cancelled()
                part.result()
        finally:
            wait([part for part in parts if not part.cancel()])

    def _get(self, key: str, options: Any) -> Any:
        return self._store.get(key, options=options)

    def publish(self, fd: int, names: Sequence[str], found: Found, *, overwrite: bool) -> str:
        """Put the first ``found.size`` bytes of a file in place under the first of the names that is free, or under
        the very first with ``overwrite``. Nobody sees it before it is whole. The name it got.

        Raises:
            ExistsError: no name is free.
            TransferError: the store does not keep the promise not to overwrite.
        """
        with translated(self.name, names[0]):
            if overwrite:
                self._upload(names[0], _parts(fd, found.size), found)
                return names[0]
            self._probe()
            if found.size <= PART:
                return self._put_small(_read(fd, found.size, 0), names, found)
            if found.size <= MAX_COPY:
                return self._put_by_copy(fd, names, found)
            return self._put_looking(fd, names, found)

    def put(self, name: str, data: bytes, found: Found) -> None:
        """A small object in one request.

        Raises:
            ExistsError, TransferError: as ``publish``.
        """
        with translated(self.name, name):
            self._probe()
            self._put_small(data, [name], found)

    def _put_small(self, data: bytes, names: Sequence[str], found: Found) -> str:
        for name in names:
            with contextlib.suppress(AlreadyExistsError):
                self._store.put(name, data, attributes=_attributes(found), mode="create", use_multipart=False)
                return name
        raise _taken(names)

    def _put_by_copy(self, fd: int, names: Sequence[str], found: Found) -> str:
        """Multipart under a hidden name, then a conditional copy within the store: the client has no conditional
        multipart upload."""
        if len(names) == 1 and self.find(names[0]) is not None:
            raise _taken(names)
        hidden = _beside(names[0])
        self._upload(hidden, _parts(fd, found.size), found)
        try:
            for name in names:
                with contextlib.suppress(AlreadyExistsError):
                    self._store.copy(hidden, name, overwrite=False)
                    return name
        finally:
            self._remove_quietly(hidden)
        raise _taken(names)

    def _put_looking(self, fd: int, names: Sequence[str], found: Found) -> str:
        """What is too large for a copy: looks at the name before the first and before the last part."""
        name = next((name for name in names if self.find(name) is None), None)
        if name is None:
            raise _taken(names)

        def parts() -> Iterator[bytes]:
            for number, part in enumerate(_parts(fd, found.size), 1):
                if number * _part_size(found.size) >= found.size and self._find_beside(name) is not None:
                    raise _taken([name])
                yield part

        self._upload(name, parts(), found)
        return name

    def _find_beside(self, name: str) -> Found | None:
        """``find`` for an iterator that the client calls from inside an upload, where it takes no calls itself."""
        return self._fetchers.submit(self.find, name).result()

    def _upload(self, name: str, parts: Iterator[bytes], found: Found) -> None:
        """Put an object in place, whatever stands there; a failure aborts the multipart upload."""
        size = _part_size(found.size)
        if found.size <= size:
            self._store.put(name, b"".join(parts), attributes=_attributes(found), use_multipart=False)
            return
        at_once = max(1, UPLOAD_PARTS * PART // size)
        with self._uploads:
            self._store.put(
                name,
                parts,
                attributes=_attributes(found),
                chunk_size=size,
                max_concurrency=at_once,
                use_multipart=True,
            )

    def _probe(self) -> None:
        """Find out once whether the store refuses to overwrite when told to: some ignore the condition.

        Raises:
            TransferError: it does not.
        """
        with self._probe_lock:
            if self._is_careful:
                return
            names = _hidden(), _hidden()
            try:
                for name in names:
                    self._store.put(name, b"", mode="create", use_multipart=False)
                for overwrite in (self._put_again, self._copy_again):
                    if not overwrite(*names):
                        raise TransferError(
                            f"s3://{self.name}: the object store ignores If-None-Match, so nothing keeps it from"
                            " overwriting; send with --if-exists replace, or use another store"
                        )
            finally:
                for name in names:
                    self._remove_quietly(name)
            self._is_careful = True

    def _put_again(self, _: str, name: str) -> bool:
        try:
            self._store.put(name, b"", mode="create", use_multipart=False)
        except AlreadyExistsError:
            return True
        return False

    def _copy_again(self, source: str, name: str) -> bool:
        try:
            self._store.copy(source, name, overwrite=False)
        except AlreadyExistsError:
            return True
        return False

    def _remove_quietly(self, key: str) -> None:
        """What cannot be removed now is removed with the leftovers."""
        with contextlib.suppress(BaseError, OSError):
            self._store.delete(key)


def found_of(got: Any) -> Found:
    """The object of a ``GetResult``; what this package noted of mode and time, or what the store says."""
    meta, notes = got.meta, got.attributes
    mode = _noted(notes.get(MODE), 8)
    mtime_ns = _noted(notes.get(MTIME), 10)
    if mode is None or not 0 <= mode <= 0o777:
        mode = PLAIN_MODE
    return Found(meta["size"], mode, modified(meta) if mtime_ns is None else bounded_mtime(mtime_ns), meta["e_tag"])


def modified(meta: Any) -> int:
    """When the store took an object, in nanoseconds."""
    return bounded_mtime(int(meta["last_modified"].timestamp()) * 1_000_000_000)


def _noted(text: str | None, base: int) -> int | None:
    """A number from an object's metadata, which anybody may have written."""
    if text is None or _NUMBER.fullmatch(text) is None:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None


def _attributes(found: Found) -> dict[str, str]:
    return {MODE: f"{found.mode:o}", MTIME: str(found.mtime_ns), "Content-Type": "application/octet-stream"}


def _part_size(size: int) -> int:
    return max(PART, -(-size // MAX_PARTS))


def _parts(fd: int, size: int) -> Iterator[bytes]:
    step = _part_size(size)
    for offset in range(0, size, step):
        yield _read(fd, min(step, size - offset), offset)


def _read(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the spooled file became shorter")
        data += more
    return data


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _hidden() -> str:
    return f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"


def _beside(name: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{_hidden()}"


def _taken(names: Sequence[str]) -> ExistsError:
    return ExistsError(f"{printable(names[0])}: already exists")


def _check_room(size: int, key: str) -> None:
    """Whether the folder for temporary files takes a file of this size."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise NoSpaceError(
            f"{printable(key)}: {size} bytes are needed in {tempfile.gettempdir()} and {free} are free; see TMPDIR"
        )
