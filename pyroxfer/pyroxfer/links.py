"""Which symbolic links may be made: those whose text stays inside the root, wherever they stand. Pure."""

from __future__ import annotations

from .errors import NameRefusedError
from .names import check_component, printable, split_file_path


def check_link(path: str, text: str) -> str:
    """``text`` itself, when a link with it may stand at ``path`` (relative to the root).

    It is relative, and goes up at its beginning only: the folders above the link are real ones, so that ``..`` there
    means what it says, while after a name it could lead through another link to somewhere else.

    Raises:
        NameRefusedError: it leads, or could lead, out of the root, or its names are refused.
    """
    depth = len(split_file_path(path)) - 1
    parts = [part for part in text.split("/") if part not in ("", ".")]
    ups = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
    if not text or text.startswith("/") or ups > depth or ".." in parts[ups:]:
        raise NameRefusedError(
            f"{printable(path)}: the link to '{printable(text)[:300]}' is refused: it could lead out of the root"
        )
    for part in parts[ups:]:
        check_component(part)
    return text
