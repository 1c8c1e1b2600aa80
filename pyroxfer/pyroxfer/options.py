"""What a caller asks of a transfer, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from pyroxfer_core import Settings

from .channels.base import AUTO_STREAMS, MOST_STREAMS, Manner
from .channels.choose import AUTO, check_channel
from .errors import AddressError
from .names import check_portable
from .offer import DURABILITIES, IF_EXISTS
from .pace import Pace
from .packing import Packing
from .selection import Selection

NATIVE: Final = "native"
PORTABLE: Final = "portable"
NAMES: Final = (NATIVE, PORTABLE)


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How files are to be moved.

    Raises:
        AddressError: a value that is not on offer.
    """

    channel: str = AUTO
    if_exists: str = "fail"
    durability: str = "data"
    resume: bool = True
    """What an interrupted attempt left is used, and what this one leaves is kept."""
    streams: int = AUTO_STREAMS
    """Side streams at once for one file; 0 decides by the length of the line."""
    bwlimit: int | None = None
    """Bytes a second at most, all files of a run together."""
    compress: bool = False
    """Pack blocks with zstd for files and lines where it pays."""
    selection: Selection = field(default_factory=Selection)
    """What is taken of folders."""
    names: str = NATIVE
    """``PORTABLE`` refuses names that not every system takes, and those of a folder that some take for one."""
    links: bool = False
    """Symbolic links in folders become links at the other end; otherwise they are left out with a warning."""
    settings: Settings = field(default_factory=Settings)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        check_channel(self.channel)
        _check("if_exists", self.if_exists, IF_EXISTS)
        _check("names", self.names, NAMES)
        _check("durability", self.durability, DURABILITIES)
        if not 0 <= self.streams <= MOST_STREAMS:
            raise AddressError(f"streams cannot be {self.streams}; choose 1 to {MOST_STREAMS}, or 0 for automatic")
        if self.bwlimit is not None and self.bwlimit < 1:
            raise AddressError(f"bwlimit cannot be {self.bwlimit}; it is bytes a second, at least 1")
        object.__setattr__(self, "pace", Pace(self.bwlimit))

    @property
    def refuses_twins(self) -> bool:
        """Whether names that differ in case or normal form only are refused, and not only warned of."""
        return self.names == PORTABLE

    def check_name(self, path: str) -> None:
        """Whether a file may be called like this.

        Raises:
            NameRefusedError: names are to be portable, and this one is not.
        """
        if self.names == PORTABLE:
            check_portable(path)

    def manner(self, round_trip_s: float, packing: Packing | None) -> Manner:
        """How a channel shall move the bytes over a line of this length."""
        return Manner(self.pace, self.streams, round_trip_s, packing)


def _check(what: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise AddressError(f"{what} cannot be '{value[:40]}'; choose one of {', '.join(options)}")
