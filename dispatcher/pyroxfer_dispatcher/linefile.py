"""A file to which lines are added. It may be renamed and opened again, and a disk that is full stops nobody."""

from __future__ import annotations

import logging
from io import FileIO
from pathlib import Path
from typing import Final

from pyroxfer_core.errors import CommunicationError

from .admin import note

GATHERED_BYTES: Final = 64 * 1024
"""Lines that are kept for the next `flush`; with more of them they are written at once."""


class LineFile:
    """Several processes may add to one file: each writes whole lines, behind what is there.

    Args:
        what: the file's name in events and errors.
    """

    def __init__(self, what: str, path: str) -> None:
        self._what = what
        self._path = path
        self._file: FileIO | None = None
        self._gathered = bytearray()
        self._lines = 0
        self._lost = 0
        """Lines that could not be written since the last that could be."""
        self._is_torn = False
        """The last line that was written broke off in its middle."""

    def open(self) -> None:
        """Open the file; what was open goes on only if that fails.

        Raises:
            CommunicationError: it cannot be opened for writing.
        """
        try:
            file = FileIO(str(Path(self._path)), "ab")
        except OSError as error:
            raise CommunicationError(f"cannot write {self._what} {self._path}: {error.strerror}") from error
        self.close()
        self._file = file

    def add(self, line: bytes) -> None:
        """One line more, without its end; written by the next `flush`, or soon."""
        self._gathered += line + b"\n"
        self._lines += 1
        if len(self._gathered) >= GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered. What cannot be written is lost; the log says so, and when it can be again."""
        if self._file is None or not self._gathered:
            return
        data, lines = bytes(self._gathered), self._lines
        self._gathered.clear()
        self._lines = 0
        try:
            self._write(self._file, b"\n" + data if self._is_torn else data)
        except OSError as error:
            if not self._lost:
                note(logging.ERROR, f"{self._what}_lost", path=self._path, reason=error.strerror)
            self._lost += lines
            return
        if self._lost:
            note(logging.WARNING, f"{self._what}_back", path=self._path, lines_lost=self._lost)
            self._lost = 0

    def _write(self, file: FileIO, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = file.write(left) or 0
            left = left[count:]
            self._is_torn = bool(left) and (bool(count) or self._is_torn)

    def close(self) -> None:
        """Write what has gathered, and close. Twice is fine."""
        self.flush()
        file, self._file = self._file, None
        if file is not None:
            file.close()
