"""The race against symbolic links: a process swaps a folder below the root for a link that leads out, as fast as it
can, while this one works through the store on paths that lead over it.

    ./scripts/swaps --count 20000 --seed 7

Fails (exit 1) when anything outside was read, made, changed or removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from swaps_arguments import parser

from pyroxfer.errors import TransferError
from pyroxfer.store.local import LocalStore

EXCHANGE = 2
"""RENAME_EXCHANGE, from linux/fs.h."""
SECRET = b"outside"
NAMES = ("sentinel", "new", "deep/new", "deep")


def swap(folder_fd: int, one: bytes, other: bytes) -> None:
    """Exchange two names in one step."""
    if ctypes.CDLL(None, use_errno=True).renameat2(folder_fd, one, folder_fd, other, EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def swapper(root: Path, count: int, ready: int) -> None:
    """Exchange folder and link ``count`` times, beginning when told; gives way now and then, so that both positions
    are met."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    os.read(ready, 1)
    for number in range(count):
        swap(folder, b"d", b"e")
        if number % 4 == 0:
            os.sched_yield()


def picture(outside: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file outside, with what would change if it were touched."""
    found = {}
    for path in sorted([outside, *outside.rglob("*")]):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (data, status.st_mode, status.st_mtime_ns)
    return found


def put(store: LocalStore, path: str) -> None:
    staged = store.stage(path, 6, 0o644)
    try:
        staged.write(0, memoryview(b"inside"))
        staged.publish(6, "replace", "none", None)
    finally:
        staged.discard()


def put_whole(store: LocalStore, path: str) -> None:
    with store.whole_files() as whole:
        whole.put(path, b"inside", 0o644, 10**18, "none")


def read(store: LocalStore, path: str) -> None:
    fd = store.open_file(path)
    try:
        if os.read(fd, 100) == SECRET:
            raise AssertionError(f"{path}: a file outside was read")
    finally:
        os.close(fd)


def listing(store: LocalStore, path: str) -> None:
    if any(entry.path.endswith("only-outside") for entry in store.walk(path)):
        raise AssertionError(f"{path}: a folder outside was listed")


WORK: tuple[Callable[[LocalStore, str], None], ...] = (
    put,
    put_whole,
    read,
    listing,
    lambda store, path: store.remove(path),
    lambda store, path: store.make_folder(path),
    lambda store, path: store.dress_folder(path, 0o700, 10**18),
    lambda store, path: _ignore(store.make_link(path, "x", "replace")),
    lambda store, path: _ignore(store.clean_folder(path)),
)


def _ignore(_: object) -> None:
    pass


def race(work: Path, count: int, seed: int) -> tuple[int, int]:
    """Operations done and refused during ``count`` swaps.

    Raises:
        AssertionError: something outside was touched.
    """
    root, outside = work / "root", work / "outside"
    for folder in (root / "d" / "deep", outside / "deep"):
        folder.mkdir(parents=True)
    for name in ("sentinel", "only-outside", "deep/new"):
        (outside / name).write_bytes(SECRET)
    (root / "e").symlink_to("../outside")
    before, store, picks = picture(outside), LocalStore(root), random.Random(seed)
    start, go = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            swapper(root, count, start)
            os._exit(0)
        os._exit(1)
    done = refused = 0
    os.write(go, b"x")
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        for _ in range(50):
            try:
                picks.choice(WORK)(store, f"d/{picks.choice(NAMES)}")
                done += 1
            except TransferError:
                refused += 1
    assert ended[1] == 0, "the swapping process failed"
    store.close()
    assert picture(outside) == before, "something outside was touched"
    return done, refused


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pyroxfer-swaps-") as work:
        try:
            done, refused = race(Path(work), options.count, options.seed)
        except AssertionError as error:
            print(f"seed {options.seed}: {error}")
            sys.exit(1)
    print(
        f"{options.count} swaps (seed {options.seed}): {done} operations done, {refused} refused, 0 touches outside"
    )


if __name__ == "__main__":
    main()
