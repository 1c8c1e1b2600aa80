"""What an operator sees: one structured line per event. Texts of peers are escaped, so no line can be forged."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from .backends import Backend

log = logging.getLogger("pyroxfer.dispatcher")

MAX_FIELD: Final = 300
"""Characters of one field that are shown."""

_PLAIN: Final = re.compile(r"[\w.:/@\[\]+-]+", re.ASCII)


def note(level: int, event: str, **fields: object) -> None:
    """Log one event as ``event key=value …``."""
    if log.isEnabledFor(level):
        log.log(level, "%s", " ".join([event, *(f"{key}={_shown(value)}" for key, value in fields.items())]))


def _shown(value: object) -> str:
    text = str(value)
    if len(text) > MAX_FIELD:
        text = text[:MAX_FIELD] + "…"
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def announce(backend: Backend, *, is_up: bool) -> None:
    """A backend went down, or came back."""
    if is_up:
        note(logging.INFO, "backend_up", backend=backend.name, uri=backend.uri)
    else:
        note(logging.WARNING, "backend_down", backend=backend.name, uri=backend.uri, reason=backend.reason)


def announce_ejection(backend: Backend, verdict: str, reason: str) -> None:
    """Calls of a backend fail one after the other."""
    note(logging.WARNING, verdict, backend=backend.name, uri=backend.uri, reason=reason)
