"""Offer, Ticket, End, Receipt, FileEntry: the frozen values of a transfer.

Each travels as a dictionary of plain values (text, integers, None), so that every serializer carries it unchanged;
ids and digests are hexadecimal text. ``from_dict`` checks every field of what a peer sent and raises ``PeerError``.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from .errors import PeerError
from .names import MAX_PATH_BYTES, split_file_path
from .runs import MAX_RUNS, Range, Run, covered, gaps

ALGORITHMS: Final = ("blake3", "sha256")
"""Digests on offer, best first; both are 32 bytes long."""
IF_EXISTS: Final = ("fail", "skip", "replace", "rename", "resume")
DURABILITIES: Final = ("none", "data", "full")
KINDS: Final = ("file", "folder", "link", "other", "unreadable")

DIGEST_HEX: Final = 64
ID_HEX: Final = 32
HEX_DIGITS: Final = "0123456789abcdef"
MAX_SIZE: Final = 2**63 - 1
MAX_GRANT_HEX: Final = 240
"""A side stream carries at most 120 opaque bytes."""
MAX_REASON: Final = 300

DEFAULT_CREDIT: Final = 8 * 1024 * 1024

ALREADY: Final = "already"
"""Reason of a receipt: equal bytes stood under the final name, nothing was moved."""
SKIPPED: Final = "skipped"
"""Reason of a receipt: other bytes stood under the final name, and were left as asked."""
NO_CHANNEL: Final = "none"
"""Channel of a receipt for which nothing was moved."""


def bounded_mtime(mtime_ns: int) -> int:
    """A modification time within what travels: the years 1677 to 2262."""
    return min(max(mtime_ns, -(2**63)), MAX_SIZE)


def new_transfer_id() -> str:
    """128 random bits, as hexadecimal text."""
    return secrets.token_hex(ID_HEX // 2)


class _Fields:
    """Reads checked fields from a dictionary that a peer sent."""

    def __init__(self, kind: str, value: object) -> None:
        if type(value) is not dict and not isinstance(value, Mapping):  # the second takes three times as long
            raise PeerError(f"{kind}: expected a dictionary, got {type(value).__name__}")
        self._kind = kind
        self._value: Mapping[Any, Any] = value

    def _wrong(self, key: str, wanted: str) -> PeerError:
        return PeerError(f"{self._kind}: field '{key}' must be {wanted}")

    def text(self, key: str, longest: int) -> str:
        value = self._value.get(key)
        if not isinstance(value, str) or len(value) > longest:
            raise self._wrong(key, f"text of at most {longest} characters")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value.get(key)
        if type(value) is not int or not low <= value <= high:  # True is no number here
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def choice(self, key: str, options: Collection[str]) -> str:
        value = self._value.get(key)
        if not isinstance(value, str) or value not in options:
            raise self._wrong(key, f"one of {', '.join(options)}")
        return value

    def hexadecimal(self, key: str, lengths: Collection[int]) -> str:
        value = self._value.get(key)
        if not isinstance(value, str) or len(value) not in lengths or value.strip(HEX_DIGITS):
            raise self._wrong(key, "lower-case hexadecimal text of the right length")
        return value

    def sequence(self, key: str, longest: int) -> Sequence[Any]:
        value = self._value.get(key)
        if not isinstance(value, (list, tuple)) or len(value) > longest:
            raise self._wrong(key, f"a list of at most {longest}")
        return value

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def size(self, key: str = "size") -> int:
        return self.integer(key, 0, MAX_SIZE)

    def mtime(self) -> int:
        return self.integer("mtime_ns", -(2**63), MAX_SIZE)

    def mode(self) -> int:
        return self.integer("mode", 0, 0o777)


def text_argument(value: object, what: str, longest: int) -> str:
    """``value`` itself, when it is text of a sensible length.

    Raises:
        PeerError: it is not.
    """
    if not isinstance(value, str) or len(value) > longest:
        raise PeerError(f"{what} must be text of at most {longest} characters")
    return value


def check_transfer_id(value: object) -> str:
    """``value`` itself, when it is a transfer id.

    Raises:
        PeerError: it is not.
    """
    return _Fields("call", {"transfer_id": value}).hexadecimal("transfer_id", (ID_HEX,))


def checked_grant(value: object) -> str:
    """``value`` itself, when it can be a grant; errors as ``check_transfer_id``."""
    return _Fields("grant", {"grant": value}).hexadecimal("grant", range(0, MAX_GRANT_HEX + 1, 2))


def check_size(value: object) -> int:
    """``value`` itself, when it is a number of bytes; errors as ``check_transfer_id``."""
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise PeerError(f"a size must be a whole number from 0 to {MAX_SIZE}")
    return value


def check_range(offset: object, length: object, longest: int) -> tuple[int, int]:
    """Offset and length of a block that a peer asks for.

    Raises:
        PeerError: not whole numbers in range, or the length is over ``longest``.
    """
    fields = _Fields("block", {"offset": offset, "length": length})
    return fields.size("offset"), fields.integer("length", 1, longest)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a sender would like to put in place.

    Raises (``from_dict``):
        NameRefusedError: the path leaves the root or is not portable.
        PeerError: another field is wrong.
    """

    path: str
    """Relative to the root of the receiver, with ``/``."""
    size: int | None
    """Bytes; None when the source is a pipe."""
    algorithm: str = ALGORITHMS[0]
    digest: str | None = None
    """Digest of the whole file, where it is known already."""
    mode: int = 0o666
    """Permission bits; the receiver's umask applies."""
    mtime_ns: int | None = None
    if_exists: str = "fail"
    durability: str = "data"
    origin: str = ""
    """Hexadecimal word for where the bytes come from, the same in every attempt; empty when nothing is to be kept."""
    transfer_id: str = field(default_factory=new_transfer_id)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "algorithm": self.algorithm,
            "digest": self.digest,
            "mode": self.mode,
            "mtime_ns": self.mtime_ns,
            "if_exists": self.if_exists,
            "durability": self.durability,
            "origin": self.origin,
            "transfer_id": self.transfer_id,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("offer", value)
        path = fields.text("path", MAX_PATH_BYTES)
        split_file_path(path)
        return cls(
            path=path,
            size=fields.size() if fields.has("size") else None,
            algorithm=fields.choice("algorithm", ALGORITHMS),
            digest=fields.hexadecimal("digest", (DIGEST_HEX,)) if fields.has("digest") else None,
            mode=fields.mode(),
            mtime_ns=fields.mtime() if fields.has("mtime_ns") else None,
            if_exists=fields.choice("if_exists", IF_EXISTS),
            durability=fields.choice("durability", DURABILITIES),
            origin=fields.hexadecimal("origin", (0, ID_HEX)),
            transfer_id=fields.hexadecimal("transfer_id", (ID_HEX,)),
        )


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to move the bytes of one transfer."""

    transfer_id: str
    size: int | None
    """Bytes to be moved; None when the sender does not know."""
    algorithm: str
    block_size: int
    """Largest block of one call, in bytes."""
    grant: str
    """Opens one side stream, once, within half a minute; hexadecimal."""
    mode: int = 0o666
    mtime_ns: int | None = None
    credit: int = DEFAULT_CREDIT
    """Bytes that may be in flight in calls."""
    kept: tuple[Run, ...] = ()
    """What an earlier attempt left, digested again by the receiver; the sender says which of it is equal."""

    @property
    def missing(self) -> list[Range]:
        """What is to be moved of a file of known size."""
        return gaps(self.size or 0, covered(self.kept))

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {key: getattr(self, key) for key in self.__slots__}
        return {**record, "kept": [[run.start, run.length, run.digest] for run in self.kept]}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("ticket", value)
        return cls(
            transfer_id=fields.hexadecimal("transfer_id", (ID_HEX,)),
            size=fields.size() if fields.has("size") else None,
            algorithm=fields.choice("algorithm", ALGORITHMS),
            block_size=fields.integer("block_size", 1, 2**30),
            grant=fields.hexadecimal("grant", range(0, MAX_GRANT_HEX + 1, 2)),
            mode=fields.mode(),
            mtime_ns=fields.mtime() if fields.has("mtime_ns") else None,
            credit=fields.integer("credit", 1, MAX_SIZE),
            kept=_runs(fields.sequence("kept", MAX_RUNS)),
        )


def _runs(values: Sequence[Any]) -> tuple[Run, ...]:
    runs = []
    for value in values:
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise PeerError("ticket: each run must be a list of start, length and digest")
        fields = _Fields("run", dict(zip(("start", "length", "digest"), value, strict=True)))
        runs.append(Run(fields.size("start"), fields.size("length"), fields.hexadecimal("digest", (DIGEST_HEX,))))
    return tuple(runs)


def check_ranges(values: object) -> list[Range]:
    """Ranges that a peer sent, each a list of offset and length.

    Raises:
        PeerError: they are none, or too many.
    """
    found = []
    for value in _Fields("call", {"ranges": values}).sequence("ranges", MAX_RUNS):
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise PeerError("each range must be a list of offset and length")
        found.append(Range(*check_range(value[0], value[1], MAX_SIZE)))
    return found


@dataclass(frozen=True, slots=True)
class End:
    """What one end counted and digested itself."""

    size: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.__slots__}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("end", value)
        return cls(size=fields.size(), digest=fields.hexadecimal("digest", (DIGEST_HEX,)))


@dataclass(frozen=True, slots=True)
class SmallEnd:
    """What the sender of a small file says of it, beside its bytes."""

    size: int
    digest: str
    mode: int
    mtime_ns: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "digest": self.digest,
            "mode": self.mode,
            "mtime_ns": self.mtime_ns,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("file", value)
        return cls(fields.size(), fields.hexadecimal("digest", (DIGEST_HEX,)), fields.mode(), fields.mtime())


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receiver's word that a file is committed: its own count and digest, flushed and in place."""

    path: str
    """Where it stands, relative to the receiver's root."""
    size: int
    digest: str
    """Empty only when ``reason`` is ``skipped`` and the file in place was not read."""
    algorithm: str
    durability: str
    channel: str
    reason: str
    """Why this channel; or ``already`` or ``skipped`` when nothing was moved."""
    resumed: int = 0
    """Bytes kept from an earlier attempt."""
    transfer_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "digest": self.digest,
            "algorithm": self.algorithm,
            "durability": self.durability,
            "channel": self.channel,
            "reason": self.reason,
            "resumed": self.resumed,
            "transfer_id": self.transfer_id,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("receipt", value)
        reason = fields.text("reason", MAX_REASON)
        path = fields.text("path", MAX_PATH_BYTES)
        split_file_path(path)
        return cls(
            path=path,
            size=fields.size(),
            digest=fields.hexadecimal("digest", (0, DIGEST_HEX) if reason == SKIPPED else (DIGEST_HEX,)),
            algorithm=fields.choice("algorithm", ALGORITHMS),
            durability=fields.choice("durability", DURABILITIES),
            channel=fields.text("channel", 32),
            reason=reason,
            resumed=fields.size("resumed"),
            transfer_id=fields.hexadecimal("transfer_id", (0, ID_HEX)),
        )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a listing. Nothing but its length is checked here: a store checks a name when it is used."""

    path: str
    """Relative, with ``/``; what it is relative to, the call says. Empty for the place asked about itself."""
    kind: str
    """``file``, ``folder``, ``link``, ``other`` or ``unreadable`` (no permission, or a name not in UTF-8)."""
    size: int = 0
    mode: int = 0o666
    mtime_ns: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": self.kind,
            "size": self.size,
            "mode": self.mode,
            "mtime_ns": self.mtime_ns,
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        fields = _Fields("entry", value)
        return cls(
            path=fields.text("path", MAX_PATH_BYTES),
            kind=fields.choice("kind", KINDS),
            size=fields.size(),
            mode=fields.mode(),
            mtime_ns=fields.mtime(),
        )
