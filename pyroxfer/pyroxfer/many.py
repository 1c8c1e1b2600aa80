"""Many files as one run: jobs worked off by a few tasks, and what became of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from .errors import AddressError, LostError, SomeFilesFailedError, TransferError
from .offer import Receipt
from .progress import Reporter
from .tasks import open_flat_nursery

WORKERS: Final = 4
"""Jobs under way at once: while one waits for the disk to flush, the others use the line."""

S = TypeVar("S")
Job = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Outcome:
    """What became of every file of a run."""

    reporter: Reporter
    receipts: list[Receipt] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)

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
        return self.in_order()

    def in_order(self) -> list[Receipt]:
        """The receipts in the order in which they came. Errors as ``result``."""
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


async def one_by_one(
    reporter: Reporter, sources: Sequence[S], transfer: Callable[[S], Awaitable[list[Receipt]]]
) -> list[Receipt]:
    """What a user named, in turn; of several, one that fails does not stop the others. The receipts, in order.

    Raises:
        SomeFilesFailedError: some of several are not committed; the others are.
        TransferError: of the one source, the network is lost, or an argument cannot be used.
    """
    if len(sources) == 1:
        return await transfer(sources[0])
    outcome = Outcome(reporter)
    for source in sources:
        try:
            outcome.receipts += await transfer(source)
        except (AddressError, LostError):
            raise  # used wrongly, or no way to go on
        except SomeFilesFailedError as error:
            outcome.receipts += error.receipts
            outcome.failures |= {f"{source}/{path}": failure for path, failure in error.failures.items()}
        except TransferError as error:
            outcome.failed(str(source), error)
    return outcome.in_order()


async def work_off(jobs: Iterable[Job]) -> None:
    """Run all jobs, ``WORKERS`` at once, begun in order. The first error ends them all."""
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await job()

    async with open_flat_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(worker)
