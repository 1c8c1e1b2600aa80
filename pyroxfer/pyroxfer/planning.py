"""What a run would do, found out without changing anything at either end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .conversation import Conversation
from .errors import TransferError, from_record
from .links import check_link
from .many import Outcome
from .names import split_file_path
from .offer import FileEntry, Offer, Receipt
from .options import TransferOptions
from .placing import NEEDS_DIGEST, digest_of_file, settle
from .progress import Reporter
from .selection import select
from .store.base import Store
from .tasks import in_thread
from .trees import ask_each

WANTED: Final = "move"
"""Its bytes would be moved."""
REFUSED: Final = "refuse"


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of one file."""

    path: str
    """Where it would stand, relative to the receiver's root."""
    size: int
    action: str
    """``move``, or ``already`` or ``skipped`` as in a receipt, ``link``, or ``refuse``."""
    error: TransferError | None = None
    """Why it would be refused."""


class Planner:
    """Plans in one conversation; collects what it finds in ``planned``."""

    def __init__(self, talk: Conversation, options: TransferOptions, reporter: Reporter) -> None:
        self._talk = talk
        self._options = options
        self._reporter = reporter
        self.planned: list[Planned] = []

    def note(self, path: str, size: int, action: str, error: TransferError | None = None) -> None:
        """Add what would become of one file, and tell it."""
        self.planned.append(Planned(path, size, action, error))
        self._reporter.plan(path, size, action, "" if error is None else str(error))

    def _offer(self, path: str, size: int | None) -> Offer:
        return Offer(path, size, self._talk.algorithm, if_exists=self._options.if_exists)

    def _selected(self, entries: Sequence[FileEntry]) -> tuple[list[FileEntry], list[FileEntry]]:
        outcome = Outcome(self._reporter)
        taken, links = select(entries, self._options, outcome)
        for path, error in outcome.failures.items():
            self.note(path, 0, REFUSED, error)
        return [entry for entry in taken if entry.kind == "file"], links

    async def send(self, store: Store, entries: Sequence[tuple[FileEntry, str]]) -> None:
        """Files of a local store, each with its path at the server."""
        offers = [self._offer(path, entry.size) for entry, path in entries]
        answers = await self._ask(offers)
        unsure = [place for place, answer in enumerate(answers) if answer.get("needs") == NEEDS_DIGEST]
        if unsure:
            digested = await in_thread(self._with_digests, store, [(entries[at][0], offers[at]) for at in unsure])
            for place, answer in zip(unsure, await self._ask(digested), strict=True):
                answers[place] = answer
        for offer, answer in zip(offers, answers, strict=True):
            self._take(offer, answer)

    async def _ask(self, offers: Sequence[Offer]) -> list[Mapping[str, object]]:
        return list(await ask_each(self._talk, "plan_files", [offer.to_dict() for offer in offers]))

    def _with_digests(self, store: Store, files: Sequence[tuple[FileEntry, Offer]]) -> list[Offer]:
        found = []
        for entry, offer in files:
            end = digest_of_file(store, entry.path, offer.algorithm)
            found.append(replace(offer, size=end.size, digest=end.digest))
        return found

    def _take(self, offer: Offer, answer: Mapping[str, object]) -> None:
        try:
            self._options.check_name(offer.path)
        except TransferError as error:
            self.note(offer.path, offer.size or 0, REFUSED, error)
            return
        if "error" in answer:
            self.note(offer.path, offer.size or 0, REFUSED, from_record(answer["error"]))
        elif "receipt" in answer:
            self.note(offer.path, offer.size or 0, Receipt.from_dict(answer["receipt"]).reason)
        else:
            self.note(offer.path, offer.size or 0, WANTED)

    async def send_tree(self, store: Store, target: str) -> None:
        """Everything that is taken of a local folder.

        Raises:
            NoSpaceError: all of it cannot find room there.
        """
        files, links = self._selected(await in_thread(lambda: list(store.walk(""))))
        await self._talk.ask("check_room", target, sum(entry.size for entry in files))
        await self.send(store, [(entry, _below(target, entry.path)) for entry in files])

        def check() -> list[tuple[str, TransferError | None]]:
            return [
                (path, _link_error(store, link.path, path)) for link in links for path in [_below(target, link.path)]
            ]

        for path, error in await in_thread(check):
            self.note(path, 0, "link" if error is None else REFUSED, error)

    async def get(self, store: Store | None, entries: Sequence[tuple[FileEntry, str]]) -> None:
        """Files of the server, each with its path in the local store; None when its folder is not there yet."""
        for entry, path in entries:
            try:
                action = await self._get(store, self._offer(path, entry.size), entry)
            except TransferError as error:
                self.note(path, entry.size, REFUSED, error)
            else:
                self.note(path, entry.size, action)

    async def _get(self, store: Store | None, offer: Offer, entry: FileEntry) -> str:
        split_file_path(offer.path)
        self._options.check_name(offer.path)
        settled = None if store is None else await in_thread(settle, store, offer)
        if store is not None and settled == NEEDS_DIGEST:
            end = Offer.from_dict(
                {
                    **offer.to_dict(),
                    **dict((await self._talk.ask("digest", entry.path, offer.algorithm)).get("end") or {}),
                }
            )
            settled = await in_thread(settle, store, end)
        return settled.reason if isinstance(settled, Receipt) else WANTED

    async def get_tree(self, listed: Sequence[FileEntry], folder: str, store: Store | None, target: str) -> None:
        """Everything that is taken of a folder of the server.

        Raises:
            NoSpaceError: all of it cannot find room here.
        """
        files, links = self._selected(listed)
        if store is not None:
            await in_thread(store.check_room, target, sum(entry.size for entry in files))
        pairs = [(replace(entry, path=_below(folder, entry.path)), _below(target, entry.path)) for entry in files]
        await self.get(store, pairs)
        for link in links:
            self.note(_below(target, link.path), 0, "link")


def _below(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path


def _link_error(store: Store, name: str, path: str) -> TransferError | None:
    try:
        check_link(path, store.read_link(name))
    except TransferError as error:
        return error
    return None
