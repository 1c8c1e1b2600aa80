"""Calls in the reverse direction, seen by the client: its own daemon answers on a connection that the client made."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from ..errors import DaemonError, PyroError, RefusedError
from ..objects.table import DAEMON_ID
from ..serializers.base import SerializerContext
from ..serializers.vocabulary import ProxyState
from ..wire.features import Grant
from ..wire.message import Message, MessageType
from ..wire.session import ClientSession, ServerSession
from .crew import Crew
from .execute import Job, failure, is_slow_to_read
from .peer import Peer
from .turn import read_slowly

if TYPE_CHECKING:
    from .daemon import Daemon

_OF_STREAMS: Final = ("get_next_stream_item", "close_stream")
log = logging.getLogger(__name__)


class Caller(Protocol):
    """A client's connection, as it is needed to answer on it."""

    @property
    def connection(self) -> Any:
        """A `Connection`, or what sends like one."""

    @property
    def grant(self) -> Grant:
        """What was agreed with the other end."""

    @property
    def session(self) -> ClientSession[Any]:
        """Of the calls of this side."""

    async def read_for_others(self) -> None:
        """Hand over what comes, until the connection ends."""


class Callee(Peer):
    """Answers what the daemon at the other end of a client's connection calls.

    Requests do not come by reading: whoever reads for the client hands them over. While this serves, it reads itself
    when nobody waits for an answer.
    """

    def __init__(self, daemon: Daemon, link: Caller) -> None:
        super().__init__(daemon, link.connection, None)
        self.session = ServerSession(daemon.epoch)
        self.session.assume_reverse(link.grant.reversed())
        self._link = link
        self._nursery: trio.Nursery | None = None
        self._offered: set[str] = set()
        self.over = False
        """It refuses everything, because its daemon is closed."""

    async def serve(self) -> None:
        """Answer until the connection, or the daemon, ends."""
        daemon = self.daemon
        try:
            async with trio.open_nursery() as nursery:
                self._nursery, self.crew = nursery, Crew(nursery)
                await self._link.read_for_others()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery, self.over = None, True
            daemon.callees.discard(self)
            daemon.call_ended()
            self.go_away()
            self.resources.close_all()
            await self.streams.connection_lost(self)

    def offer(self, object_id: str) -> None:
        """An object was handed out over the connection, so it may be called on it; no other may."""
        self._offered.add(object_id)

    def context(self) -> SerializerContext:
        """As of any peer; objects in answers are handed out, too."""
        context = super().context()
        find = context.autoproxy

        def hand_out(value: Any) -> ProxyState | None:
            state = None if find is None else find(value)
            if state is not None:
                self.offer(value._pyroId)
            return state

        return replace(context, autoproxy=hand_out)

    def check(self, job: Job) -> None:
        """Only what was handed out may be called."""
        if not self._may_be_called(job):
            raise DaemonError("unknown object")

    def _may_be_called(self, job: Job) -> bool:
        object_id = job.entry.object_id
        return object_id in self._offered or (object_id == DAEMON_ID and job.method in _OF_STREAMS)

    def take(self, message: Message) -> None:
        """A request, or the wish to end one.

        Raises:
            ProtocolError: it must not come now.
            ConnectionClosedError: the answer cannot leave.
        """
        if message.type == MessageType.CANCEL:
            self.calls.cancel(message.seq)
        elif self._nursery is None:
            self._refuse(message)
        elif is_slow_to_read(message):
            self._nursery.start_soon(self._take_slowly, message)
        else:
            job = self.calls.begin(message, None)
            if job is not None:
                self.crew.start(job)
        self.connection.flush_nowait()

    def _refuse(self, message: Message) -> None:
        error = RefusedError("draining: the daemon is closed")
        answer = failure(self, message, self.serializer(message.serializer), error, dispatched=False)
        if answer is not None:
            self.calls.queue(answer)

    async def _take_slowly(self, message: Message) -> None:
        job = self.calls.begin(message, await read_slowly(self, message))
        if job is not None:
            self.crew.start(job)

    def go_away(self) -> None:
        """Take back that anything is served here."""
        if self.connection.broken:
            return
        try:
            self.connection.queue(self._link.session.serves(""))
            self.connection.flush_nowait()
        except PyroError as error:
            log.debug("%s cannot be told that nothing is served any more: %s", self.connection.peer, error)
