"""Subclasses of the builtin scalars, such as NumPy's numbers: they travel as the builtin, which the peer knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

BASES: Final[dict[type, Callable[[Any], Any]]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    complex: complex,
    bytes: bytes,
    bytearray: bytearray,
}
_BUILTIN: Final = frozenset({*BASES, bool})


def as_builtin(value: Any) -> Any:
    """The builtin scalar in a value of a class derived from one; whatever else it is, the value itself."""
    if type(value) in _BUILTIN:
        return value
    for base, plain in BASES.items():
        if isinstance(value, base):
            return plain(value)
    return value
