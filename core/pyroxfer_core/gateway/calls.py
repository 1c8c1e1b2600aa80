"""A request for an object becomes a call, and what comes back an answer."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio

from ..client.calls import CallOptions, correlation_bytes
from ..client.items import ItemStream
from ..client.member import Call
from ..errors import CommunicationError, Outcome, PyroError, SerializeError, TimeoutError
from ..objects.expose import is_private
from ..wire.message import Flags
from .access import NOT_EXPOSED, Access
from .answers import EVENTS, JSON_LINES, SSE_COMMENT, Answer, StreamAnswer, failed, may_have_moved
from .names import Found, Names
from .options import GatewayOptions
from .pool import GatewayProxy, Pool
from .request import Arguments, BadRequest, Request, correlation_id
from .values import error_json, json_bytes

METADATA: Final = "$meta"

log = logging.getLogger(__name__)

Render = Callable[[str, bytes], bytes]
"""Makes the text of a stream's part: its kind (item, error, end) and its JSON."""


class Calls:
    """Calls on behalf of HTTP."""

    def __init__(self, options: GatewayOptions, access: Access, names: Names, pool: Pool) -> None:
        self._options = options
        self._access = access
        self._names = names
        self._pool = pool

    def tracebacks(self, request: Request) -> bool:
        """Whether this caller may see them."""
        wanted = self._options.tracebacks
        return request.trusted if wanted is None else wanted

    async def answer(self, request: Request, name: str, member: str, arguments: Arguments) -> Answer | StreamAnswer:
        """Run one call of an exposed object, or read an attribute, or its metadata.

        Raises:
            BadRequest: 403 not exposed, 400 an unusable correlation id or arguments for an attribute.
        """
        request.correlation_id = correlation_id(request)
        if not self._access.is_exposed(name):
            raise BadRequest(403, NOT_EXPOSED)
        try:
            found = await self._names.lookup(name)
            try:
                answer = await self._ask(request, name, found, member, arguments)
            except CommunicationError as error:
                moved = await self._names.moved(name, found) if may_have_moved(error) else None
                if moved is None:
                    raise
                answer = await self._ask(request, name, moved, member, arguments)
        except (PyroError, AttributeError) as error:
            return failed(error, remote=False, tracebacks=self.tracebacks(request))
        if found.stale:
            answer.headers.append((b"x-pyro-lookup", b"stale"))
        return answer

    async def _ask(
        self, request: Request, name: str, found: Found, member: str, arguments: Arguments
    ) -> Answer | StreamAnswer:
        lease = self._pool.lease(found.uri)
        proxy, release = lease.proxy, True
        try:
            await self._check_member(proxy, name, member)
            if member == METADATA:
                return Answer(body=_metadata(proxy))
            call = self._call(request, proxy, member, arguments)
            try:
                result = await call
            except CommunicationError as error:
                if may_have_moved(error) and not _is_remote(call):
                    raise
                return self._failed(request, call, error)
            except Exception as error:
                return self._failed(request, call, error)
            if isinstance(result, ItemStream):
                release = False
                return self._stream(request, result, lease.release)
            if call.reply is None:
                return Answer()
            try:
                return Answer(body=json_bytes(result, tracebacks=self.tracebacks(request)))
            except SerializeError as error:
                error.outcome = Outcome.EXECUTED
                raise
        finally:
            if release:
                lease.release()

    async def _check_member(self, proxy: GatewayProxy, name: str, member: str) -> None:
        """Connect if need be; an object that does not say what it shows is left to answer for itself.

        Raises:
            AttributeError: the object shows no such member.
        """
        if is_private(member) or not (member.isidentifier() or member == METADATA):
            raise _no_member(name, member)
        if proxy._pyroMetadata is None or not _shows(proxy, member):
            await self._connect(proxy)
            if not _shows(proxy, member):
                raise _no_member(name, member)

    async def _connect(self, proxy: GatewayProxy) -> None:
        limit = self._options.timeout_s
        with trio.move_on_after(limit if limit is not None else math.inf):
            await proxy._pyroConnected()
            return
        raise TimeoutError(f"cannot connect to {proxy._pyroUri}: out of time", outcome=Outcome.NOT_SENT)

    def _call(self, request: Request, proxy: GatewayProxy, member: str, arguments: Arguments) -> Call:
        """The call, not yet made.

        Raises:
            BadRequest: an attribute takes no arguments.
        """
        options = CallOptions(self._options.timeout_s, {}, correlation_bytes(request.correlation_id))
        metadata = proxy._pyroMetadata
        if metadata is not None and member in metadata.attrs:
            if arguments:
                raise BadRequest(400, "reading an attribute takes no parameters")
            return Call(proxy, "__getattr__", (member,), None, options, member=member)
        wanted = {option.strip() for option in request.header(b"x-pyro-options").split(",")}
        flags = Flags.ONEWAY if "oneway" in wanted else 0
        return Call(proxy, member, tuple(arguments.positional), arguments.named, options, flags)

    def _failed(self, request: Request, call: Call, error: Exception) -> Answer:
        remote = _is_remote(call)
        if not remote and not isinstance(error, (PyroError, AttributeError)):
            log.error("a call of %s failed in the gateway", call.method, exc_info=error)
        return failed(error, remote=remote, tracebacks=self.tracebacks(request))

    def _stream(self, request: Request, stream: ItemStream, release: Callable[[], None]) -> StreamAnswer:
        tracebacks = self.tracebacks(request)
        if "text/event-stream" in request.header(b"accept"):
            return StreamAnswer(self._parts(stream, tracebacks, as_event), EVENTS, release=release, alive=SSE_COMMENT)
        return StreamAnswer(self._parts(stream, tracebacks, as_line), JSON_LINES, release=release)

    async def _parts(self, stream: ItemStream, tracebacks: bool, render: Render) -> AsyncIterator[bytes]:
        """Each item, then the error that ended the stream, or its end."""
        limit = self._options.timeout_s
        async with stream:
            while True:
                try:
                    with trio.fail_after(limit if limit is not None else math.inf):
                        item = await stream.__anext__()
                    part = render("item", json_bytes(item, tracebacks=tracebacks))
                except StopAsyncIteration:
                    yield render("end", b"null")
                    return
                except trio.TooSlowError:
                    late = TimeoutError(f"no item within {limit:g} s", outcome=Outcome.UNKNOWN)
                    yield render("error", error_json(late, tracebacks=False))
                    return
                except Exception as error:
                    yield render("error", error_json(error, tracebacks=tracebacks))
                    return
                yield part


def _is_remote(call: Call) -> bool:
    """Whether the object itself has raised the error."""
    return call.reply is not None and bool(call.reply.flags & Flags.EXCEPTION)


def _shows(proxy: GatewayProxy, member: str) -> bool:
    metadata = proxy._pyroMetadata
    return metadata is None or member == METADATA or member in metadata.methods or member in metadata.attrs


def _no_member(name: str, member: str) -> AttributeError:
    return AttributeError(f"remote object {name!r} has no exposed attribute or method {member!r}")


def _metadata(proxy: GatewayProxy) -> bytes:
    metadata = proxy._pyroMetadata
    if metadata is None:
        return json_bytes({"methods": [], "attributes": []})
    return json_bytes({"methods": sorted(metadata.methods), "attributes": sorted(metadata.attrs)})


def as_event(kind: str, data: bytes) -> bytes:
    """A server-sent event; items are plain messages."""
    name = b"" if kind == "item" else b"event: %s\n" % kind.encode()
    return name + b"data: " + data + b"\n\n"


def as_line(kind: str, data: bytes) -> bytes:
    """A line of JSON; an error is the last line, and the end is where the text ends."""
    return b"" if kind == "end" else data + b"\n"
