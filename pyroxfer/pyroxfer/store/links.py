"""Symbolic links as things of their own: read and made, never followed. Blocking."""

from __future__ import annotations

import contextlib
import os
import secrets

from ..errors import ExistsError
from ..names import PRIVATE_PREFIX, printable
from .staged import MAX_RENAME_TRIES, numbered


def make_link(folder_fd: int, name: str, text: str, if_exists: str) -> bool:
    """Make a link in an open folder; false when it was left as it is, being equal or to be skipped.

    Raises:
        ExistsError: something else stands there, and ``if_exists`` does not say what to do, or it is a folder.
        OSError: what the system said.
    """
    names = [name]
    if if_exists == "rename":
        names += [numbered(name, number) for number in range(1, MAX_RENAME_TRIES + 1)]
    for candidate in names:
        try:
            os.symlink(text, candidate, dir_fd=folder_fd)
        except FileExistsError:
            if _text_of(folder_fd, candidate) == text or if_exists == "skip":
                return False
            continue
        return True
    if if_exists in ("replace", "resume"):
        _replace(folder_fd, name, text)
        return True
    raise ExistsError(f"{printable(name)}: something else than this link exists; see --if-exists")


def _text_of(folder_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder_fd)
    except OSError:
        return None


def _replace(folder_fd: int, name: str, text: str) -> None:
    """Put a link in the place of a file or another link, in one step."""
    temporary = f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
    os.symlink(text, temporary, dir_fd=folder_fd)
    try:
        os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except IsADirectoryError:
        raise ExistsError(f"{printable(name)}: is a folder, and a link is to stand there") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder_fd)
