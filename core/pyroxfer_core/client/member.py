"""Members of a remote object, and calls that are about to be made."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection

from ..errors import Outcome, SerializeError
from ..wire.message import Body, Message
from ..wire.pieces import Outgoing
from .calls import CallOptions, checked_options, user_annotations
from .items import ItemStream

if TYPE_CHECKING:
    from .link import Link
    from .proxy import Proxy


class Member:
    """``proxy.name``: call it, await it to read an attribute, or set options first."""

    __slots__ = ("_name", "_options", "_proxy")

    def __init__(self, proxy: Proxy, name: str, options: CallOptions) -> None:
        self._proxy = proxy
        self._name = name
        self._options = options

    def __repr__(self) -> str:
        return f"<remote member {self._name!r} of {self._proxy._pyroUri!s}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Call:
        return Call(self._proxy, self._name, args, kwargs, self._options)

    def __await__(self) -> Generator[Any, Any, Any]:
        return Call(self._proxy, "__getattr__", (self._name,), None, self._options, member=self._name).__await__()

    def options(
        self,
        *,
        deadline: float | None = None,
        annotations: Mapping[str, Body] | None = None,
        correlation_id: uuid.UUID | bytes | None = None,
        read_ahead: int | None = None,
        key: str | bytes | None = None,
    ) -> Member:
        """The same member with options for the calls made through it.

        Args:
            deadline: seconds the call may take; a peer of ours stops working on it, too.
            annotations: four ASCII characters to bytes.
            correlation_id: a UUID that the daemon passes on to its own calls.
            read_ahead: items on their way at once when the call returns an item stream, 1 to 1024. None: one from a
                stock peer; from a peer of ours more and more while they are read, up to 256 items or 1 MiB.
            key: 16 to 64 bytes, or text of that length, with at least 128 random bits. A daemon of ours runs this
                method of this object at most once under it, and gives everybody who calls again the same answer; so
                the call may be sent again when a connection is lost. Stock daemons know no keys and get none.

        Raises:
            PyroError: an option has an unusable value.
        """
        options = checked_options(deadline, annotations, correlation_id, read_ahead, key)
        return Member(self._proxy, self._name, options)


class Call:
    """A call that starts when it is awaited, or iterated when it returns an item stream. Use it once.

    It has what coroutines have, so ``nursery.start_soon(proxy.method, …)`` takes it for one.
    """

    # What most calls leave as it is stands in the class: it need not be set for each.
    flags = 0
    member: str | None = None
    """What must be in the object's metadata; None: the method."""
    link: Link | None = None
    """Where the request was queued."""
    end: int | Outgoing = 0
    """Count of bytes queued there at its end."""
    reply: Message | None = None
    certain: Outcome | None = None
    """What the peer said about it."""
    _begun: Coroutine[Any, Any, Any] | None = None

    def __init__(
        self,
        proxy: Proxy,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        options: CallOptions,
        flags: int = 0,
        member: str | None = None,
    ) -> None:
        self.proxy = proxy
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.options = options
        if flags:
            self.flags = flags
        if member is not None:
            self.member = member

    @enable_ki_protection
    def __await__(self) -> Generator[Any, Any, Any]:
        return self.proxy._pyroRun(self).__await__()

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an error, as a coroutine does."""
        return self._coroutine().throw(*error)

    def close(self) -> None:
        """Leave it, as one leaves a coroutine; nothing happens to one that was not begun by `send`."""
        if self._begun is not None:
            self._begun.close()

    def _coroutine(self) -> Coroutine[Any, Any, Any]:
        if self._begun is None:
            self._begun = self.proxy._pyroRun(self)
        return self._begun

    @property
    def outcome(self) -> Outcome:
        """What is certain while there is no answer."""
        if self.certain is not None:
            return self.certain
        return Outcome.NOT_SENT if self.link is None else self.link.outcome_at(self.end)

    def __aiter__(self) -> AsyncIterator[Any]:
        return _LateStream(self)

    @property
    def response_annotations(self) -> dict[str, Body]:
        """Annotations of the reply; empty before it came."""
        return {} if self.reply is None else user_annotations(self.reply)

    @property
    def correlation_id(self) -> uuid.UUID | None:
        """The correlation id of the reply."""
        data = None if self.reply is None else self.reply.correlation_id
        return None if data is None else uuid.UUID(bytes=data)


class _LateStream:
    """Iterates over the stream that a call will return; the call is made at the first item."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._stream: ItemStream | None = None

    def __aiter__(self) -> _LateStream:
        return self

    @enable_ki_protection
    async def __anext__(self) -> Any:
        if self._stream is None:
            result = await self._call
            if not isinstance(result, ItemStream):
                raise SerializeError(f"{self._call.method} returned no item stream", outcome=Outcome.EXECUTED)
            self._stream = result
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        """Close the remote iterator."""
        if self._stream is not None:
            await self._stream.aclose()
