"""Receipts of the last seven days, for a client that asks again: in memory, or in a file that outlives the server."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from .errors import AddressError, PeerError
from .names import printable
from .offer import Receipt

logger = logging.getLogger("pyroxfer.service")

KEPT_S: Final = 7 * 24 * 3600.0
REMEMBERED: Final = 10_000
"""Receipts kept in memory at most; the file has no such bound."""
_FORGET_EVERY: Final = 1000
"""Receipts between two looks for old ones in the file."""
_FORGOTTEN_AT_ONCE: Final = 2 * _FORGET_EVERY
"""Old ones that one look removes at most: however many there are, a server starts, and commits, at once."""

_LEFT_ALONE_S: Final = 60.0
"""A file that did not take a receipt is asked again after this long: while another program has it locked, each would
wait ten seconds for it, one after another."""


class Receipts(Protocol):
    """Blocking; called from worker threads, one at a time."""

    def get(self, transfer_id: str) -> Receipt | None:
        """The receipt of a finished upload."""

    def put(self, receipt: Receipt) -> None:
        """Keep a receipt under its transfer id."""

    def close(self) -> None:
        """Let go of what it is kept in."""


class ReceiptsInMemory:
    """Forgotten when the server ends. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Receipt]] = OrderedDict()

    def get(self, transfer_id: str) -> Receipt | None:
        """The receipt of a finished upload."""
        at, receipt = self._entries.get(transfer_id, (0.0, None))
        return receipt if at + KEPT_S > self._clock() else None

    def put(self, receipt: Receipt) -> None:
        """Keep a receipt under its transfer id."""
        self._entries[receipt.transfer_id] = (self._clock(), receipt)
        while len(self._entries) > REMEMBERED:
            self._entries.popitem(last=False)

    def close(self) -> None:
        """Nothing to let go of."""


class ReceiptsInFile:
    """In an SQLite file, by served folder. It survives a killed server; a power failure may take the last ones.

    A receipt that the file does not take (its disk is full, another program has it locked) is kept in memory, and so
    are those of the next minute: what they speak of is committed.

    Raises:
        AddressError: the file cannot be made or read.
    """

    def __init__(self, folder: Path, root: str, clock: Callable[[], float] = time.time) -> None:
        import sqlite3  # not needed without a file

        self._clock, self._root, self._since = clock, root, 0
        self._beside = ReceiptsInMemory(clock)
        self._failed_at = -math.inf
        self._failures: tuple[type[Exception], ...] = (sqlite3.Error,)
        place = folder / "receipts.sqlite3"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with ExitStack() as opened:
                self._db: Any = sqlite3.connect(place, isolation_level=None, check_same_thread=False, timeout=10)
                opened.callback(self._db.close)
                os.chmod(place, 0o600)  # noqa: PTH101
                with suppress(sqlite3.OperationalError):  # another server is just doing it: what follows waits for it
                    self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=OFF")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS receipts"
                    " (root TEXT, id TEXT, at REAL, receipt TEXT, PRIMARY KEY (root, id))"
                )
                self._db.execute("CREATE INDEX IF NOT EXISTS receipts_at ON receipts (at)")
                self._forget()
                opened.pop_all()
        except (sqlite3.Error, OSError) as error:
            text = f"{printable(str(place))}: receipts cannot be kept there: {error}"
            raise AddressError(f"{text}; remove the file, or choose another folder") from error

    def get(self, transfer_id: str) -> Receipt | None:
        """The receipt of a finished upload."""
        try:
            row = self._db.execute(
                "SELECT receipt FROM receipts WHERE root = ? AND id = ? AND at > ?",
                (self._root, transfer_id, self._clock() - KEPT_S),
            ).fetchone()
            if row:
                return Receipt.from_dict(json.loads(row[0]))
        except self._failures as error:
            logger.warning("receipts cannot be read: %s", error)
        except (ValueError, PeerError):
            pass  # a record of another version, or a damaged one: as good as none
        return self._beside.get(transfer_id)

    def put(self, receipt: Receipt) -> None:
        """Keep a receipt under its transfer id."""
        if 0 <= self._clock() - self._failed_at < _LEFT_ALONE_S:
            self._beside.put(receipt)
            return
        record = json.dumps(receipt.to_dict())
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?)",
                (self._root, receipt.transfer_id, self._clock(), record),
            )
            self._since += 1
            if self._since >= _FORGET_EVERY:
                self._forget()
        except self._failures as error:
            logger.warning("receipts of the next minute are kept in memory only, until the server ends: %s", error)
            self._failed_at = self._clock()
            self._beside.put(receipt)

    def _forget(self) -> None:
        self._since = 0
        self._db.execute(
            "DELETE FROM receipts WHERE rowid IN (SELECT rowid FROM receipts WHERE at <= ? ORDER BY at LIMIT ?)",
            (self._clock() - KEPT_S, _FORGOTTEN_AT_ONCE),
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()
