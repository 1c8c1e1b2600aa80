"""What a caller asks of a transfer, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from pyroxfer_core import Settings

from .channels.choose import AUTO, check_channel
from .errors import AddressError
from .offer import DURABILITIES, IF_EXISTS


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How files are to be moved.

    Raises:
        AddressError: a value that is not on offer.
    """

    channel: str = AUTO
    if_exists: str = "fail"
    durability: str = "data"
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check_channel(self.channel)
        _check("if_exists", self.if_exists, IF_EXISTS)
        _check("durability", self.durability, DURABILITIES)


def _check(what: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise AddressError(f"{what} cannot be '{value[:40]}'; choose one of {', '.join(options)}")
