"""Which protocol a place speaks: 502 first, 48 when that is refused, and remembered."""

from __future__ import annotations

from typing import Final

from ..settings import UNSAFE_SERIALIZERS, Settings

MAX_REMEMBERED: Final = 4096

_known: dict[str, int] = {}


def versions_to_try(location: str, settings: Settings) -> tuple[int, ...]:
    """Protocols to speak to this place, the likeliest first. Signing and the pickle family leave only protocol 48.

    Where 502 has worked, a handshake that breaks off is tried once more in it: it was rather cut than refused, and
    the connection would be without what protocol 48 lacks for as long as it lives.
    """
    if settings.protocol is not None:
        return (settings.protocol,)
    if settings.hmac_key is not None or settings.serializer in UNSAFE_SERIALIZERS:
        return (48,)
    known = _known.get(location)
    if known == 502:
        return (502, 502, 48)
    return (48, 502) if known == 48 else (502, 48)


def remember_version(location: str, version: int) -> None:
    """Note what worked."""
    if _known.get(location) == version:
        return
    _known.pop(location, None)
    _known[location] = version
    if len(_known) > MAX_REMEMBERED:
        del _known[next(iter(_known))]
