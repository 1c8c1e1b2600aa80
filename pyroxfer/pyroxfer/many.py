"""Many files as one run: jobs worked off by a few tasks, and what became of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .errors import LostError, SomeFilesFailedError, TransferError
from .offer import Receipt
from .progress import Reporter
from .tasks import open_flat_nursery

WORKERS: Final = 4
"""Jobs under way at once: while one waits for the disk to flush, the others use the line."""
UNFLUSHED_WORKERS: Final = 2
"""Batches of small files under way at once where nobody waits for a disk."""

Job = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Outcome:
    """What became of every file of a run."""

    reporter: Reporter
    receipts: list[Receipt] = field(default_factory=list)
    failures: dict[str, TransferError] = field(default_factory=dict)

    def failed(self, path: str, error: TransferError) -> None:
        """One file failed; the run goes on."""
        self.failures[path] = error
        self.reporter.error(path, error)

    def result(self) -> list[Receipt]:
        """The receipts, by path.

        Raises:
            SomeFilesFailedError: some files were not committed.
        """
        self.receipts.sort(key=lambda receipt: receipt.path)
        if self.failures:
            first = next(iter(self.failures.values()))
            count, total = len(self.failures), len(self.failures) + len(self.receipts)
            raise SomeFilesFailedError(
                f"{count} of {total} files were not committed; the first: {first}", self.failures, self.receipts
            )
        return self.receipts


async def one_of_many(outcome: Outcome, path: str, transfer: Callable[[], Awaitable[Receipt]]) -> None:
    """Run the transfer of one file and note what became of it; a lost network ends the run instead."""
    try:
        outcome.receipts.append(await transfer())
    except LostError:
        raise
    except TransferError as error:
        outcome.failed(path, error)


async def some_of_many(outcome: Outcome, path: str, transfers: Callable[[], Awaitable[list[Receipt]]]) -> None:
    """As ``one_of_many``, for a file or a whole folder."""
    try:
        outcome.receipts += await transfers()
    except LostError:
        raise
    except SomeFilesFailedError as error:
        outcome.receipts += error.receipts
        outcome.failures |= error.failures
    except TransferError as error:
        outcome.failed(path, error)


async def work_off(jobs: Iterable[Job], at_once: int = WORKERS) -> None:
    """Run all jobs, so many at once, begun in order. The first error ends them all."""
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await job()

    async with open_flat_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker)
