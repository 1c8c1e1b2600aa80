"""The files to move, and their digests by the standard library, independent of the product."""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MIB = 1024 * 1024
PIECE = 4 * MIB
Digests = dict[str, tuple[int, str]]
"""Relative path to size and SHA-256."""


def standard_library(work: Path) -> Path:
    """A copy of the running Python's standard library without what others installed into it."""
    source = Path(sysconfig.get_path("stdlib"))
    target = work / "source" / "stdlib"
    unwanted = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "*.so", "*.a")
    shutil.copytree(source, target, ignore=unwanted, ignore_dangling_symlinks=True)
    return target


def large_file(work: Path, size: int) -> Path:
    """A file of bytes that do not repeat or compress."""
    path = work / "source" / "large.bin"
    with open(path, "wb") as file:
        for offset in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size - offset)))
    return path


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def digests(path: Path) -> Digests:
    """What stands at a path, file by file; two threads, since hashing releases the interpreter."""
    with ThreadPoolExecutor(2) as pool:
        found = files_of(path)
        return {
            str(file.relative_to(path.parent)): value
            for file, value in zip(found, pool.map(digest, found), strict=True)
        }


def digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> str:
    found = files_of(path)
    return f"{len(found):,} file{'s' * (len(found) != 1)}, {sum(file.stat().st_size for file in found):,} bytes"
