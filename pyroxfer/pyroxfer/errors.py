"""Every error of the file service, each with the exit code of the command line.

    TransferError                     1   anything else that went wrong with a transfer
    ├── AddressError                  2   an address, option or argument cannot be used
    ├── NotFoundError                 3   no such file, folder or server name
    ├── DeniedError                   4   refused: read-only service, permission, bad grant
    │   └── NameRefusedError          4   the name leaves the root or is not portable
    ├── LostError                     5   the network broke; a later attempt may work
    │   ├── BusyError                 5   the server is full or stops; try later, or elsewhere
    │   ├── TakenOverError            5   another connection goes on with the transfer
    │   ├── UnknownTransferError      5   the transfer is over, expired, or the server was restarted
    │   └── OutcomeUnknownError       5   the commit was sent and its receipt was lost
    ├── IntegrityError                6   the two ends count or digest differently
    ├── SourceChangedError            7   the file changed while it was being sent
    ├── NoSpaceError                  8   no space or quota at the receiver
    ├── ExistsError                   9   other bytes stand under the final name
    ├── SomeFilesFailedError         10   of many files some were not committed
    ├── StalledError                 11   the time allowed ran out
    └── PeerError                    12   the peer spoke wrongly, or another version

Between two ends an error travels as a record of plain values, ``{"code": ..., "text": ...}``, inside an ordinary
reply: class registration differs between RPC libraries, dictionaries do not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pyroxfer_core import errors as core_errors

if TYPE_CHECKING:
    from .offer import Receipt

MAX_TEXT = 1000
"""Longest error text taken from a peer, in characters."""


class TransferError(core_errors.PyroError):
    """A transfer failed. Nothing half-written stands under the final name."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "other"
    """The word that names this class between two ends."""
    keeps: ClassVar[bool] = False
    """What has arrived is sound, and stays for a later attempt where that is possible."""


class AddressError(TransferError):
    """An address, option or argument cannot be used."""

    exit_code = 2
    code = "address"


class NotFoundError(TransferError):
    """No such file, folder or server name."""

    exit_code = 3
    code = "not_found"


class DeniedError(TransferError):
    """The other end, or the file system, refuses this."""

    exit_code = 4
    code = "denied"


class NameRefusedError(DeniedError):
    """The name leaves the root, or is not portable."""

    code = "name_refused"


class LostError(TransferError):
    """The network broke in the middle; a later attempt may work."""

    exit_code = 5
    code = "lost"
    keeps = True


class TakenOverError(LostError):
    """Another connection from the same origin goes on with the transfer."""

    code = "taken_over"


class BusyError(LostError):
    """The server has too much to do, or is about to stop; a later attempt may work, here or elsewhere."""

    code = "busy"


class UnknownTransferError(LostError):
    """The other end knows nothing of the transfer (any more): it is over, has expired, or was before a restart."""

    code = "unknown_transfer"


class OutcomeUnknownError(LostError):
    """The commit was sent and no receipt came back: the file may or may not be in place."""

    code = "unknown"


class IntegrityError(TransferError):
    """The two ends count or digest differently. The receiver kept nothing."""

    exit_code = 6
    code = "integrity"


class SourceChangedError(TransferError):
    """The file changed while it was being sent."""

    exit_code = 7
    code = "source_changed"
    keeps = True


class NoSpaceError(TransferError):
    """No space or quota left at the receiver."""

    exit_code = 8
    code = "no_space"
    keeps = True


class ExistsError(TransferError):
    """Something else stands under the final name."""

    exit_code = 9
    code = "exists"


class SomeFilesFailedError(TransferError):
    """Of many files some were not committed.

    ``failures`` maps the path of each to its error; ``receipts`` are those of the committed ones.
    """

    exit_code = 10
    code = "some_failed"

    def __init__(
        self,
        text: str,
        failures: Mapping[str, TransferError] | None = None,
        receipts: Sequence[Receipt] = (),
    ) -> None:
        super().__init__(text)
        self.failures = dict(failures or {})
        self.receipts = list(receipts)


class StalledError(TransferError):
    """The time allowed ran out."""

    exit_code = 11
    code = "stalled"
    keeps = True


class PeerError(TransferError):
    """The peer spoke wrongly, or speaks another version."""

    exit_code = 12
    code = "peer"


def _family(root: type[TransferError]) -> Iterator[type[TransferError]]:
    yield root
    for child in root.__subclasses__():
        yield from _family(child)


_BY_CODE: dict[str, type[TransferError]] = {cls.code: cls for cls in _family(TransferError)}


def to_record(error: TransferError) -> dict[str, str]:
    """The plain values in which an error travels."""
    return {"code": error.code, "text": str(error)[:MAX_TEXT]}


def from_record(record: object) -> TransferError:
    """The error of a received record; a malformed record is itself a ``PeerError``."""
    if not isinstance(record, Mapping):
        return PeerError("the peer reported an error that cannot be read")
    code, text = record.get("code"), record.get("text")
    if not isinstance(code, str) or not isinstance(text, str):
        return PeerError("the peer reported an error that cannot be read")
    return _BY_CODE.get(code, TransferError)(text[:MAX_TEXT])


_BY_ERRNO: dict[int, tuple[type[TransferError], str]] = {
    errno.ENOENT: (NotFoundError, "no such file or folder"),
    errno.EACCES: (DeniedError, "permission denied"),
    errno.EPERM: (DeniedError, "not permitted"),
    errno.EROFS: (DeniedError, "the file system is read-only"),
    errno.ENOSPC: (NoSpaceError, "no space left on the disk"),
    errno.EDQUOT: (NoSpaceError, "the disk quota is used up"),
    errno.EFBIG: (NoSpaceError, "the file is larger than the system allows"),
    errno.EEXIST: (ExistsError, "already exists"),
    errno.ENOTEMPTY: (ExistsError, "the folder is not empty"),
    errno.EISDIR: (ExistsError, "is a folder"),
    errno.ELOOP: (NameRefusedError, "leads through a symbolic link"),
    errno.ENOTDIR: (NameRefusedError, "leads through something that is not a folder"),
    errno.ENAMETOOLONG: (NameRefusedError, "the name is too long"),
}


def from_os_error(error: OSError, path: str) -> TransferError:
    """The error that says what the operating system said about ``path`` (as the user knows it)."""
    cls, text = _BY_ERRNO.get(error.errno or 0, (TransferError, os.strerror(error.errno or errno.EIO)))
    return cls(f"{path}: {text}")
