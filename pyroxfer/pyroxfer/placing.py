"""Deciding about a final name, and putting a small file in place whole. The same at both receiving ends. Blocking."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from .digest import PrefixDigest, digest_of
from .errors import ExistsError, IntegrityError, NotFoundError
from .names import printable
from .offer import ALREADY, NO_CHANNEL, SKIPPED, End, FileEntry, Offer, Receipt
from .sink import check_equal
from .store.local import LocalStore
from .store.staged import Staged

NEEDS_DIGEST: Final = "digest"
"""Answer of ``settle``: a file of equal size stands there; only the sender's digest can tell whether it is equal."""


def settle(store: LocalStore, offer: Offer) -> Receipt | str | None:
    """What the final name of an offer says before a byte is moved.

    Returns:
        None when the bytes are wanted; a receipt when nothing is to be moved (``already`` or ``skipped``);
        ``NEEDS_DIGEST`` when the offer must come again with a digest.

    Raises:
        ExistsError: something else stands there and the offer does not say what to do.
    """
    there = existing(store, offer.path)
    if there is None:
        return None
    if there.kind == "folder":
        raise ExistsError(f"{printable(offer.path)}: is a folder; end the target in '/' to put things into it")
    if there.kind == "file" and there.size == offer.size:
        if offer.digest is None:
            return NEEDS_DIGEST
        if digest_of_file(store, offer.path, offer.algorithm) == End(there.size, offer.digest):
            return _untouched(offer, there.size, offer.digest, ALREADY)
    if offer.if_exists == "fail":
        raise ExistsError(f"{printable(offer.path)}: exists with other contents; see --if-exists")
    if offer.if_exists == "skip":
        return _untouched(offer, there.size, "", SKIPPED)
    return None


def settle_late(store: LocalStore, offer: Offer, own: End) -> Receipt:
    """The receipt when the name was taken between ``settle`` and the publishing: the same rules once more.

    Raises:
        ExistsError: other bytes stand there.
    """
    settled = settle(store, replace(offer, size=own.size, digest=own.digest))
    if isinstance(settled, Receipt):
        return settled
    raise ExistsError(f"{printable(offer.path)}: already exists")


def begin(store: LocalStore, offer: Offer) -> Staged | Receipt | str:
    """``settle``, and when the bytes are wanted a staged file for them: one visit of a worker thread for both.

    Raises:
        ExistsError: as ``settle``.
        TransferError: as ``LocalStore.stage``.
    """
    settled = settle(store, offer)
    return store.stage(offer.path, offer.size, offer.mode) if settled is None else settled


def existing(store: LocalStore, path: str) -> FileEntry | None:
    """The entry under a path, or None."""
    try:
        return store.stat(path)
    except NotFoundError:
        return None


def digest_of_file(store: LocalStore, path: str, algorithm: str) -> End:
    """Count and digest of a file in the store, read now."""

    fd = store.open_file(path)
    try:
        digest = PrefixDigest(algorithm, fd)
        digest.catch_up(os.fstat(fd).st_size)
        return digest.end()
    finally:
        os.close(fd)


def _untouched(offer: Offer, size: int, digest: str, reason: str) -> Receipt:
    return Receipt(
        offer.path,
        size,
        digest,
        offer.algorithm,
        offer.durability,
        NO_CHANNEL,
        reason,
        transfer_id=offer.transfer_id,
    )


def place_small(store: LocalStore, offer: Offer, data: bytes, channel: str, reason: str) -> Receipt:
    """Put a whole small file in place and say so.

    Raises:
        ExistsError: as ``settle``.
        IntegrityError: the bytes are not those of the offer.
        TransferError: what the store said. Nothing is left behind.
    """
    if offer.size is None or offer.digest is None:
        raise IntegrityError(f"{printable(offer.path)}: a small file comes with its size and digest")
    own = End(len(data), digest_of(data, offer.algorithm))
    check_equal(own, End(offer.size, offer.digest), offer.path)
    settled = settle(store, offer)
    if isinstance(settled, Receipt):
        return settled
    staged = store.stage(offer.path, len(data), offer.mode)
    try:
        staged.write(0, memoryview(data))
        path = staged.publish(offer.if_exists, offer.durability, offer.mtime_ns)
    except ExistsError:
        return settle_late(store, offer, own)
    finally:
        staged.discard()
    return receipt_for(offer, path, own, channel, reason)


def receipt_for(offer: Offer, path: str, own: End, channel: str, reason: str) -> Receipt:
    """The receipt of a file that has just been published."""
    return Receipt(
        path,
        own.size,
        own.digest,
        offer.algorithm,
        offer.durability,
        channel,
        reason,
        transfer_id=offer.transfer_id,
    )
