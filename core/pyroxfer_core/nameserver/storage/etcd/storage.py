"""The registry in etcd: compare and swap by transaction, leases by etcd, and a mirror for those who watch."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

import trio

from ....errors import NamingError
from ..base import Changes, Entry, Lease, Query, Registry, Update
from ..history import KEPT
from .client import (
    CompactedError,
    EtcdClient,
    EtcdDownError,
    EtcdRefusedError,
    b64,
    from_b64,
)
from .layout import Layout, Row, entry_of
from .mirror import Mirror
from .place import parse_place

log = logging.getLogger(__name__)

Entries = dict[str, Entry | None]

PATIENCE_S: Final = 5.0
"""How long a change may take altogether, on all members: electing a new leader takes one to two seconds."""
READ_PATIENCE_S: Final = 3.0
"""The same for reading: after that, what is in memory is better than nothing."""
TOGETHER: Final = 30
"""Names changed by one transaction: etcd allows 128 operations. More are several transactions, each whole."""
PAGE: Final = 5_000
"""Keys of one answer."""
PAUSE_S: Final = 0.2
"""Before a lost watch is begun again."""
CHECK_S: Final = 1.0
"""How often etcd is asked whether it is there, while nothing else is heard of it."""


class EtcdStorage(Registry):
    """Entries in the cluster at ``url`` (see `parse_place`), shared with all who name the same cluster and prefix.

    Lookups read what the cluster agreed on. While it cannot be reached they come from memory, `stale_s` says so, and
    changes fail. A text that begins with ``Unknown`` means that a change may have happened.

    Raises:
        ValueError: not such a URL.
        NamingError: the certificates cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._place = parse_place(url)
        self._place.check()
        self._client: EtcdClient | None = None
        self._layout = Layout(self._place.prefix)
        self._mirror = Mirror(self._layout)
        self._loaded = trio.Event()
        self._mark = 0
        self._written = 0
        """Revision of our last change, which whoever asks us afterwards must see."""
        self._down_since: float | None = None
        self._running = False
        """Whether `run` looks when etcd is back."""

    @property
    def is_shared(self) -> bool:
        return True

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def stale_s(self) -> float | None:
        return None if self._down_since is None else trio.current_time() - self._down_since

    async def get(self, name: str) -> Entry | None:
        if self._down_since is None or not self._running:
            try:
                rows = await self._rows(*self._layout.range_of_name(name))
                self._note_up()
                return entry_of(rows)
            except EtcdDownError as error:
                self._note_down(error)
        return self._from_memory().get(name)

    async def count(self) -> int:
        if self._loaded.is_set() and self._mirror.revision >= self._written:
            return len(self._mirror.entries)
        return len(await self.select(Query()))

    async def select(self, query: Query) -> dict[str, Entry]:
        entries: dict[str, Entry] | None = None
        if self._down_since is None or not self._running:
            try:
                entries = _entries(await self._rows(*self._layout.range_of_prefix(query.prefix)))
                self._note_up()
            except EtcdDownError as error:
                self._note_down(error)
        if entries is None:
            entries = self._from_memory()
        return {name: entry for name, entry in entries.items() if query.matches(name, entry)}

    async def snapshot(self) -> tuple[int, dict[str, Entry]]:
        await self._wait_until_loaded()
        return self._mirror.history.revision, self._mirror.entries.copy()

    async def changes(self, after: int) -> AsyncGenerator[Changes, None]:
        await self._wait_until_loaded()
        history = self._mirror.history
        begin = after
        if after > history.revision:  # told by another name server, which has heard more, or of other keys
            if after > await self._current_revision():
                raise NamingError(f"revision {after} is not known any more; watch from the beginning")
            begin = history.revision
        async with aclosing(history.follow(begin)) as changes:
            async for change in changes:
                if change.revision > after:
                    yield change

    async def _rows(self, start: bytes, end: bytes, revision: int = 0) -> list[Row]:
        """Everything in a range, at one revision."""
        rows: list[Row] = []
        while True:
            body = {"key": b64(start), "range_end": b64(end), "limit": str(PAGE), "revision": str(revision)}
            answer = await self._connected().call("/v3/kv/range", body, READ_PATIENCE_S)
            revision = revision or int(answer["header"]["revision"])
            kvs = answer.get("kvs", ())
            rows += self._layout.rows(kvs)
            if not answer.get("more") or not kvs:
                return rows
            start = from_b64(kvs[-1]["key"]) + b"\0"

    async def _current_revision(self) -> int:
        body = {"key": b64(self._layout.mark), "count_only": True}
        answer = await self._connected().call("/v3/kv/range", body, READ_PATIENCE_S)
        return int(answer["header"]["revision"])

    def _connected(self) -> EtcdClient:
        if self._client is None:
            self._client = EtcdClient(self._place)
        return self._client

    def _from_memory(self) -> dict[str, Entry]:
        if not self._loaded.is_set():
            raise NamingError(f"cannot reach etcd at {self._place}, and nothing is known from before")
        return self._mirror.entries

    async def _wait_until_loaded(self) -> None:
        with trio.move_on_after(PATIENCE_S):
            await self._loaded.wait()
            if self._down_since is None:
                await self._mirror.reach(self._written)
            return
        raise NamingError(f"cannot reach etcd at {self._place}, so what changes there is not known")

    # --- changing ----------------------------------------------------------------------------------------------

    async def update(self, names: Iterable[str], change: Update) -> dict[str, Entry | None]:
        before: dict[str, Entry | None] = {}
        every = list(names)
        for index in range(0, len(every), TOGETHER):
            before |= await self._update_together(every[index : index + TOGETHER], change)
        return before

    async def _update_together(self, names: Sequence[str], change: Update) -> dict[str, Entry | None]:
        """One transaction, tried until it met the entries as they were read.

        After an attempt of which the outcome is not known the entries are read again: when they are what the attempt
        would have made of them, it has happened.
        """
        unknown: list[tuple[Entries, Entries]] = []
        why = "etcd is too slow"
        with trio.move_on_after(PATIENCE_S):
            while True:
                try:
                    if (before := await self._try_update(names, change, unknown)) is not None:
                        return before
                except EtcdDownError as error:
                    why = str(error)
                    await trio.sleep(PAUSE_S)
        if unknown:
            raise NamingError(f"Unknown: {why}; the change may have happened or not")
        raise NamingError(f"{why}; nothing was changed")

    async def _try_update(
        self, names: Sequence[str], change: Update, unknown: list[tuple[Entries, Entries]]
    ) -> Entries | None:
        """The entries as they were, or None: somebody else was faster."""
        found, revision = await self._read(names)
        now = {name: entry_of(found[name]) for name in names}
        for before, after in unknown:
            if now == after:
                return before
        wanted = {name: change(name, entry) for name, entry in now.items()}
        if wanted == now:
            return now
        try:
            return now if await self._swap(found, now, wanted, revision) else None
        except EtcdDownError as error:
            if error.began:
                unknown.append((now, wanted))
            raise

    async def _read(self, names: Sequence[str]) -> tuple[dict[str, list[Row]], int]:
        reads = []
        for name in names:
            start, end = self._layout.range_of_name(name)
            reads.append({"request_range": {"key": b64(start), "range_end": b64(end)}})
        answer = await self._connected().call_once("/v3/kv/txn", {"success": reads})
        found = [self._layout.rows(one["response_range"].get("kvs", ())) for one in answer["responses"]]
        return dict(zip(names, found, strict=True)), int(answer["header"]["revision"])

    async def _swap(
        self,
        found: dict[str, list[Row]],
        now: Entries,
        wanted: Entries,
        revision: int,
    ) -> bool:
        """Carry out the difference, if nothing changed since the revision. False: something did."""
        compare: list[dict[str, Any]] = []
        operations: list[dict[str, Any]] = []
        for name, entry in wanted.items():
            if entry == now[name]:
                continue
            compare += self._unchanged(name, found[name], revision)
            operations += self._difference(name, found[name], entry)
        answer = await self._connected().call_once("/v3/kv/txn", {"compare": compare, "success": operations})
        if answer.get("succeeded"):
            self._written = int(answer["header"]["revision"])
        return bool(answer.get("succeeded"))

    def _unchanged(self, name: str, rows: list[Row], revision: int) -> list[dict[str, Any]]:
        """Conditions: no key of the name is newer, and each that was there is."""
        start, end = self._layout.range_of_name(name)
        newer = {"key": b64(start), "range_end": b64(end), "target": "MOD", "result": "LESS"}
        same = [
            {"key": b64(row.key), "target": "MOD", "result": "EQUAL", "mod_revision": str(row.revision)}
            for row in rows
        ]
        return [{**newer, "mod_revision": str(revision + 1)}, *same]

    def _difference(self, name: str, rows: list[Row], entry: Entry | None) -> list[dict[str, Any]]:
        addresses = () if entry is None else entry.addresses
        old = {row.key: row for row in rows}
        puts = []
        for order, address in enumerate(addresses):
            row = old.pop(self._layout.key(name, address), None)
            if row is None or (row.address, row.order) != (address, order):
                puts.append(self._layout.put(name, address, order))
        return [{"request_delete_range": {"key": b64(key)}} for key in old] + puts

    # --- leases ------------------------------------------------------------------------------------------------

    async def grant(self, ttl: float) -> Lease:
        answer = await self._connected().call("/v3/lease/grant", {"TTL": str(math.ceil(ttl))}, PATIENCE_S)
        return Lease(str(answer["ID"]), float(answer["TTL"]))

    async def renew(self, lease: str) -> float | None:
        if not _is_lease(lease):
            return None
        answer = (await self._connected().call("/v3/lease/keepalive", {"ID": lease}, PATIENCE_S)).get("result", {})
        return float(answer.get("TTL", 0)) or None

    async def revoke(self, lease: str) -> None:
        if not _is_lease(lease):
            return
        try:
            await self._connected().call("/v3/lease/revoke", {"ID": lease}, PATIENCE_S)
        except EtcdRefusedError as error:
            if "not found" not in str(error):
                raise

    # --- the mirror --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        reload = self._running = True
        while True:
            try:
                if reload:
                    await self._load()
                    reload = False
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._check, nursery.cancel_scope)
                    await self._listen()
            except* CompactedError:
                reload = True
            except* EtcdDownError:
                await self._ask()
            except* (NamingError, LookupError, ValueError, TypeError) as group:
                log.warning("cannot follow etcd at %s: %s", self._place, group.exceptions[0])
                reload = True
                await trio.sleep(CHECK_S)
            await trio.sleep(PAUSE_S)

    async def _load(self) -> None:
        """Fill the mirror as it was some changes ago, so that those who were away can be told what they missed."""
        try:
            put = {"key": b64(self._layout.mark), "value": ""}
            self._mark = int((await self._connected().call("/v3/kv/put", put, PATIENCE_S))["header"]["revision"])
        except EtcdRefusedError:  # we may only read
            self._mark = 0
        now = self._mark or await self._current_revision()
        whole = self._layout.range_of_prefix("")
        earlier = max(1, now - KEPT) if self._mark else now
        try:
            self._mirror.load(await self._rows(*whole, revision=earlier), earlier)
        except EtcdRefusedError:  # compacted meanwhile
            self._mark = 0
            now = await self._current_revision()
            self._mirror.load(await self._rows(*whole, revision=now), now)

    async def _listen(self) -> None:
        """Take up what changes, until the connection is lost."""
        self._note_loaded()
        watched = self._layout.watched
        end = watched[:-1] + bytes([watched[-1] + 1])
        async with aclosing(self._connected().watch(watched, end, self._mirror.revision + 1)) as answers:
            async for answer in answers:
                self._note_up()
                self._mirror.apply(answer.get("events", ()))
                self._note_loaded()

    def _note_loaded(self) -> None:
        if self._mirror.revision >= self._mark:
            self._loaded.set()

    async def _check(self, listening: trio.CancelScope) -> None:
        """A member that is cut off says nothing: ask, and listen to another one when there is no answer."""
        watched = self._connected().member
        while True:
            await trio.sleep(CHECK_S)
            if not await self._ask() or self._connected().member != watched:
                listening.cancel()
                return

    async def _ask(self) -> bool:
        """Whether etcd answers, which is noted."""
        try:
            await self._current_revision()
        except EtcdDownError as error:
            self._note_down(error)
            return False
        self._note_up()
        return True

    def _note_down(self, error: EtcdDownError) -> None:
        if self._down_since is None:
            log.warning("%s; lookups are answered from memory", error)
            self._down_since = trio.current_time()

    def _note_up(self) -> None:
        if self._down_since is not None:
            log.warning("etcd at %s is back", self._place)
            self._down_since = None

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await client.aclose()


def _entries(rows: Iterable[Row]) -> dict[str, Entry]:
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    return {name: entry for name, of in by_name.items() if (entry := entry_of(of)) is not None}


def _is_lease(text: str) -> bool:
    """Whether etcd can have given this id; anything else is an unknown lease, not an error of the request."""
    return text.isascii() and text.isdigit() and 0 < int(text) < 2**63
