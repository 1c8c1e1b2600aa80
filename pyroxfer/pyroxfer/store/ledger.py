"""What several processes have promised files on their way below one root: each keeps a page that all others read.

Blocking.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

LOCK: Final = "lock"


class Promise(NamedTuple):
    """To an open file of another process."""

    size: int
    """Bytes it may grow to."""
    held: int
    """Bytes of the disk that it has."""
    length: int
    """Bytes that it has."""


class Elsewhere(NamedTuple):
    """What all other processes tell together."""

    added: int
    """Bytes that came to stay, since they began."""
    removals: int
    """How often something was removed."""
    promises: tuple[Promise, ...]

    @property
    def owed(self) -> int:
        """Bytes of the disk that are promised and not taken yet."""
        return sum(max(0, promise.size - promise.held) for promise in self.promises)

    @property
    def promised(self) -> int:
        """Bytes that are promised, taken or not."""
        return sum(promise.size for promise in self.promises)

    @property
    def length(self) -> int:
        """Bytes of files that are promised more."""
        return sum(promise.length for promise in self.promises)


NOTHING: Final = Elsewhere(0, 0, ())


@dataclass(slots=True)
class Page:
    """One process's part."""

    pid: int = 0
    promised: list[tuple[int, int]] = field(default_factory=list)
    """Descriptors in that process, and the size of each."""
    added: int = 0
    """Bytes that came to stay, since the process began."""
    removed: int = 0
    """How often something was removed."""


class Ledger:
    """The pages of all processes, as one of them sees them.

    Args:
        folder: shared by them, and nobody else.
        number: of this one, up to ``count``.
    """

    def __init__(self, folder: Path, number: int, count: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._own = folder / str(number)
        self._others = [folder / str(other) for other in range(count) if other != number]
        self._lock = folder / LOCK
        self.page = Page(os.getpid())
        self.publish()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else promises anything while the block runs."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # the folder is gone, and so are the others
                file = stack.enter_context(self._lock.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def publish(self) -> None:
        """Let others read this process's page as it is now."""
        fresh = self._own.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):  # the folder is gone, and with it who would read it
            fresh.write_text(json.dumps(asdict(self.page)))
            fresh.replace(self._own)

    def elsewhere(self) -> Elsewhere:
        """What the others tell. Promises to files that are closed by now are void, as of a process that died."""
        pages = [page for path in self._others if (page := _read(path)) is not None]
        promises = [
            Promise(size, status.st_blocks * 512, status.st_size)
            for page in pages
            for fd, size in page.promised
            if (status := _look(page.pid, fd)) is not None
        ]
        return Elsewhere(sum(page.added for page in pages), sum(page.removed for page in pages), tuple(promises))


def _read(path: Path) -> Page | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return Page(**values)


def _look(pid: int, fd: int) -> os.stat_result | None:
    try:
        status = os.stat(f"/proc/{pid}/fd/{fd}")  # noqa: PTH116  # not a path of the store
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
