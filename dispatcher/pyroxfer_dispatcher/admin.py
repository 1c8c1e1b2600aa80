"""What an operator sees: one structured line per event. Texts of peers are escaped, so no line can be forged."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

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
