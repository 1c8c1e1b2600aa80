"""The demo: starts the appliance, moves real files over every channel, passes calls on, verifies it all itself."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import calls  # with it comes the place of what scripts share
import sources
from children import clean_up_when_told_to_end
from demo_arguments import parser
from services import Appliance
from table import Row, lines
from transfers import Transfers

ROOT = Path(__file__).parent.parent.parent
COPIES = 3
"""Of the large file at the same time: the source, the server's, the one brought back."""
SPARE = 500_000_000
TREE_CHANNELS = ("iter", "annot", "auto")
FILE_CHANNELS = ("iter", "annot", "raw", "auto")


def main() -> None:
    options = parser().parse_args()
    clean_up_when_told_to_end()
    with work_folder(options.size) as work, ExitStack() as stack:
        appliance = stack.enter_context(Appliance(work))
        rows = list(run(appliance, work, options.size))
        print("\n".join(lines(rows)), flush=True)
        failed = [f"{row.what} ({row.channel})" for row in rows if not row.verified]
        if options.keep:
            keep(appliance)
    print(f"NOT verified: {', '.join(failed)}" if failed else "Everything verified, nothing left running.")
    sys.exit(1 if failed else 0)


@contextmanager
def work_folder(size: int) -> Iterator[Path]:
    """A folder of our own in the repository, removed at the end, or by the next demo if this one is killed.

    Refused where it cannot be, or is too small.
    """
    base = ROOT / ".demo"
    with suppress(OSError):
        base.mkdir(exist_ok=True)
    if not os.access(base, os.W_OK):
        sys.exit(f"demo: cannot write in {base}; run it in a copy of the repository")
    for left in base.glob("run-*"):
        with suppress(OSError), locked(left):  # another demo may be at work in it, or just remove it
            shutil.rmtree(left)
    needed, free = COPIES * size + SPARE, shutil.disk_usage(base).free
    if free < needed:
        sys.exit(f"demo: needs {needed / 1e9:.1f} GB free and there are {free / 1e9:.1f}; try --size 100MiB")
    with tempfile.TemporaryDirectory(prefix="run-", dir=base) as folder, locked(Path(folder)):
        yield Path(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which its owner's end gives back, however it ends.

    Raises:
        OSError: another process has it, or there is no such folder.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def run(appliance: Appliance, work: Path, size: int) -> Iterator[Row]:
    """Every part of the demo, a row each."""
    transfers = Transfers(appliance, work)
    tree = sources.standard_library(work)
    say(f"(a) the standard library of this Python: {sources.describe(tree)}")
    for channel in TREE_CHANNELS:
        yield from transfers.there_and_back(tree, channel)
    large = sources.large_file(work, size)
    say(f"(b) one file: {sources.describe(large)}")
    for channel in FILE_CHANNELS:
        yield from transfers.there_and_back(large, channel)
    say("(c) blobs through the dispatcher to two back ends")
    yield from calls.blob_calls(appliance)


def keep(appliance: Appliance) -> None:
    print(
        "\n".join(
            [
                "",
                "Still running. Try, in another terminal in this folder:",
                "",
                *appliance.hints(),
                "",
                "Ctrl-C ends it.",
            ]
        ),
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
except BrokenPipeError:  # nobody reads on, as with `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written would fail again
    sys.exit(128 + signal.SIGPIPE)
