"""What a folder is beyond its files: links, and the modes and times of folders. Both clients' part, and the calls
of the service for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pyroxfer_core import expose

from .conversation import Conversation
from .errors import PeerError, TransferError, from_record, to_record
from .links import check_link
from .many import Outcome
from .names import MAX_PATH_BYTES
from .offer import IF_EXISTS, FileEntry, Offer, Receipt, check_size, text_argument
from .placing import settle
from .replies import replies
from .store.base import Store
from .tasks import in_thread

LISTED: Final = 512
"""Links, folders or offers in one call at most."""


@expose
class TreeEnd:
    """The calls of the service for trees. Those that take a list, of at most 512, answer with ``{"results": […]}``,
    one for each in order: ``{"error": …}`` where it failed."""

    def _readable(self) -> Store:
        raise NotImplementedError

    def _writable(self) -> Store:
        raise NotImplementedError

    @replies
    async def check_room(self, path: object, size: object) -> Mapping[str, Any]:
        """``{}`` when files of ``size`` bytes together may find room below a path; nothing is promised."""
        store, place = self._writable(), text_argument(path, "a path", MAX_PATH_BYTES)
        await in_thread(store.check_room, place, check_size(size))
        return {}

    @replies
    async def dress_folders(self, folders: object) -> Mapping[str, Any]:
        """Give folders their modes and times: entries with ``path``, ``mode`` and ``mtime_ns``."""
        store = self._writable()

        def dress(item: object) -> dict[str, Any]:
            entry = FileEntry.from_dict(item)
            store.dress_folder(entry.path, entry.mode, entry.mtime_ns)
            return {}

        return await _for_each(folders, dress)

    @replies
    async def read_links(self, paths: object) -> Mapping[str, Any]:
        """The texts of links: ``{"text": …}``."""
        store = self._readable()
        return await _for_each(
            paths, lambda path: {"text": store.read_link(text_argument(path, "a path", MAX_PATH_BYTES))}
        )

    @replies
    async def make_links(self, links: object, if_exists: object) -> Mapping[str, Any]:
        """Make links, each a list of path and text: ``{"made": bool}``."""
        store = self._writable()
        if not isinstance(if_exists, str) or if_exists not in IF_EXISTS:
            raise PeerError(f"if_exists must be one of {', '.join(IF_EXISTS)}")

        def make(item: object) -> dict[str, Any]:
            if not isinstance(item, (list, tuple)) or len(item) != 2:
                raise PeerError("a link must be a list of path and text")
            path, text = (text_argument(value, "a path", MAX_PATH_BYTES) for value in item)
            return {"made": store.make_link(path, text, if_exists)}

        return await _for_each(links, make)

    @replies
    async def plan_files(self, offers: object) -> Mapping[str, Any]:
        """What would become of offers, changing nothing: ``{}`` where the bytes would be wanted, ``{"receipt": …}``
        where nothing would be moved, ``{"needs": "digest"}`` where only the digest can tell."""
        store = self._writable()

        def plan(item: object) -> dict[str, Any]:
            offer = Offer.from_dict(item)
            store.check_writable(offer.path)
            settled = settle(store, offer)
            if isinstance(settled, Receipt):
                return {"receipt": settled.to_dict()}
            return {} if settled is None else {"needs": settled}

        return await _for_each(offers, plan)


async def _for_each(items: object, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(items, (list, tuple)) or len(items) > LISTED:
        raise PeerError(f"expected a list of at most {LISTED}")

    def all_of_them(items: Sequence[Any]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for item in items:
            try:
                results.append(work(item))
            except TransferError as error:
                results.append({"error": to_record(error)})
        return results

    return {"results": await in_thread(all_of_them, items)}


def slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Lists short enough for one call."""
    for start in range(0, len(items), LISTED):
        yield items[start : start + LISTED]


async def ask_each(talk: Conversation, method: str, items: Sequence[Any], *more: object) -> list[Mapping[str, Any]]:
    """Call one of these methods for a list of any length; the result of each item, errors as they came.

    Raises:
        PeerError: the server answered for something else than it was asked for.
    """
    found: list[Mapping[str, Any]] = []
    for some in slices(items):
        results = (await talk.ask(method, list(some), *more)).get("results")
        if not isinstance(results, (list, tuple)) or len(results) != len(some):
            raise PeerError("the server answered for another number of things than it was asked for")
        for result in results:
            if not isinstance(result, Mapping):
                raise PeerError("the server answered with something else than results")
            found.append(result)
    return found


Named = tuple[str, str]
"""A path relative to the folder that is sent or fetched, and the path that it gets at the receiver."""
LinkText = tuple[Named, "str | TransferError"]


async def send_links(
    talk: Conversation, store: Store, links: Sequence[Named], if_exists: str, outcome: Outcome
) -> None:
    """Make the links of a local folder at the server."""

    def read() -> list[LinkText]:
        return [(named, _read_link(store, named)) for named in links]

    readable = _without_failures(await in_thread(read), outcome)
    results = await ask_each(talk, "make_links", [[path, text] for (_, path), text in readable], if_exists)
    for ((name, _), text), result in zip(readable, results, strict=True):
        if "error" in result:
            outcome.failed(name, from_record(result["error"]))
        else:
            outcome.reporter.link(name, text)


def _read_link(store: Store, named: Named) -> str | TransferError:
    try:
        return check_link(named[1], store.read_link(named[0]))
    except TransferError as error:
        return error


async def get_links(
    talk: Conversation, folder: str, store: Store, links: Sequence[Named], if_exists: str, outcome: Outcome
) -> None:
    """Make the links of a folder of the server here."""
    results = await ask_each(talk, "read_links", [f"{folder}/{name}" if folder else name for name, _ in links])

    def make() -> list[LinkText]:
        return [(named, _make_link(store, named, result)) for named, result in zip(links, results, strict=True)]

    def _make_link(store: Store, named: Named, result: Mapping[str, Any]) -> str | TransferError:
        try:
            if "error" in result:
                raise from_record(result["error"])
            text = text_argument(result.get("text"), "a link", MAX_PATH_BYTES)
            store.make_link(named[1], text, if_exists)
            return text
        except TransferError as error:
            return error

    for (name, _), text in _without_failures(await in_thread(make), outcome):
        outcome.reporter.link(name, text)


def _without_failures(read: Sequence[LinkText], outcome: Outcome) -> list[tuple[Named, str]]:
    good: list[tuple[Named, str]] = []
    for named, text in read:
        if isinstance(text, TransferError):
            outcome.failed(named[0], text)
        else:
            good.append((named, text))
    return good


def deepest_first(folders: Sequence[FileEntry]) -> list[FileEntry]:
    """Folders in the order in which they get their times: making something inside one would change it again."""
    return sorted(folders, key=lambda entry: entry.path.count("/"), reverse=True)


async def dress_there(talk: Conversation, folders: Sequence[FileEntry], outcome: Outcome) -> None:
    """Give folders at the server their modes and times; entries by their paths there."""
    ordered = deepest_first(folders)
    results = await ask_each(talk, "dress_folders", [entry.to_dict() for entry in ordered])
    for entry, result in zip(ordered, results, strict=True):
        if "error" in result:
            outcome.reporter.warn(entry.path, f"mode and time not set: {from_record(result['error'])}")


async def dress_here(store: Store, folders: Sequence[FileEntry], outcome: Outcome) -> None:
    """Give folders here their modes and times; entries by their paths here."""

    def dress() -> list[tuple[str, TransferError]]:
        failed = []
        for entry in deepest_first(folders):
            try:
                store.dress_folder(entry.path, entry.mode, entry.mtime_ns)
            except TransferError as error:
                failed.append((entry.path, error))
        return failed

    for path, error in await in_thread(dress):
        outcome.reporter.warn(path, f"mode and time not set: {error}")
