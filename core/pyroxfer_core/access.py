"""Who a caller is: identities, and the tokens that prove one."""

from __future__ import annotations

import hmac
import logging
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import SecurityError

log = logging.getLogger(__name__)

SHORTEST_TOKEN: Final = 16
"""Characters; a shorter one could be guessed from a conversation that somebody recorded."""
LONGEST_TOKEN: Final = 1024
MAX_FILE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a caller is, and how that is known."""

    name: str
    """The name of the token, or of the certificate's owner, or what an authenticator gave."""
    how: str
    """``token``, ``mtls``, ``hmac``, or what an authenticator says."""

    def __str__(self) -> str:
        return f"{self.name} ({self.how})"


class Tokens:
    """Named secrets, each of which lets its owner in; for ``Settings(tokens=…)``.

    Args:
        tokens: token by name.

    Raises:
        SecurityError: a token is too short or too long, or has blanks, or two are the same.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = _checked(tokens)
        self._path: Path | None = None

    def __repr__(self) -> str:
        return f"<Tokens of {', '.join(self._tokens)}>"

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Names and tokens."""
        return iter(list(self._tokens.items()))

    @classmethod
    def load(cls, path: str | Path) -> Tokens:
        """Read a file with a name and a token a line. Empty lines, and those that begin with ``#``, do not count; a
        token alone has the name ``token``.

        Raises:
            SecurityError: the file cannot be read, or a line cannot be used; its number is told, not its text.
        """
        tokens = cls(_read(Path(path)))
        tokens._path = Path(path)
        return tokens

    def reload(self) -> None:
        """Read the file again, if there is one; connections go on. After an error the old tokens are good as before.

        Raises:
            SecurityError: as `load`.
        """
        if self._path is not None:
            self._tokens = _checked(_read(self._path))

    def owner_of(self, token: str) -> str | None:
        """The name of a token that was shown; None when there is no such token. Takes the same time for any."""
        shown, found = token.encode("utf-8", "surrogatepass"), None
        for name, known in self._tokens.items():
            if hmac.compare_digest(shown, known.encode()):
                found = name
        return found


def load_token(path: str | Path) -> str:
    """The token that a client shows: the first of a file as `Tokens.load` reads it.

    Raises:
        SecurityError: as `Tokens.load`.
    """
    return next(iter(_checked(_read(Path(path))).values()))


def check_token(token: str) -> str:
    """The token.

    Raises:
        SecurityError: it is too short or too long, or has blanks or characters beyond ASCII.
    """
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        raise SecurityError(f"a token has {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters, not {len(token)}")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SecurityError("a token has printable ASCII characters and no blanks")
    return token


def _checked(tokens: Mapping[str, str]) -> dict[str, str]:
    for token in tokens.values():
        check_token(token)
    if not tokens:
        raise SecurityError("there is no token")
    if len(set(tokens.values())) < len(tokens):
        raise SecurityError("two names have the same token: it would not tell them apart")
    return dict(tokens)


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise SecurityError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SecurityError(f"{path}: not a text file in UTF-8") from None
    if len(data) > MAX_FILE_BYTES:
        raise SecurityError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("others can read the tokens in %s: chmod 600 it", path)
    return _parse(text, path)


def _parse(text: str, path: Path) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, token = ("token", words[0]) if len(words) == 1 else (words[0], words[-1])
        if len(words) > 2 or name in tokens:
            problem = "more than a name and a token" if len(words) > 2 else "a name that was there before"
            raise SecurityError(f"{path}: line {number} has {problem}")
        try:
            tokens[name] = check_token(token)
        except SecurityError as error:
            raise SecurityError(f"{path}: line {number}: {error}") from None
    if not tokens:
        raise SecurityError(f"{path}: there is no token in it")
    return tokens
