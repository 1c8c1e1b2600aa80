"""plan_send and plan_get: what `send` and `get` would do, changing nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pyroxfer_core import Settings

from .address import Address, parse_address
from .client import (
    PIPE,
    Paths,
    check_apart,
    check_no_file,
    check_sources,
    check_takes,
    check_takes_folder,
    folder_name,
    goes_into,
    is_folder,
    listed,
    source_names,
    takes_several,
)
from .conversation import Conversation, open_conversation
from .errors import AddressError, LostError, TransferError
from .getting import Receiver
from .options import NATIVE, TransferOptions
from .planning import REFUSED, Planned, Planner
from .progress import ProgressCallback, Reporter
from .selection import Selection
from .sending import joined
from .store.local import LocalStore
from .tasks import in_thread


async def plan_send(
    paths: Paths,
    to: str | Address,
    *,
    if_exists: str = "fail",
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    only: Sequence[str] | None = None,
    links: bool = False,
    names: str = NATIVE,
    exact: bool = False,
    progress: ProgressCallback | None = None,
    settings: Settings | None = None,
) -> list[Planned]:
    """What `send` with the same arguments would do with each file. Changes nothing here or at the server.

    Raises:
        AddressError: an argument cannot be used.
        TransferError, NamingError, CommunicationError: the server cannot be asked.
    """
    sources = listed(paths)
    if not sources or PIPE in sources:
        raise AddressError("a dry run needs files or folders to look at")
    several = await in_thread(check_sources, sources, only is not None) or len(sources) > 1
    target = to if isinstance(to, Address) else parse_address(to)
    options = TransferOptions(
        if_exists=if_exists,
        selection=Selection(exclude, include, only),
        links=links,
        names=names,
        settings=settings or Settings(),
    )
    async with open_conversation(target.uri, options.settings) as talk:
        into = not exact and (target.into or await is_folder(talk, target.path))
        check_takes(len(sources), str(target), into, exact)
        check_apart(await in_thread(source_names, sources))
        planner = Planner(talk, options, Reporter(progress))
        for source in sources:
            await _noted(planner, source, several, functools.partial(_plan_one, planner, talk, source, target, into))
    return planner.planned


async def _noted(planner: Planner, name: str, several: bool, plan: Callable[[], Awaitable[None]]) -> None:
    """Plan one thing; of several, what cannot be planned is one that would be refused."""
    try:
        await plan()
    except LostError:
        raise
    except TransferError as error:
        if not several:
            raise
        planner.note(name, 0, REFUSED, error)


async def _plan_one(planner: Planner, talk: Conversation, source: str, target: Address, into: bool) -> None:
    is_tree = await in_thread(os.path.isdir, source)
    name = await in_thread(folder_name, source) if is_tree else Path(source).name
    place = joined(target.path, name) if into else target.path
    if is_tree:
        await check_takes_folder(talk, place)
    beside, own = await in_thread(os.path.split, await in_thread(os.path.realpath, source))
    store = await in_thread(LocalStore, source if is_tree else beside)
    try:
        if is_tree:
            await planner.send_tree(store, place)
        else:
            entry = await in_thread(store.stat, own)
            await planner.send(store, [(entry, place)])
    finally:
        store.close()


async def plan_get(
    sources: str | Address | Sequence[str | Address],
    to: str | os.PathLike[str] = ".",
    *,
    if_exists: str = "fail",
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    only: Sequence[str] | None = None,
    links: bool = False,
    names: str = NATIVE,
    exact: bool = False,
    progress: ProgressCallback | None = None,
    settings: Settings | None = None,
) -> list[Planned]:
    """What `get` with the same arguments would do with each file; as `plan_send`."""
    wanted = [sources] if isinstance(sources, (str, Address)) else list(sources)
    addresses = [source if isinstance(source, Address) else parse_address(source) for source in wanted]
    place = os.fspath(to)
    if not addresses or place == PIPE:
        raise AddressError("a dry run needs addresses, and a place in the file system")
    check_takes(len(addresses), place, len(addresses) < 2 or await in_thread(takes_several, place), exact)
    check_apart(address.name for address in dict.fromkeys(addresses))
    options = TransferOptions(
        if_exists=if_exists,
        selection=Selection(exclude, include, only),
        links=links,
        names=names,
        settings=settings or Settings(),
    )
    planned: list[Planned] = []
    for address in addresses:
        async with open_conversation(address.uri, options.settings) as talk:
            planner = Planner(talk, options, Reporter(progress))
            receiver = Receiver(talk, options, Reporter(None))
            await _noted(
                planner,
                str(address),
                len(addresses) > 1,
                functools.partial(_plan_fetch, planner, receiver, address.path, place, exact),
            )
            planned += planner.planned
    return planned


async def _plan_fetch(planner: Planner, receiver: Receiver, path: str, to: str, exact: bool) -> None:
    entry = await receiver.about(path)
    is_tree = entry.kind == "folder"
    folder, target = await in_thread(_place_without_making, to, PurePosixPath(entry.path).name, is_tree, exact)
    store = await in_thread(LocalStore, folder) if await in_thread(os.path.isdir, folder) else None
    try:
        if is_tree:
            await planner.get_tree(await receiver.listing(path, deep=True), entry.path, store, target)
        else:
            await planner.get(store, [(replace(entry, path=entry.path), target)])
    finally:
        if store is not None:
            store.close()


def _place_without_making(to: str, name: str, is_tree: bool, exact: bool) -> tuple[str, str]:
    """As for a real run: the local folder, and the path in it."""
    there = Path(to)
    if goes_into(to, exact):
        return to, name
    if is_tree:
        check_no_file(to)
        return to, ""
    return os.fspath(there.parent), there.name
