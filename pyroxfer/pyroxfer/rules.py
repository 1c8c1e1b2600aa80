"""Who may do what below the served folder: rules by identity and path, and a store that keeps to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from .errors import AddressError, DeniedError, TransferError
from .names import printable, split_path
from .offer import FileEntry
from .store.base import StagedFile, Store, WholeFiles

LEVELS: Final = ("none", "read", "write")
"""Each allows what the one before does: ``write`` is looking, fetching, sending and removing."""
EVERYBODY: Final = "*"

Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What somebody may do with a path and everything below it."""

    who: str
    """The name of an identity, or ``*`` for everybody."""
    path: Parts
    level: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """A rule written as ``NAME:PATH:read``, ``write`` or ``none``.

        Raises:
            AddressError: it cannot be read.
        """
        name, _, rest = text.partition(":")
        path, separator, level = rest.rpartition(":")
        if not name or not separator or level not in LEVELS:
            raise AddressError(f"'{printable(text)[:300]}' is no rule; write NAME:PATH:read, :write or :none")
        try:
            return cls(name, split_path(path.lstrip("/")), level)
        except TransferError as error:
            raise AddressError(f"rule '{printable(text)[:300]}': {error}") from None


class Rules:
    """All rules of a server. The longest path that fits decides, and a name before ``*``; what no rule speaks of is
    denied to everybody."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)

    def of(self, name: str | None) -> Access:
        """What one caller may do; None is one whose name is not known."""
        levels: dict[Parts, str] = {}
        for who in (EVERYBODY, name):
            levels |= {rule.path: rule.level for rule in self._rules if rule.who == who}
        return Access(levels)


@dataclass(frozen=True, slots=True)
class Access:
    """What one caller may do: the level of every path that a rule names."""

    levels: dict[Parts, str]

    def level(self, parts: Parts) -> str:
        """``none``, ``read`` or ``write``."""
        for length in range(len(parts), -1, -1):
            if (found := self.levels.get(parts[:length])) is not None:
                return found
        return "none"

    def sees(self, parts: Parts) -> bool:
        """Whether a path may be looked at, being readable or on the way to something that is."""
        return self.level(parts) != "none" or any(
            level != "none" and path[: len(parts)] == parts for path, level in self.levels.items()
        )


class GuardedStore:
    """A store as one caller may use it: methods and errors as ``Store``, and ``DeniedError`` for what no rule
    allows."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access

    def check(self, path: str, level: str) -> str:
        """The path itself, when the caller has this level there."""
        held = self._access.level(split_path(path))
        if LEVELS.index(held) < LEVELS.index(level):
            raise DeniedError(f"{printable(path) or 'the folder served'}: the rules of this server do not let you")
        return path

    def _check_seen(self, path: str) -> str:
        return path if self._access.sees(split_path(path)) else self.check(path, "read")

    def stat(self, path: str) -> FileEntry:
        return self._store.stat(self._check_seen(path))

    def list(self, path: str) -> list[FileEntry]:
        base = split_path(self._check_seen(path))
        return [entry for entry in self._store.list(path) if self._access.sees((*base, entry.path))]

    def walk(self, path: str) -> Iterator[FileEntry]:
        base = split_path(self._check_seen(path))
        for entry in self._store.walk(path):
            if self._access.sees((*base, *entry.path.split("/"))):
                yield entry

    def open_file(self, path: str) -> int:
        return self._store.open_file(self.check(path, "read"))

    def whole_files(self) -> GuardedFiles:
        return GuardedFiles(self._store.whole_files(), self)

    def make_folder(self, path: str) -> None:
        self._store.make_folder(self.check(path, "write"))

    def check_room(self, path: str, size: int) -> None:
        if self._access.level(split_path(path)) == "write":  # else each file is refused, or finds room, by itself
            self._store.check_room(path, size)

    def dress_folder(self, path: str, mode: int, mtime_ns: int) -> None:
        self._store.dress_folder(self.check(path, "write"), mode, mtime_ns)

    def read_link(self, path: str) -> str:
        return self._store.read_link(self.check(path, "read"))

    def make_link(self, path: str, text: str, if_exists: str) -> bool:
        return self._store.make_link(self.check(path, "write"), text, if_exists)

    def check_writable(self, path: str) -> None:
        self._store.check_writable(self.check(path, "write"))

    def stage(self, path: str, size: int | None, mode: int, origin: str = "") -> StagedFile:
        return self._store.stage(self.check(path, "write"), size, mode, origin)

    def build_on(self, path: str, staged: StagedFile) -> None:
        self._store.build_on(self.check(path, "write"), staged)

    def forget(self, path: str, origin: str) -> None:
        self._store.forget(self.check(path, "write"), origin)

    def remove(self, path: str) -> None:
        self._store.remove(self.check(path, "write"))

    def clean_leftovers(self) -> Iterator[int]:
        return self._store.clean_leftovers()

    def clean_folder(self, path: str) -> int:
        return self._store.clean_folder(self.check(path, "write"))

    def close(self) -> None:
        self._store.close()


class GuardedFiles:
    """``WholeFiles`` as one caller may use them."""

    def __init__(self, files: WholeFiles, guard: GuardedStore) -> None:
        self._files = files
        self._guard = guard

    def __enter__(self) -> Self:
        self._files.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def open_file(self, path: str) -> int:
        return self._files.open_file(self._guard.check(path, "read"))

    def put(self, path: str, data: bytes | memoryview, mode: int, mtime_ns: int | None, durability: str) -> str:
        return self._files.put(self._guard.check(path, "write"), data, mode, mtime_ns, durability)
