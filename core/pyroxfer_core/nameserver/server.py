"""A name server that is running: its daemon, its own entry, and the broadcast responder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from ..server.daemon import Daemon
from ..settings import Settings
from ..uri import NS_PORT, Uri
from .broadcast import open_responder
from .rules import NAME_SERVER, is_loopback
from .service import NameServer
from .storage import Entry, Storage, open_storage

OWN_TAGS: Final = frozenset({"class:Pyro4.naming.NameServer", "class:Pyro5.nameserver.NameServer"})
"""Metadata of the own entry: both libraries' programs find it by the tag of theirs."""
