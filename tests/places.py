"""The two ends of a transfer as a test sees them: a folder, or what is below a prefix of a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from seaweeds import BUCKET, Seaweed


class Place(Protocol):
    """Where files are put and looked at without the program under test."""

    def put(self, name: str, data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> None: ...

    def read(self, name: str) -> bytes | None:
        """What a file holds; None when there is none."""

    def about(self, name: str) -> tuple[int, int]:
        """Permission bits and modification time in nanoseconds."""

    def version(self, name: str) -> object:
        """Another one whenever the file was written again."""

    def remove(self, name: str) -> None: ...

    def names(self) -> set[str]:
        """Of all files, the hidden ones too."""


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str, data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> None:
        file = self.path / name
        file.write_bytes(data)
        file.chmod(mode)
        if mtime_ns:
            os.utime(file, ns=(1, mtime_ns))

    def read(self, name: str) -> bytes | None:
        file = self.path / name
        return file.read_bytes() if file.exists() else None

    def about(self, name: str) -> tuple[int, int]:
        status = (self.path / name).stat()
        return status.st_mode & 0o777, status.st_mtime_ns

    def version(self, name: str) -> object:
        return (self.path / name).stat().st_ino

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def names(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


class Prefix:
    """Of a bucket, looked at with a client of its own."""

    def __init__(self, seaweed: Seaweed, url: str) -> None:
        self._prefix = url.removeprefix(f"s3://{BUCKET}/")
        self._client: Any = seaweed.client(BUCKET)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def put(self, name: str, data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> None:
        attributes = {"pyroxfer-mode": f"{mode:o}", "pyroxfer-mtime-ns": str(mtime_ns)}
        self._client.put(self._key(name), data, attributes=attributes)

    def read(self, name: str) -> bytes | None:
        return bytes(self._client.get(self._key(name)).bytes()) if name in self.names() else None

    def about(self, name: str) -> tuple[int, int]:
        attributes = self._client.get(self._key(name)).attributes
        return int(attributes["pyroxfer-mode"], 8), int(attributes["pyroxfer-mtime-ns"])

    def version(self, name: str) -> object:
        meta = self._client.head(self._key(name))
        return meta["e_tag"], meta["last_modified"]

    def remove(self, name: str) -> None:
        self._client.delete(self._key(name))

    def names(self) -> set[str]:
        pages = self._client.list(self._prefix)
        return {meta["path"].removeprefix(f"{self._prefix}/") for page in pages for meta in page}
