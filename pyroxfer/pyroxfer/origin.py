"""Where bytes come from, in one word: by it an attempt finds what an earlier one left.

Two attempts have the same origin when the same user of the same machine sends the same path, or when the same path is
fetched, from whatever server: its address may be another one after each start. Whether the file is still the same is
found out by digests.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from blake3 import blake3

from .offer import ID_HEX


def origin_of_path(path: str | os.PathLike[str]) -> str:
    """The origin of a local file. Blocking."""
    return _word("file", _machine(), str(os.getuid()), os.path.realpath(path))


def origin_of_remote(path: str) -> str:
    """The origin of a file on a server."""
    return _word("server", path)


def _word(*parts: str) -> str:
    return blake3("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:ID_HEX]


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()
