"""What a gateway may be told. One frozen value; nothing is read from the environment."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final

from ..settings import KIB, MIB, Settings

DEFAULT_EXPOSE: Final = r"http\."
"""Pyro's own default: names that begin with ``http.``"""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Limits and choices of one gateway. Sizes are bytes, times are seconds.

    Raises:
        ValueError: the pattern is none, a number is out of its range, or an origin is not one.
    """

    expose: str = DEFAULT_EXPOSE
    """Regular expression; an object is reachable when its name matches from the beginning. Empty: every object."""
    key: str | None = field(default=None, repr=False)
    """What callers must present; None or empty: nothing."""
    timeout_s: float | None = 60.0
    """How long one call may take; None waits as long as the connection lives. Item streams: for each item."""
    ns_host: str | None = None
    """Host of the name server; None looks for one as every program does."""
    ns_port: int | None = None
    """Its port; None is ``settings.ns_port``."""
    cors: tuple[str, ...] = ()
    """Origins (``https://example.org``) whose pages may call; ``*`` is every page there is."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names that a request may use for this gateway, without port; None takes any."""
    tracebacks: bool | None = None
    """Pass tracebacks on. None: only to callers on loopback, or with the right key."""
    lookup_ttl_s: float = 1.0
    """How long an answer of the name server is taken for true."""
    stale_lookup_s: float = 300.0
    """How long it may still be used, and is said to be old, while the name server cannot be reached."""
    max_body_bytes: int = 1 * MIB
    """Largest request body."""
    max_answer_bytes: int = 16 * MIB
    """Largest answer of an object."""
    max_parameters: int = 1_000
    """Most parameters of one query or form."""
    max_calls: int = 256
    """Calls and item streams at once; more are refused with 503."""
    max_watchers: int = 32
    """Pages that are kept up to date at once."""
    max_objects: int = 256
    """Objects that stay connected; the one unused for the longest time gives way."""
    connections_per_object: int = 4
    """Connections to one object that takes one call at a time; objects of this library need one."""
    settings: Settings = field(default_factory=Settings)
    """How the objects and the name server are talked to."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.expose)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"the pattern of exposed names is not a regular expression: {error}") from None
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ValueError(f"a time limit is a positive number of seconds, not {self.timeout_s!r}")
        for name in ("max_body_bytes", "max_answer_bytes", "max_parameters", "max_calls", "max_objects"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.connections_per_object < 1:
            raise ValueError("connections_per_object must be at least 1")
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"an origin looks like https://example.org (or is *), not {origin!r}")

    @property
    def client_settings(self) -> Settings:
        """Settings of the proxies to objects: answers are bounded, and read with what every object speaks."""
        limit = min(self.settings.max_message_bytes, max(self.max_answer_bytes, self.max_body_bytes + 64 * KIB))
        return self.settings.with_changes(max_message_bytes=limit)
