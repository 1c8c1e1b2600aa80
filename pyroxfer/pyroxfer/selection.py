"""Which of the entries of a folder are taken: patterns as in ``.gitignore``, and lists of paths. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .errors import AddressError, DeniedError, NameRefusedError, NotFoundError
from .names import folded, printable
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
    picked = list(filter(options.selection.picks, entries))
    refused = _refused_names(picked, options, outcome)
    for entry in picked:
        if refused and any(path in refused for path in _way_to(entry.path)):
            outcome.failed(
                entry.path, refused.get(entry.path) or NameRefusedError(_BELOW.format(printable(entry.path)))
            )
        elif entry.kind in ("file", "folder"):
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


_BELOW: Final = "{}: its folder's name is refused"


def _way_to(path: str) -> Iterator[str]:
    """A path, and the folders above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _refused_names(
    entries: Sequence[FileEntry], options: TransferOptions, outcome: Outcome
) -> dict[str, NameRefusedError]:
    """Names that may not be used; of those that differ in case or normal form only, each is one, or is warned of."""
    refused: dict[str, NameRefusedError] = {}
    spelt: dict[str, str] = {}
    for entry in entries:
        try:
            options.check_name(entry.path.rpartition("/")[2])
        except NameRefusedError as error:
            refused[entry.path] = error
        other = spelt.setdefault(folded(entry.path), entry.path)
        if other == entry.path:
            continue
        text = "differs from '{}' in case or normal form only: to some systems they are one; see --names"
        if not options.refuses_twins:
            outcome.reporter.warn(entry.path, text.format(other))
            continue
        for one, another in ((entry.path, other), (other, entry.path)):
            refused.setdefault(one, NameRefusedError(f"{printable(one)}: {text.format(printable(another))}"))
    return refused


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
