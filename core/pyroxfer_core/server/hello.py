"""What a client says first, and what it is welcomed with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ..access import Identity
from ..objects.expose import Metadata
from ..wire.message import Body, Message


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client said in CONNECT, and who it is."""

    object_id: str | None
    """None: a Pyro4 client that does not ask for metadata."""
    handshake: Any
    message: Message
    identity: Identity | None = None
    """None: nobody asked it who it is."""
    address: str = ""
    """Where it comes from, for people."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client is welcomed with."""

    response: Any
    metadata: Metadata
    annotations: dict[str, Body] = field(default_factory=dict)


Judge = Callable[[Hello], Awaitable[Verdict]]
"""Decides about a client; raises any exception to refuse it, whose text the client is told."""
