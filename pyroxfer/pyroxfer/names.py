"""Which names of files are taken from a peer, and how they are shown. Pure.

A path between two ends is relative, with ``/`` between its components. Names that are harmless where this store runs
but not elsewhere are refused when they are a trap (device names, trailing dots, backslashes); punctuation such as the
colon of a time stamp is let through, because the store runs only where it means nothing.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from .errors import NameRefusedError

MAX_COMPONENT_BYTES = 255
"""NAME_MAX of Linux file systems."""
MAX_PATH_BYTES = 4096
"""PATH_MAX of Linux."""
PRIVATE_PREFIX = ".pyroxfer-"
"""Partial files and their journals begin like this; nobody else may."""
JOURNAL_SUFFIX = ".journal"
_PARTIAL = re.compile(re.escape(PRIVATE_PREFIX) + "[0-9a-f]{16}")
_JOURNAL = re.compile(_PARTIAL.pattern + re.escape(JOURNAL_SUFFIX))

_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³")}
)
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (bidirectional, zero-width), surrogate, line and paragraph separator."""
PATHS_REMEMBERED = 1024
"""Paths whose components are kept: each is looked at where it arrives and where it is used, a batch of small files at
a time."""
_PUNCTUATION = frozenset('<>:"|?*')
"""Characters that some other systems do not take, or take for something else."""
_JOINERS = frozenset("\u200c\u200d")
"""Format characters that scripts and emoji need inside words."""


def printable(name: str) -> str:
    """``name`` with everything that is not plainly visible escaped, safe for a terminal or a log line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)


def folded(path: str) -> str:
    """The one spelling of a path where case and normal form make no difference."""
    return (
        path.lower()
        if path.isascii()
        else unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
    )


def check_portable(path: str) -> None:
    """Whether every other system takes a path as it is, beyond what ``split_path`` makes sure of.

    Raises:
        NameRefusedError: with the character that one does not take.
    """
    for char in path:
        if char in _PUNCTUATION:
            raise NameRefusedError(f"{printable(path)[:300]}: not every system takes '{char}' in a name; see --names")


def is_partial(name: str) -> bool:
    """Whether ``name`` is that of a partial file: the prefix alone may be on a file that somebody wants to keep."""
    return _PARTIAL.fullmatch(name) is not None


def is_journal(name: str) -> bool:
    """Whether ``name`` is that of the journal of a partial file."""
    return _JOURNAL.fullmatch(name) is not None


def is_private(name: str) -> bool:
    """Whether ``name`` is one of these."""
    return name.startswith(PRIVATE_PREFIX) and (is_partial(name) or is_journal(name))


def check_component(name: str) -> str:
    """``name`` itself, when it may be one component of a path inside the root.

    Raises:
        NameRefusedError: with the reason.
    """
    problem = _problem(name)
    if problem:
        raise NameRefusedError(f"the name '{printable(name)[:300]}' is refused: {problem}")
    return name


@functools.lru_cache(PATHS_REMEMBERED)
def split_path(path: str) -> tuple[str, ...]:
    """The components of a relative path; none for the root itself (``""`` or ``"."``). One trailing slash is ignored.

    Raises:
        NameRefusedError: the path is absolute, too long, or one of its components is refused.
    """
    if path in ("", "."):
        return ()
    if path.startswith("/"):
        raise NameRefusedError(f"the path '{printable(path)[:300]}' is refused: it is absolute")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise NameRefusedError(f"the path '{printable(path)[:300]}' is refused: it is not valid UTF-8") from None
    if length > MAX_PATH_BYTES:
        raise NameRefusedError(f"the path '{printable(path)[:60]}…' is refused: over {MAX_PATH_BYTES} bytes")
    return tuple(map(check_component, path.removesuffix("/").split("/")))


def split_file_path(path: str) -> tuple[str, ...]:
    """The components of the path of a file: at least one, and no trailing slash.

    Raises:
        NameRefusedError: as ``split_path``, or the path can only name a folder.
    """
    parts = split_path(path)
    if not parts or path.endswith("/"):
        raise NameRefusedError(f"the path '{printable(path)[:300]}' is refused: it names a folder, not a file")
    return parts


def _problem(name: str) -> str | None:
    """Why ``name`` is no component, or None."""
    if not name or name in (".", ".."):
        return "empty, '.' and '..' are not names"
    if "/" in name or "\\" in name:
        return "it has a slash or backslash in it"
    if not (name.isascii() and name.isprintable()) and any(map(_is_invisible, name)):
        return "it has control or invisible characters in it"
    if len(name.encode()) > MAX_COMPONENT_BYTES:
        return f"it is over {MAX_COMPONENT_BYTES} bytes"
    return _trap(name)


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in _INVISIBLE and char not in _JOINERS


def _trap(name: str) -> str | None:
    """Why ``name`` means something else on another system, or to this program, or None."""
    if name.startswith(PRIVATE_PREFIX):
        return f"names beginning {PRIVATE_PREFIX} are kept for partial files"
    if name[-1] in ". ":
        return "it ends in a dot or a space"
    if name.split(".", 1)[0].rstrip(" ").lower() in _DEVICES:
        return "it is the name of a device on other systems"
    return None
