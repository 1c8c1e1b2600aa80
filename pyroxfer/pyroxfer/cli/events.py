"""Where the events of a transfer go: a bar, JSON lines, a few plain lines, or nowhere."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

import click

from ..errors import SomeFilesFailedError
from ..names import printable
from ..offer import SKIPPED, Receipt
from ..progress import Progress, ProgressCallback, TqdmProgress, human

if TYPE_CHECKING:
    from ..planning import Planned


def print_event(event: Progress, **more: object) -> None:
    """One event as one line of JSON on standard output."""
    click.echo(json_module.dumps({**event.to_dict(), **more}, ensure_ascii=True))


def print_trouble(event: Progress) -> None:
    """Warnings and errors of single files as lines on standard error; the rest is silent."""
    if event.event == "warn":
        click.echo(f"pyroxfer: {printable(event.path)}: {printable(event.text)}", err=True)


def print_plan(event: Progress) -> None:
    """What a dry run finds, one file a line on standard output."""
    if event.event == "plan":
        why = f" ({printable(event.text)})" if event.text else ""
        click.echo(f"{event.action:8} {event.size:>14} {printable(event.path)}{why}")
    else:
        print_trouble(event)


@contextlib.contextmanager
def events(label: str, *, json: bool, quiet: bool, progress: bool) -> Iterator[ProgressCallback | None]:
    """What takes the events of a run, by the options of the command. A bar is full when the block ends well.

    A bar and JSON go together unless both would go to the same terminal.
    """
    if progress and not quiet and _is_terminal(sys.stderr) and not (json and _is_terminal(sys.stdout)):
        with TqdmProgress(label) as bar:
            yield _both(bar) if json else bar
            bar.complete()
    elif json:
        yield print_event
    else:
        yield None if quiet else print_trouble


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None: closed from the beginning


def _both(bar: TqdmProgress) -> ProgressCallback:
    def tell(event: Progress) -> None:
        print_event(event)
        bar(event)

    return tell


def conclude_plan(planned: Sequence[Planned], where: str) -> str:
    """One line about what would be moved.

    Raises:
        SomeFilesFailedError: some files would be refused; the error of the only one comes as it is.
    """
    from ..planning import WANTED  # loaded by now: somebody planned

    refused = {one.path: one.error for one in planned if one.error is not None}
    if refused and len(planned) == 1:
        raise next(iter(refused.values()))
    if refused:
        raise SomeFilesFailedError(f"{len(refused)} of {len(planned)} files would be refused", refused)
    moved = [one for one in planned if one.action == WANTED]
    return f"{len(moved)} files, {human(sum(one.size for one in moved))} would be moved to {where}"


def summary(receipts: Receipt | list[Receipt], where: str) -> str:
    """One line about what was committed."""
    if isinstance(receipts, Receipt):
        receipt = receipts
        path = printable(receipt.path)
        if receipt.reason == SKIPPED:
            return f"{path}: left as it is at {where} (skipped)"
        return f"{path}: {human(receipt.size)} committed to {where} ({receipt.channel}: {receipt.reason})"
    committed = [receipt for receipt in receipts if receipt.reason != SKIPPED]
    total = sum(receipt.size for receipt in committed)
    how = sorted({receipt.channel for receipt in committed}) or ["nothing to move"]
    if len(committed) < len(receipts):
        how.append(f"{len(receipts) - len(committed)} skipped")
    return f"{len(committed)} files, {human(total)} committed to {where} ({', '.join(how)})"
