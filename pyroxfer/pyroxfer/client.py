"""send, get, ls, stat and remove: what users of the library call."""

from __future__ import annotations

import functools
import os
import stat as stat_module
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from pyroxfer_core import Settings

from .address import Address, parse_address
from .conversation import Conversation, open_conversation
from .errors import AddressError, ExistsError
from .getting import Receiver
from .many import Outcome, some_of_many
from .names import printable
from .offer import FileEntry, Receipt
from .options import NATIVE, TransferOptions
from .origin import origin_of_path
from .progress import ProgressCallback, Reporter
from .selection import Selection
from .sending import Sender, joined
from .source import FileSource, PipeSource
from .store.local import LocalStore
from .store.rooted import open_source, translated
from .tasks import in_thread

PIPE: Final = "-"
"""As a source: standard input. As a target of ``get``: standard output."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def listed(paths: Paths) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        return [os.fspath(paths)]
    return [os.fspath(path) for path in paths]


def _gathered(many: bool, receipts: list[Receipt]) -> Receipt | list[Receipt]:
    return receipts if many or len(receipts) != 1 else receipts[0]


async def send(
    paths: Paths,
    to: str | Address,
    *,
    channel: str = "auto",
    if_exists: str = "fail",
    durability: str = "data",
    resume: bool = True,
    streams: int = 0,
    bwlimit: int | None = None,
    compress: bool = False,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    only: Sequence[str] | None = None,
    links: bool = False,
    names: str = NATIVE,
    exact: bool = False,
    progress: ProgressCallback | None = None,
    settings: Settings | None = None,
) -> Receipt | list[Receipt]:
    """Send files and folders to a file server. Returns only when they are committed there.

    Args:
        paths: one path or several; ``-`` is standard input.
        to: an address such as ``HOST:PORT/path`` or ``NAME/path``; with a slash at its end, or naming a folder that
            exists, things are put into it.
        channel: ``auto``, or the one to use.
        if_exists: ``fail``, ``skip``, ``replace``, ``rename``, or ``resume``, which replaces and takes the blocks
            that are equal from what is there. Equal bytes under the final name are success always.
        durability: what is flushed before the receipt: ``none``, ``data``, or ``full`` (names too).
        resume: go on where an interrupted attempt ended, after comparing digests, and keep what this one leaves.
        streams: side streams at once for one file; 0 decides by the length of the line.
        bwlimit: bytes a second at most.
        compress: pack blocks with zstd for files and lines where it pays, if both ends have the library.
        exclude, include: patterns as in ``.gitignore`` for what is in folders: what ``exclude`` matches is left out
            unless ``include`` matches it; ``include`` alone takes only what it matches.
        only: paths below the one folder that is named; nothing else of it is taken.
        links: make symbolic links whose text stays inside the root, instead of leaving links out.
        names: ``portable`` refuses names that not every system takes, and of one folder those that differ in case or
            normal form only; with ``native`` the latter are warned of.
        exact: what is sent gets the name at the end of ``to``, also when a folder of that name is there: as with
            ``cp -T``. So a folder is gone on with that an interrupted run has begun.
        progress: called with each event, in the task that waits here.

    Returns:
        The receipt of the one file, or the list of receipts for several paths or a folder.

    Raises:
        AddressError: an argument cannot be used.
        SomeFilesFailedError: of many files some are not committed.
        TransferError: not committed; each class has its ``exit_code``.
        NamingError, CommunicationError: the server cannot be found or reached, or was lost on the way.

    Cancelling leaves nothing under the final names of what was not committed; what has arrived of a file is kept at
    the server for a week, for the next attempt.
    """
    sources = listed(paths)
    several = await in_thread(check_sources, sources, only is not None) or len(sources) > 1
    target = to if isinstance(to, Address) else parse_address(to)
    selection = Selection(exclude, include, only)
    options = TransferOptions(
        channel,
        if_exists,
        durability,
        resume,
        streams,
        bwlimit,
        compress,
        selection,
        names,
        links,
        settings or Settings(),
    )
    if not sources:
        raise AddressError("nothing to send: name at least one file or folder")
    async with open_conversation(target.uri, options.settings) as talk:
        into = not exact and (target.into or await is_folder(talk, target.path))
        check_takes(len(sources), str(target), into, exact)
        check_apart(await in_thread(source_names, sources))
        reporter = Reporter(progress)
        one = functools.partial(_send_one, Sender(talk, options, reporter), talk, target=target.path, into=into)
        receipts = await _each(sources, one, reporter)
    return _gathered(several, receipts)


async def _each(
    names: Sequence[str], transfer: Callable[[str], Awaitable[list[Receipt]]], reporter: Reporter
) -> list[Receipt]:
    """Transfer one thing, whose error comes out as it is, or several, of which the others go on when one fails."""
    if len(names) == 1:
        return await transfer(names[0])
    outcome = Outcome(reporter)
    for name in names:
        await some_of_many(outcome, name, functools.partial(transfer, name))
    return outcome.result()


def check_sources(sources: Sequence[str], one_folder: bool = False) -> bool:
    """Whether there is a folder among them. Blocking.

    Raises:
        AddressError: one folder alone is wanted, since there is a list of its files, and it is none.
        NotFoundError, DeniedError: the only one is not there, or cannot be looked at. One of several that is missing
            is told when its turn comes, and does not stop the others.
    """
    if one_folder and not (len(sources) == 1 and os.path.isdir(sources[0])):  # noqa: PTH112
        raise AddressError("a list of files is for one folder; name just that")
    if len(sources) == 1 and sources[0] != PIPE:
        with translated(sources[0]):
            return stat_module.S_ISDIR(Path(sources[0]).stat().st_mode)
    return any(os.path.isdir(source) for source in sources)  # noqa: PTH112  # False, not an error, where nothing is


def check_apart(names: Iterable[str]) -> None:
    """Whether things that go into one folder have names of their own; one that is named twice is one thing.

    Raises:
        AddressError: two have one name, and the second would take the place of the first.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise AddressError(f"two of the sources are called '{printable(name)}'; give them different targets")
        if name:
            seen.add(name)


def source_names(sources: Sequence[str]) -> list[str]:
    """What local sources are called in a folder, each once; nothing for one whose contents are meant. Blocking."""
    return [folder_name(source) for source in dict.fromkeys(sources)]


async def is_folder(talk: Conversation, path: str) -> bool:
    return (await talk.ask("is_folder", path)).get("folder") is True


def check_takes(count: int, target: str, into: bool, exact: bool) -> None:
    """Whether so many things can go to a target.

    Raises:
        AddressError: they cannot.
    """
    if count > 1 and exact:
        raise AddressError("one name for several things: leave -T (exact) out, or name one source only")
    if count > 1 and not into:
        raise AddressError(f"{printable(target)}: is not a folder, so it cannot take several things; end it in '/'")


async def check_takes_folder(talk: Conversation, path: str) -> bool:
    """Make sure that a folder can go to a path; whether there is one already.

    Raises:
        ExistsError: something else than a folder stands there.
    """
    there = await talk.ask("is_folder", path)
    if there.get("there") is True and there.get("folder") is not True:
        raise ExistsError(f"{printable(path)}: is a file at the server, and a folder is sent; name another target")
    return there.get("there") is True


async def _send_one(sender: Sender, talk: Conversation, source: str, target: str, into: bool) -> list[Receipt]:
    if source == PIPE:
        if into:
            raise AddressError("what comes from standard input needs a file name at the end of the target")
        async with PipeSource(0, "standard input", talk.algorithm) as pipe:
            return [await sender.send(pipe, target)]
    if await in_thread(os.path.isdir, source):
        return await _send_folder(sender, talk, source, target, into)
    with translated(source):
        fd = await in_thread(open_source, source)
    origin = await in_thread(origin_of_path, source)
    async with FileSource(fd, source, talk.algorithm, origin) as file:
        return [await sender.send(file, joined(target, Path(source).name) if into else target)]


async def _send_folder(sender: Sender, talk: Conversation, source: str, target: str, into: bool) -> list[Receipt]:
    name = await in_thread(folder_name, source)
    place = joined(target, name) if into and name else target
    begun = await check_takes_folder(talk, place)
    store = await in_thread(LocalStore, source)
    try:
        with sender.reporter.beginning(place, already=begun or into or not name):
            return await sender.send_tree(store, place, source)
    finally:
        store.close()


def folder_name(source: str) -> str:
    """What a folder is called at the other end; nothing for ``.``, whose contents are meant, as with cp."""
    name = Path(source).name
    return Path(source).resolve().name if name == ".." else name


async def get(
    sources: str | Address | Sequence[str | Address],
    to: str | os.PathLike[str] = ".",
    *,
    channel: str = "auto",
    if_exists: str = "fail",
    durability: str = "data",
    resume: bool = True,
    streams: int = 0,
    bwlimit: int | None = None,
    compress: bool = False,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    only: Sequence[str] | None = None,
    links: bool = False,
    names: str = NATIVE,
    exact: bool = False,
    progress: ProgressCallback | None = None,
    settings: Settings | None = None,
) -> Receipt | list[Receipt]:
    """Fetch files and folders from file servers. Returns only when they are in place here.

    Args:
        sources: one address or several.
        to: a local path; with a slash at its end, or naming a folder that exists, things are put into it.
            ``-`` is standard output.

    The other arguments, the result and the errors are those of `send`. Cancelling keeps what has arrived
    of a file in a hidden one beside its final name, for the next attempt.
    """
    wanted = [sources] if isinstance(sources, (str, Address)) else list(sources)
    addresses = [source if isinstance(source, Address) else parse_address(source) for source in wanted]
    selection = Selection(exclude, include, only)
    options = TransferOptions(
        channel,
        if_exists,
        durability,
        resume,
        streams,
        bwlimit,
        compress,
        selection,
        names,
        links,
        settings or Settings(),
    )
    if not addresses:
        raise AddressError("nothing to fetch: name at least one address")
    reporter, several = Reporter(progress), len(addresses) > 1
    folders: list[str] = []
    check_takes(len(addresses), os.fspath(to), not several or await in_thread(takes_several, os.fspath(to)), exact)
    check_apart(address.name for address in dict.fromkeys(addresses))

    async def one(name: str) -> list[Receipt]:
        address = by_name[name]
        async with open_conversation(address.uri, options.settings) as talk:
            receiver = Receiver(talk, options, reporter)
            entry = await receiver.about(address.path)
            if only is not None and (several or entry.kind != "folder"):
                raise AddressError("a list of files is for one folder; name just that")
            if entry.kind == "folder":
                folders.append(name)
            return await _get_one(receiver, entry, os.fspath(to), exact)

    by_name = {str(address): address for address in addresses}
    receipts = await _each(list(by_name), one, reporter)
    return _gathered(several or bool(folders), receipts)


def takes_several(to: str) -> bool:
    """Whether a local target is a folder, or says that it will be one. Blocking."""
    return to.endswith("/") or Path(to).is_dir()


async def _get_one(receiver: Receiver, entry: FileEntry, to: str, exact: bool) -> list[Receipt]:
    if to == PIPE:
        if entry.kind == "folder":
            raise AddressError(f"{printable(entry.path)}: is a folder and cannot go to standard output")
        return [await receiver.get_to_pipe(entry, 1)]
    name = PurePosixPath(entry.path).name
    begun = exact or await in_thread(os.path.isdir, to)
    folder, target = await in_thread(_local_target, to, name, entry.kind == "folder", exact)
    store = await in_thread(LocalStore, folder)
    try:
        if entry.kind == "folder":
            with receiver.reporter.beginning(to, already=begun or not name):
                return await receiver.get_tree(entry.path, store, target)
        return [await receiver.get(entry, store, target)]
    finally:
        store.close()


def _local_target(to: str, name: str, is_folder: bool, exact: bool) -> tuple[str, str]:
    """The local folder to hold, and the path in it for what is fetched. Blocking.

    Raises:
        ExistsError: a folder cannot go where a file stands, or things into a file.
        TransferError: what the system said.
    """
    with translated(to):
        return _local_place(to, name, is_folder, exact)


def _local_place(to: str, name: str, is_folder: bool, exact: bool) -> tuple[str, str]:
    there = Path(to)
    if goes_into(to, exact):
        there.mkdir(parents=True, exist_ok=True)
        return to, name
    if is_folder:
        check_no_file(to)
        there.mkdir(parents=True, exist_ok=True)
        return to, ""
    return os.fspath(there.parent), there.name


def goes_into(to: str, exact: bool) -> bool:
    """Whether what is fetched goes into a local target, and is not called like it. Blocking."""
    return not exact and takes_several(to)


def check_no_file(to: str) -> None:
    """Whether a local target can be, or become, a folder. Blocking.

    Raises:
        ExistsError: it is a file.
    """
    if Path(to).exists() and not Path(to).is_dir():
        raise ExistsError(f"{printable(to)}: is a file, and a folder is fetched")


async def ls(address: str | Address, *, settings: Settings | None = None) -> list[FileEntry]:
    """What is in a folder of a server, by name; for a file, its own entry."""
    place, options = _place(address), settings or Settings()
    async with open_conversation(place.uri, options) as talk:
        receiver = Receiver(talk, TransferOptions(settings=options), Reporter(None))
        entry = await receiver.about(place.path)
        return await receiver.listing(place.path, deep=False) if entry.kind == "folder" else [entry]


async def stat(address: str | Address, *, settings: Settings | None = None) -> FileEntry:
    """What a server says about one path."""
    place, options = _place(address), settings or Settings()
    async with open_conversation(place.uri, options) as talk:
        return await Receiver(talk, TransferOptions(settings=options), Reporter(None)).about(place.path)


async def remove(address: str | Address, *, settings: Settings | None = None) -> None:
    """Remove a file or an empty folder on a server."""
    place = _place(address)
    async with open_conversation(place.uri, settings or Settings()) as talk:
        await talk.ask("remove", place.path)


def _place(address: str | Address) -> Address:
    return address if isinstance(address, Address) else parse_address(address)
