"""From the topic of a blob to the name of a service. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

WILDCARD: Final = "*"


class RouteTable:
    """Exact topics and prefixes (``orders.*``), each leading to one service.

    An exact topic wins over every prefix, a longer prefix over a shorter one; a bare ``*`` takes the rest.

    Args:
        routes: pattern to service name.

    Raises:
        ValueError: a pattern is empty or has a ``*`` before its end.
    """

    def __init__(self, routes: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        self._exact: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        for pattern, service in dict(routes).items():
            check_pattern(pattern)
            if pattern.endswith(WILDCARD):
                self._prefixes[pattern[:-1]] = service
            else:
                self._exact[pattern] = service
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)

    def find(self, topic: str) -> str | None:
        """The service for a topic, or None when no pattern matches."""
        service = self._exact.get(topic)
        if service is not None:
            return service
        prefixes = self._prefixes
        for length in self._lengths:
            service = prefixes.get(topic[:length])
            if service is not None:
                return service
        return None

    def __repr__(self) -> str:
        patterns = [*self._exact, *(prefix + WILDCARD for prefix in self._prefixes)]
        return f"<RouteTable {', '.join(patterns)}>"


def check_pattern(pattern: str) -> None:
    """Refuse what is neither an exact topic nor a prefix with one ``*`` at its end.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    if not pattern:
        raise ValueError("a pattern is an exact topic or a prefix followed by *, not an empty text")
    if WILDCARD in pattern[:-1]:
        raise ValueError(f"{pattern!r} has a * before its end; a pattern is an exact topic or a prefix followed by *")


def topic_of(info: object) -> str | None:
    """The topic in a blob's info: the text itself, or the first item of a tuple or list. None when there is none."""
    if isinstance(info, (tuple, list)) and info:
        info = info[0]
    return info if isinstance(info, str) else None
