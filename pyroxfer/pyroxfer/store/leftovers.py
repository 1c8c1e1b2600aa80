"""Which partial files nobody will come back for, and removing them. Blocking."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from ..journal import Journal
from ..names import is_journal, is_partial
from .partial import find, lock, read_whole

GRACE_S: Final = 60.0
"""A partial file younger than this is left alone even when its lock is free: its owner may be about to take it."""
UNLOCKED_AGE_S: Final = 24 * 3600.0
"""Where the file system has no locks, a partial file is left over when nobody wrote to it for a day."""
KEPT_S: Final = 7 * 24 * 3600.0
"""A partial file with a journal waits this long for the next attempt: as long as receipts are kept."""
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def remove_leftovers(folder_fd: int) -> int:
    """Remove what is left over in an open folder; how many partial files there were."""
    with os.scandir(folder_fd) as entries:
        names = [entry.name for entry in entries if is_partial(entry.name) or is_journal(entry.name)]
    removed, kept = 0, set()
    for name in filter(is_journal, names):
        with contextlib.suppress(OSError):  # not ours to remove: the others may be
            kept |= _look_at_journal(folder_fd, name)
    for name in filter(is_partial, names):
        if name not in kept:
            with contextlib.suppress(OSError):
                removed += _remove_if_left(folder_fd, name)
    return removed


def _look_at_journal(folder_fd: int, name: str) -> set[str]:
    """The partial file that a journal keeps; a journal that keeps nothing any more is removed."""
    fd = os.open(name, _READ, dir_fd=folder_fd)
    try:
        journal, age = read_whole(fd), _age(os.fstat(fd))
    finally:
        os.close(fd)
    if journal is not None and _is_there(folder_fd, journal) and age < KEPT_S:
        return {journal.heading.data}
    if age >= GRACE_S:
        os.unlink(name, dir_fd=folder_fd)
    return set()


def _is_there(folder_fd: int, journal: Journal) -> bool:
    if not is_partial(journal.heading.data):
        return False
    try:
        os.stat(journal.heading.data, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _age(status: os.stat_result) -> float:
    return time.time() - status.st_ctime


def _remove_if_left(folder_fd: int, name: str) -> bool:
    """Remove one partial file if nobody owns it any more."""
    fd = os.open(name, _READ, dir_fd=folder_fd)
    try:
        age = _age(os.fstat(fd))
        if age < GRACE_S:  # whoever made it just now must find its lock free
            return False
        held = lock(fd)
        if held is False or (held is None and age < UNLOCKED_AGE_S):
            return False
        os.unlink(name, dir_fd=folder_fd)
        return True
    finally:
        os.close(fd)


def forget(folder_fd: int, name: str, origin: str) -> None:
    """Remove what an attempt from ``origin`` to bring a file left, unless somebody is at work on it."""
    found = find(folder_fd, name, origin, patience_s=0.0)
    if found is None:
        return
    try:
        if found.held:
            os.unlink(found.journal.heading.data, dir_fd=folder_fd)
            os.unlink(found.slot, dir_fd=folder_fd)
    finally:
        found.close()
