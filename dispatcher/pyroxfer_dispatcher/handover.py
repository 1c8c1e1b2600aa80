"""What two dispatchers say to each other when one takes the place of the other.

The old process starts the new one with one end of a socket pair. Over it go the listening sockets, which are the same
ones from then on, so no connection in their queues is lost. The new process loads its configuration, asks for what
the old one remembers, begins to serve, and says so; only then the old one stops accepting, and sees its clients off.
A new process that ends before, or takes too long, changes nothing.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
import trio

from pyroxfer_core.errors import CommunicationError

VARIABLE: Final = "PYROXFER_HANDOVER"
"""Number of the descriptor over which a process is told what it inherits, and from whom."""
ANSWER_S: Final = 10.0
"""How long either side may take for one message."""
MAX_LINE: Final = 16 * 1024 * 1024
MAX_SOCKETS: Final = 64


class Door(msgspec.Struct, frozen=True):
    """A listening socket that is passed on."""

    name: str
    made_for: str
    """What the configuration says of it: it is of no use to one that says something else."""


class Inheritance(msgspec.Struct, frozen=True):
    """What the old process says first; the sockets come with it, in this order."""

    doors: tuple[Door, ...]
    owns_control_file: bool


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whatever is said after that."""

    wants_state: bool = False
    ready: bool = False
    kept: tuple[str, ...] = ()
    """Names of the sockets that the new process goes on with."""
    cut: int | None = None
    """How many clients the old process, and those before it, had to cut before it ended."""


Said = TypeVar("Said", bound=msgspec.Struct)


def to_line(value: msgspec.Struct) -> bytes:
    """As it is sent."""
    return msgspec.json.encode(value) + b"\n"


def from_line(line: bytes, kind: type[Said]) -> Said:
    """What a line says.

    Raises:
        CommunicationError: something else; the other process may be of another version.
    """
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise CommunicationError(f"the other process says what is not understood: {error}") from None


async def next_line(stream: trio.SocketStream, buffer: bytearray) -> bytes:
    """The next line; ``buffer`` keeps what came behind it.

    Raises:
        CommunicationError: the other process left.
    """
    while (end := buffer.find(b"\n")) < 0:
        data = await stream.receive_some(64 * 1024)
        if not data or len(buffer) > MAX_LINE:
            raise CommunicationError("the other process left")
        buffer += data
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line
