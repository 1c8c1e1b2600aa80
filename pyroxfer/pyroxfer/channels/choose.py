"""Which channel moves a file, and why; falling back when one cannot be opened. The only room that knows them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pyroxfer_core.errors import ConnectionClosedError, ProtocolError

from ..conversation import Conversation
from ..errors import AddressError, LostError
from ..offer import End, Ticket
from ..progress import human
from ..sink import Sink
from ..source import Source
from .annot import AnnotChannel, AnnotEnd, block_of
from .base import Acknowledged, Channel, ChannelUnavailableError, Manner
from .iter import IterChannel, IterEnd
from .raw import RawChannel
from .raw import serve_side_stream as serve_side_stream

AUTO: Final = "auto"
CHANNELS: Final[dict[str, Channel]] = {
    channel.name: channel for channel in (IterChannel(), AnnotChannel(), RawChannel())
}
CHOICES: Final = (AUTO, *CHANNELS)
"""What ``--channel`` takes."""

INLINE: Final = IterChannel.name
"""The channel in the receipt of a small file: its bytes travelled as a value in a call."""
INLINE_REASON: Final = "small files travel whole, many in one call"

RAW_BLOCKS: Final = 4
"""``auto`` takes the side stream for a file of so many blocks. Measured over loopback, by turns, both ends' time of
the processor: blocks of 1 MiB cost 0.87 of the side stream's for a file of one, as much for four and 1.4 times as
much for eight; those towards protocol 48 never pay for a file that does not travel whole."""


class ChannelEnds(IterEnd, AnnotEnd):
    """The server's halves of all channels whose bytes come in calls."""


PACKED: Final = "it shrinks, so it goes in blocks that are packed where that pays"
"""Why ``auto`` takes blocks in calls for a large file that is to be compressed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A channel and why it was chosen."""

    channel: Channel
    reason: str


def check_channel(name: str) -> str:
    """``name`` itself, when it is a choice.

    Raises:
        AddressError: it is not.
    """
    if name not in CHOICES:
        raise AddressError(f"there is no channel '{name[:40]}'; choose one of {', '.join(CHOICES)}")
    return name


def choose(name: str, size: int | None, protocol: int | None, *, seekable: bool = True) -> Choice:
    """The channel for a file of ``size`` bytes, or of unknown size, between two ends of this protocol."""
    if name != AUTO:
        return Choice(CHANNELS[name], "as asked")
    blocks = CHANNELS[AnnotChannel.name]
    if size is None or not seekable:
        return Choice(blocks, "a pipe takes and gives bytes only in order")
    raw_from = RAW_BLOCKS * block_of(protocol)
    if size < raw_from:
        return Choice(blocks, f"{human(size)} is below {human(raw_from)}")
    return Choice(CHANNELS[RawChannel.name], f"{human(size)} is at least {human(raw_from)}")


def in_blocks() -> Choice:
    """The channel whose blocks can be packed."""
    return Choice(CHANNELS[AnnotChannel.name], PACKED)


def _instead(reason: ChannelUnavailableError) -> Choice:
    return Choice(CHANNELS[AnnotChannel.name], str(reason))


async def push(
    choice: Choice, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
) -> tuple[End, Choice]:
    """Move a source by the chosen channel, or by another when that cannot be opened. Errors as ``Channel.push``.

    Returns:
        The source's own count and digest, and what moved it in the end.
    """
    try:
        return await choice.channel.push(talk, ticket, source, acknowledged, manner), choice
    except ChannelUnavailableError as reason:
        other = _instead(reason)
    return await other.channel.push(talk, ticket, source, acknowledged, manner), other


async def pull(
    choice: Choice, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
) -> tuple[End, Choice]:
    """Fill a sink by the chosen channel, or by another when that cannot be opened. Errors as ``Channel.pull``.

    Raises:
        LostError: the connection broke, also in the middle of a message.

    Returns:
        The sender's count and digest, and what moved the bytes in the end.
    """
    with _or_lost(talk):
        try:
            return await choice.channel.pull(talk, ticket, sink, acknowledged, manner), choice
        except ChannelUnavailableError as reason:
            other = _instead(reason)
        return await other.channel.pull(talk, ticket, sink, acknowledged, manner), other


@contextlib.contextmanager
def _or_lost(talk: Conversation) -> Iterator[None]:
    """A connection that breaks once blocks are on their way is a transfer that can go on."""
    try:
        yield
    except (ConnectionClosedError, ProtocolError) as error:
        why = f" ({error})" if isinstance(error, ProtocolError) else ""
        text = f"the connection to {talk.where.location} was lost before the whole file had come{why}; try again"
        raise LostError(text) from error
