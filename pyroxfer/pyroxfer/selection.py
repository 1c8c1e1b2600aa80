"""Which of the entries of a folder are taken: patterns as in ``.gitignore``, and lists of paths. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import AddressError, DeniedError, NotFoundError
from .names import printable
from .offer import FileEntry

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from .many import Outcome
    from .options import TransferOptions

MAX_LISTED = 1_000_000
"""Paths of one list of files."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken of a folder; everything unless said otherwise.

    Patterns are those of ``.gitignore``, against paths relative to the folder: ``*.o``, ``/build/``, ``a/**/b``. What
    ``exclude`` matches is left out, with everything below it, unless ``include`` matches it; ``include`` alone takes
    nothing but what it matches. ``only`` names paths: files, or folders with all below them.
    ``None`` names everything.

    Raises:
        AddressError: a pattern or a path cannot be used.
    """

    exclude: Sequence[str] = ()
    include: Sequence[str] = ()
    only: Sequence[str] | None = None
    _out: GitIgnoreSpec | None = field(init=False, repr=False)
    _in: GitIgnoreSpec | None = field(init=False, repr=False)
    _named: frozenset[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_out", _compiled(self.exclude))
        object.__setattr__(self, "_in", _compiled(self.include))
        object.__setattr__(self, "_named", None if self.only is None else frozenset(map(_listed_path, self.only)))

    def picks(self, entry: FileEntry) -> bool:
        """Whether an entry is taken; the folder itself always is."""
        if not entry.path:
            return self._named is None and self._in is None
        if self._named is not None and not self._is_named(entry.path):
            return False
        if self._out is None and self._in is None:
            return True
        path = entry.path + ("/" if entry.kind == "folder" else "")
        if self._in is not None and self._in.match_file(path):
            return True
        return self._out is not None and not self._out.match_file(path)

    def _is_named(self, path: str) -> bool:
        assert self._named is not None, "asked only with a list"
        while path:
            if path in self._named:
                return True
            path = path.rpartition("/")[0]
        return "" in self._named

    def missing(self, entries: Iterable[FileEntry]) -> list[str]:
        """Those of the named paths that are not among the entries."""
        return sorted((self._named or frozenset()) - {entry.path for entry in entries} - {""})


def select(
    entries: Sequence[FileEntry], options: TransferOptions, outcome: Outcome
) -> tuple[list[FileEntry], list[FileEntry]]:
    """Files and folders of a tree to be moved, and links to be made; what cannot be, or is not there, is told."""
    taken: list[FileEntry] = []
    links: list[FileEntry] = []
    for entry in filter(options.selection.picks, entries):
        if entry.kind in ("file", "folder"):
            taken.append(entry)
        elif entry.kind == "unreadable":
            outcome.failed(entry.path, DeniedError(f"{printable(entry.path)}: cannot be read"))
        elif entry.kind == "link" and options.links:
            links.append(entry)
        else:
            what = "a link; see --links" if entry.kind == "link" else "no file"
            outcome.reporter.warn(entry.path, f"left out: it is {what}")
    for path in options.selection.missing(entries):
        outcome.failed(path, NotFoundError(f"{printable(path)}: is in the list of files, and not in the folder"))
    return taken, links


def _compiled(patterns: Sequence[str]) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # few runs need it

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise AddressError(f"a pattern cannot be used: {printable(str(error))[:300]}") from None


def _listed_path(path: str) -> str:
    """One path of a list in the form that entries have.

    Raises:
        AddressError: it is absolute, or leads out of the folder.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise AddressError(f"{printable(path)[:300]}: a list of files holds paths below the folder only")
    return "/".join(parts)


def read_list(data: bytes) -> list[str]:
    """The paths of a list of files: one a line, or between NUL bytes when there is one.

    Raises:
        AddressError: it is not UTF-8, or has too many.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise AddressError(f"the list of files is not UTF-8 at byte {error.start}") from None
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    found = [line for line in lines if line]
    if len(found) > MAX_LISTED:
        raise AddressError(f"the list of files has more than {MAX_LISTED} paths")
    return found
