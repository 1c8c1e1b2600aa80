"""Deciding about a final name, and putting a small file in place whole. The same at both receiving ends. Blocking."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from .digest import PrefixDigest, digest_of
from .errors import ExistsError, IntegrityError, NotFoundError
from .names import printable
from .offer import ALREADY, NO_CHANNEL, SKIPPED, End, FileEntry, Offer, Receipt
from .runs import UNKNOWN, Range, Run, pieces, step_for
from .sink import check_equal
from .source import HASH_TURN
from .store.base import StagedFile, Store, WholeFiles
from .store.rooted import translated
from .tasks import check_cancelled

NEEDS_DIGEST: Final = "digest"
"""Answer of ``settle``: a file of equal size stands there; only the sender's digest can tell whether it is equal."""


def settle(store: Store, offer: Offer) -> Receipt | str | None:
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


def settle_late(store: Store, offer: Offer, own: End) -> Receipt:
    """The receipt when the name was taken between ``settle`` and the publishing: the same rules once more.

    Raises:
        ExistsError: other bytes stand there.
    """
    settled = settle(store, replace(offer, size=own.size, digest=own.digest))
    if isinstance(settled, Receipt):
        return settled
    raise ExistsError(f"{printable(offer.path)}: already exists")


def begin(store: Store, offer: Offer) -> StagedFile | Receipt | str:
    """``settle``, and when the bytes are wanted a staged file for them: one visit of a worker thread for both.

    Raises:
        ExistsError: as ``settle``.
        TransferError: as ``Store.stage``.
    """
    settled = settle(store, offer)
    if settled is None:
        return stage(store, offer)
    if isinstance(settled, Receipt) and settled.reason == ALREADY and offer.origin:
        store.forget(offer.path, offer.origin)
    return settled


def stage(store: Store, offer: Offer) -> StagedFile:
    """A staged file for an offer whose bytes are wanted, with what there is of them already. Errors as
    ``Store.stage``."""
    staged = store.stage(offer.path, offer.size, offer.mode, offer.origin if offer.size is not None else "")
    if offer.if_exists != "resume" or staged.found:
        return staged
    try:
        _build_on_final(store, offer, staged)
    except BaseException:
        staged.discard()
        raise
    return staged


def _build_on_final(store: Store, offer: Offer, staged: StagedFile) -> None:
    """Let the file that stands under the final name be what equal blocks come from."""
    there = existing(store, offer.path)
    if there is None or there.kind != "file" or offer.size is None:
        return
    store.build_on(offer.path, staged)
    with translated(offer.path):
        length = min(os.fstat(staged.basis).st_size, offer.size)
    blocks = pieces([Range(0, length)], step_for(offer.size))
    staged.found = tuple(Run(*block, UNKNOWN) for block in blocks)


def existing(store: Store, path: str) -> FileEntry | None:
    """The entry under a path, or None."""
    try:
        return store.stat(path)
    except NotFoundError:
        return None


def digest_of_file(store: Store, path: str, algorithm: str) -> End:
    """Count and digest of a file in the store, read now."""

    fd = store.open_file(path)
    try:
        digest = PrefixDigest(algorithm, fd)
        size = os.fstat(fd).st_size
        while digest.hashed < size:
            check_cancelled()
            digest.catch_up(min(digest.hashed + HASH_TURN, size))
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


def place_small(
    store: Store, files: WholeFiles, offer: Offer, data: bytes | memoryview, channel: str, reason: str
) -> Receipt:
    """Put a whole small file in place and say so. Where nothing is to be overwritten, the name is looked at only when
    it turns out to be taken.

    Raises:
        ExistsError: as ``settle``.
        IntegrityError: the bytes are not those of the offer.
        TransferError: what the store said. Nothing is left behind.
    """
    if offer.size is None or offer.digest is None:
        raise IntegrityError(f"{printable(offer.path)}: a small file comes with its size and digest")
    own = End(len(data), digest_of(data, offer.algorithm))
    check_equal(own, End(offer.size, offer.digest), offer.path)
    try:
        path = _put(store, files, offer, data)
    except ExistsError:
        return settle_late(store, offer, own)
    return path if isinstance(path, Receipt) else receipt_for(offer, path, own, channel, reason)


def _put(store: Store, files: WholeFiles, offer: Offer, data: bytes | memoryview) -> str | Receipt:
    """The path the file got, or a receipt when what stands there is left.

    Raises:
        ExistsError: the name is taken.
    """
    if offer.if_exists in ("fail", "skip"):
        return files.put(offer.path, data, offer.mode, offer.mtime_ns, offer.durability)
    settled = settle(store, offer)
    if isinstance(settled, Receipt):
        return settled
    staged = store.stage(offer.path, len(data), offer.mode)
    try:
        staged.write(0, memoryview(data))
        return staged.publish(len(data), offer.if_exists, offer.durability, offer.mtime_ns)
    finally:
        staged.discard()


def receipt_for(offer: Offer, path: str, own: End, channel: str, reason: str, resumed: int = 0) -> Receipt:
    """The receipt of a file that has just been published."""
    return Receipt(
        path,
        own.size,
        own.digest,
        offer.algorithm,
        offer.durability,
        channel,
        reason,
        resumed,
        offer.transfer_id,
    )
