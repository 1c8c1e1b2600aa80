"""What a running call knows about itself."""

from __future__ import annotations

import os
import secrets
import threading
import uuid
import weakref
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Final, Protocol

from ..access import Identity
from ..errors import PyroError
from ..wire.message import Body, Message


class TrackedResources:
    """Objects to close when a connection ends; they are not kept alive by it. Threads may add to them."""

    __slots__ = ("_closed", "_members")

    def __init__(self) -> None:
        self._closed = False
        self._members: weakref.WeakSet[Any] | None = None

    def add(self, resource: Any) -> None:
        """Close ``resource`` with the others, if it still exists by then; at once when they are closed already."""
        with _tracking:
            if not self._closed:
                if self._members is None:
                    self._members = weakref.WeakSet()
                self._members.add(resource)
                return
        _close(resource)

    def discard(self, resource: Any) -> None:
        """Leave ``resource`` open; one that is not tracked is no error."""
        with _tracking:
            if self._members is not None:
                self._members.discard(resource)

    def close_all(self) -> None:
        """Call ``close()`` of each, in any order; one that fails does not keep the others open."""
        with _tracking:
            self._closed, members = True, list(self._members or ())
            self._members = None
        for resource in members:
            _close(resource)


_tracking = threading.RLock()
"""Held for a moment, by the finalizer of a resource too. Most connections have none, so they share it."""


def _track_anew() -> None:
    """In a child after a fork: a thread that stayed in the parent may have had the lock."""
    global _tracking
    _tracking = threading.RLock()


os.register_at_fork(after_in_child=_track_anew)


def _close(resource: Any) -> None:
    try:
        resource.close()
    except Exception:  # the connection is gone, and nobody is there to be told
        return


class Caller(Protocol):
    """The connection a call came over, as the context needs it."""

    @property
    def address(self) -> str:
        """The other side, for people."""

    @property
    def version(self) -> int:
        """The protocol it speaks: 48 or 502."""

    @property
    def is_own(self) -> bool:
        """Whether the other side is this library, which speaks both protocols."""

    @property
    def identity(self) -> Identity | None:
        """Who it is, if anybody asked."""

    @property
    def resources(self) -> TrackedResources:
        """What is closed with it."""

    def room_for(self, size: int) -> AbstractAsyncContextManager[None]:
        """See `CallContext.room_for`."""


class CallContext:
    """The facts of one call, and what its answer shall carry.

    One is made for every call, and few calls look at theirs: all but the two facts it is made of is found on demand.
    """

    __slots__ = ("_chain", "_correlation", "_response_annotations", "client", "deadline", "message")

    def __init__(self, client: Caller, message: Message) -> None:
        self.client: Any = client
        """The connection it came over."""
        self.message = message
        self._chain: bytes
        self._correlation: bytes | uuid.UUID | None = message.correlation_id
        self._response_annotations: dict[str, Body] | None = None
        self.deadline: float | None = None
        """When the caller stops waiting, on trio's clock; calls made for this one inherit it."""

    @property
    def seq(self) -> int:
        """Sequence number of the request."""
        return self.message.seq

    @property
    def msg_flags(self) -> int:
        """Flags of the request."""
        return self.message.flags

    @property
    def serializer_id(self) -> str:
        """Name of the serializer of the request."""
        return self.message.serializer

    @property
    def annotations(self) -> dict[str, Body]:
        """Annotations of the request."""
        return self.message.annotations

    @annotations.setter
    def annotations(self, value: dict[str, Body]) -> None:
        self.message.annotations = value

    @property
    def response_annotations(self) -> dict[str, Body]:
        """To be filled: annotations of the answer."""
        if self._response_annotations is None:
            self._response_annotations = {}
        return self._response_annotations

    @response_annotations.setter
    def response_annotations(self, value: dict[str, Body]) -> None:
        self._response_annotations = value

    @property
    def peer(self) -> Any:
        """The caller's address, for people."""
        return self.client.address

    @property
    def identity(self) -> Identity | None:
        """Who the caller is: ``name``, and ``how`` that is known (token, mtls, hmac); None when nobody asked."""
        known: Identity | None = self.client.identity
        return known

    @property
    def correlation_id(self) -> uuid.UUID:
        """The caller's id; a fresh random one when there was none."""
        known = self._correlation
        if not isinstance(known, uuid.UUID):
            known = uuid.uuid4() if known is None else uuid.UUID(bytes=bytes(known))
            self._correlation = known
        return known

    @correlation_id.setter
    def correlation_id(self, value: uuid.UUID | None) -> None:
        self._correlation = value

    @property
    def correlation_bytes(self) -> bytes:
        """The 16 bytes that the answer carries."""
        known = self._correlation
        return known if isinstance(known, bytes) else self.correlation_id.bytes

    @property
    def known_correlation(self) -> bytes | None:
        """The 16 bytes of the caller's id, or of one that was asked for or set here; None when there is none."""
        known = self._correlation
        return known.bytes if isinstance(known, uuid.UUID) else known

    @property
    def known_chain(self) -> bytes | None:
        """The 16 bytes of `chain`, once a call was made for this one, or it belongs to one already."""
        try:
            return self._chain
        except AttributeError:  # few calls have one
            return None

    @property
    def chain(self) -> bytes:
        """The same for all calls that are made, directly or not, while this one runs, and for this one itself."""
        known = self.known_chain
        if known is None:
            known = self._chain = secrets.token_bytes(16)
        return known

    @chain.setter
    def chain(self, value: bytes) -> None:
        self._chain = value

    @property
    def protocol(self) -> int:
        """The protocol the caller speaks: 48 or 502."""
        return int(self.client.version)

    @property
    def client_sock_addr(self) -> Any:
        """Pyro's name of ``peer``."""
        return self.peer

    def room_for(self, size: int) -> AbstractAsyncContextManager[None]:
        """Make a large answer in the block: it begins when the caller has read most of what was made for it before.

        A caller that asks for much and reads nothing makes its calls wait here, in order, with what they hold: make
        the answer in the block, or hand it to ``response_annotations``, and return from there. Its other calls go on.
        Not to be used in one another: the inner block could wait for the outer one.

        Args:
            size: bytes that the answer will have, about.

        Raises:
            ConnectionClosedError: the caller has left.

        When cancelled, as by the caller or the deadline, nothing is held any more.
        """
        room: AbstractAsyncContextManager[None] = self.client.room_for(size)
        return room

    def track_resource(self, resource: Any) -> None:
        """Close ``resource`` when the caller's connection ends, or now if it has. It is held weakly."""
        self.client.resources.add(resource)

    def untrack_resource(self, resource: Any) -> None:
        """Leave ``resource`` open when the connection ends."""
        self.client.resources.discard(resource)


current_context_var: Final[ContextVar[CallContext]] = ContextVar("pyroxfer_call")


class CurrentCall:
    """Stands for the context of the call that is running here: ``current_call.annotations`` and so on.

    Attributes are those of CallContext. Outside a call every one is a PyroError.
    """

    __slots__ = ()

    def get(self) -> CallContext:
        """The context itself.

        Raises:
            PyroError: no call is running here.
        """
        try:
            return current_context_var.get()
        except LookupError:
            raise PyroError("there is no call context outside a remote call") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.get(), name, value)


current_call: Final = CurrentCall()
