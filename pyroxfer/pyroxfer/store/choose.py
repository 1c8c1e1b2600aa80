"""Which store a root means: a folder of this machine, or a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from blake3 import blake3

from ..errors import AddressError
from .base import Store
from .ledger import Ledger
from .local import LocalStore

BUCKET_SCHEME: Final = "s3://"
SPOOLS: Final = "spool"
"""Folder below the state folder with one spool per bucket and prefix."""


def identity(root: str) -> str:
    """The one spelling of a root, for receipts and for people."""
    return root.rstrip("/") if root.startswith(BUCKET_SCHEME) else os.path.realpath(root)


def open_store(root: str, state: Path | None, quota: int | None, ledger: Ledger | None = None) -> Store:
    """The store of a root: a path, or ``s3://BUCKET/PREFIX``. With a ``state`` folder, what is left of interrupted
    uploads to a bucket outlives the server. The ``ledger`` is that of all processes which serve the root.

    Raises:
        AddressError: it cannot be opened, or what it needs is not installed.
        TransferError: what the object store said.
    """
    if not root.startswith(BUCKET_SCHEME):
        return LocalStore(root, quota=quota, ledger=ledger)
    if quota is not None:
        raise AddressError("a bucket takes no quota from here; set one at the object store")
    try:
        from .object import ObjectStore  # an optional package, needed by those who serve a bucket
    except ImportError as error:
        raise AddressError(f"serving {BUCKET_SCHEME}… needs obstore: pip install 'pyroxfer[s3]' ({error})") from error
    name = blake3(identity(root).encode(errors="surrogateescape")).hexdigest()[:16]
    return ObjectStore(root, None if state is None else state / SPOOLS / name, ledger)
