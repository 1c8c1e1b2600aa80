"""A file service, spoken to call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyroxfer import Receipt
from pyroxfer.conversation import Conversation
from pyroxfer.digest import digest_of
from pyroxfer.offer import Offer, Ticket

DATA = b"0123456789" * 1000


def content(folder: Path) -> list[str]:
    """Every name in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


async def opened(talk: Conversation, path: str = "f", size: int | None = len(DATA), **more: Any) -> Ticket:
    reply = await talk.ask("open_upload", Offer(path, size, **more).to_dict())
    return Ticket.from_dict(reply["ticket"])


async def commit(talk: Conversation, ticket: Ticket, data: bytes = DATA) -> Receipt:
    digest = digest_of(data, ticket.algorithm)
    reply = await talk.ask("commit", ticket.transfer_id, len(data), digest, "iter", "test")
    return Receipt.from_dict(reply["receipt"])
