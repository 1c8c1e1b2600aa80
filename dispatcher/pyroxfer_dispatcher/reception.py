"""Where clients are greeted: finds out what each of them wants, and keeps those who are there until they leave."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from pyroxfer_core import (
    Connection,
    Hello,
    Metadata,
    ServerSession,
    Settings,
    Verdict,
    accept_handshake,
    authenticate,
)
from pyroxfer_core.errors import DaemonError, PyroError
from pyroxfer_core.wire import STOCK, Feature, hops_of

from .admin import note
from .backends import Backend
from .config import Config
from .conversation import Conversation, Handle
from .departure import Arrival
from .dialects import BlobDialect, SealedDialect
from .forwarding import Forwarding
from .frames import Splitter
from .hub import Hub
from .links import Goodbye, LinkPool, OwnLinks, Resolver
from .multiplex import Multiplexed
from .pinned import Pinned
from .records import Records, Watcher
from .routes import Directory, Party, Service
from .transparent import (
    MAX_HOPS,
    Link,
    Opener,
    Opening,
    Refused,
    agreement,
    alone,
    is_looping,
    read_opening,
    with_own,
)

_NEEDED: Final = (Feature.CONCURRENT, Feature.CANCEL, Feature.HEARTBEAT, Feature.PIECES)
"""What a client has to know that makes several calls at once."""
_GRANTED: Final = sum(_NEEDED, Feature.GOAWAY | Feature.DEADLINE)


Greeted = Conversation | Multiplexed | Pinned


class Reception:
    """All clients of a dispatcher.

    Args:
        resolve: turns the name of a backend into its address.
        goodbye: called with a backend that says it goes away.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        hub: Hub,
        directory: Directory,
        records: Records,
        resolve: Resolver,
        goodbye: Goodbye,
    ) -> None:
        self.change(config)
        self._settings = settings
        self._hub = hub
        self._directory = directory
        self._records = records
        self._resolve = resolve
        self._goodbye = goodbye
        self._opener = Opener(settings, resolve)
        self._pools: dict[int, LinkPool] = {}
        """By the number of dispatchers that a client's connection has passed before this one."""
        self._epoch = secrets.token_bytes(16)
        self.nursery: trio.Nursery
        """For opening connections to backends; it must outlive the clients."""
        self.arrivals: dict[Connection, Arrival] = {}
        """Clients that are being greeted."""
        self.conversations: set[Greeted] = set()
        """Clients that have been greeted."""
        self._is_closing = False
        self._all_gone = trio.Event()

    def change(self, config: Config) -> None:
        """Greet by another configuration from now on."""
        self._config = config
        self._metadata = Metadata(frozenset(config.all_methods), frozenset(config.oneway), frozenset())

    @property
    def guests(self) -> tuple[Arrival | Greeted, ...]:
        """Everybody who is there."""
        return (*self.arrivals.values(), *self.conversations)

    def look(self, now: float) -> None:
        """Called now and then: give up what stands still in the middle of a message, and connections to spare."""
        for pool in self._pools.values():
            pool.look(now)
        for conversation in tuple(self.conversations):
            conversation.look(now)

    def close_idle(self, backend: Backend) -> None:
        """Close the connections to a backend that no call uses."""
        for pool in self._pools.values():
            pool.close_idle(backend)

    def close(self) -> None:
        """Greet nobody any more; who is being greeted is cut after that."""
        self._is_closing = True

    async def end(self, grace_s: float) -> None:
        """After `close`: cut everybody between calls; calls under way get so many seconds."""
        for conversation in tuple(self.conversations):
            conversation.stop()
        with trio.move_on_after(grace_s):
            if self.conversations:
                await self._all_gone.wait()
        self.abort()

    def abort(self) -> None:
        """Cut calls under way."""
        for conversation in tuple(self.conversations):
            conversation.abort()

    def close_links(self) -> None:
        """Close every connection to a backend that no call uses."""
        for pool in self._pools.values():
            pool.close()

    # -- one client

    async def greet(self, client: Connection) -> None:
        """One client, from its first byte to its last."""
        with trio.CancelScope() as scope:
            self.arrivals[client] = Arrival(scope)
            try:
                await self._receive(client)
            finally:
                self.arrivals.pop(client, None)

    async def _receive(self, client: Connection) -> None:
        session, hello = ServerSession(self._epoch, offer=_GRANTED), None
        opening = await read_opening(client, self._settings)
        if opening is not None and self._settings.tokens is not None:
            client.decoder.feed(opening.message.data + opening.rest)
            hello = await authenticate(client, session, self._settings)
            if hello is None:
                return
            opening = replace(alone(opening, self._settings.max_annotations), rest=client.decoder.take_rest())
        if opening is not None and is_looping(opening):
            await self._refuse_loop(client, opening)
            return
        if opening is not None and not self._is_closing:
            service = self._directory.service_of(opening.object_id)
            if service is not None:
                await self._lead(client, session, opening, service, is_known=hello is not None)
                return
            client.decoder.feed(opening.rest if hello is not None else opening.message.data + opening.rest)
        hops = 0 if opening is None else hops_of(opening.message.data, opening.codec.version)
        await self._greet_here(client, session, hello, hops)

    async def _refuse_loop(self, client: Connection, opening: Opening) -> None:
        text = f"NotSent: passed {MAX_HOPS} dispatchers already; they lead to each other"
        note(logging.WARNING, "client_refused", client=client.peer, reason=text)
        with contextlib.suppress(PyroError):
            await client.finish(self._opener.refuse(opening, text))

    async def _lead(
        self, client: Connection, session: ServerSession, opening: Opening, service: Service, *, is_known: bool
    ) -> None:
        """Transparent mode: the client talks to a backend from the first message on.

        Args:
            is_known: the session has heard CONNECT already.
        """
        opener = self._opener
        if service.stateless:
            opening = alone(opening, self._settings.max_annotations)
        try:
            offer = Feature.GOAWAY if service.stateless else 0
            link = await opener.open_any(service, opening, Party(client.peer).host, offer=offer)
        except Refused as refused:
            service.tally["refused"] += 1
            note(logging.WARNING, "client_refused", client=client.peer, service=service.name, reason=refused)
            with contextlib.suppress(PyroError):
                await client.finish(refused.answer)
            return
        try:
            own = service.stateless and not opening.signed and opening.codec.version == 502
            answer = with_own(session, opening, link.answer, is_known=is_known) if own else link.answer
            with trio.fail_after(self._settings.connect_timeout_s):
                await client.send_encoded(answer)
            client.settled()
            if service.stateless:
                await self._spread(client, session if own else None, opening, service, link)
            else:
                await self._pin(client, opening, service, link)
        finally:
            link.connection.close()

    async def _spread(
        self, client: Connection, session: ServerSession | None, opening: Opening, service: Service, link: Link
    ) -> None:
        """Each call may go to another backend."""
        limit = self._settings.max_message_bytes
        links = OwnLinks(self._opener, opening, self._hub, limit, self._goodbye)
        conversation = Conversation(
            self._hub,
            self.nursery,
            links,
            SealedDialect(
                service,
                opening.codec.version,
                link.backend,
                Party(client.peer).host,
                signed=opening.signed,
                session=session,
            ),
            opening.codec,
            Splitter(opening.codec, max_message=limit),
            Party(client.peer),
            client.peer,
            stall_s=self._config.stall_timeout,
            watch=self._watch_for(client.peer),
        )
        links.put(links.adopt(link))
        try:
            with self._held(client, conversation):
                await conversation.run((client.sock, opening.rest))
        finally:
            links.close()

    async def _pin(self, client: Connection, opening: Opening, service: Service, link: Link) -> None:
        """Everything goes to the backend that answered CONNECT."""
        agreed = STOCK if opening.signed else agreement(opening, link.answer, self._settings.max_annotations)
        pinned = Pinned(
            self._hub,
            service,
            link.backend,
            opening.codec,
            Party(client.peer).key_for(service),
            signed=opening.signed,
            agreed=agreed,
            goodbye=self._goodbye,
            first_seq=opening.message.seq,
            records=self._records if self._is_recording else None,
            peer=client.peer,
            stall_s=self._config.stall_timeout,
            limit=self._settings.max_message_bytes,
        )
        with self._held(client, pinned):
            await pinned.run((client.sock, opening.rest), (link.connection.sock, link.rest))

    @contextlib.contextmanager
    def _held(self, client: Connection, conversation: Greeted) -> Iterator[None]:
        """Known to whoever stops or looks; a dispatcher that stops waits for the end of this block."""
        self.conversations.add(conversation)
        del self.arrivals[client]
        try:
            if self._is_closing:
                conversation.stop()
            yield
        finally:
            self.conversations.discard(conversation)
            if self._is_closing and not self.conversations:
                self._all_gone.set()

    async def _greet_here(self, client: Connection, session: ServerSession, heard: Hello | None, hops: int) -> None:
        """A client of the dispatcher's own object: its calls are serial, unless it agrees to more."""

        async def judge(hello: Hello) -> Verdict:
            if not all(map(session.may_grant, _NEEDED)):
                session.narrow(Feature.GOAWAY | Feature.DEADLINE)
            return await self._judge(hello)

        hello = await accept_handshake(client, session, self._settings, None, judge, heard=heard)
        if hello is None or self._is_closing:
            return
        client.decoder.max_message = self._settings.max_message_bytes
        client.decoder.gives_views = True
        converse = partial(
            Conversation,
            self._hub,
            self.nursery,
            self.pool_after(hops),
            BlobDialect(self._directory, session),
            client.codec,
            party=Party(client.peer),
            peer=client.peer,
            stall_s=self._config.stall_timeout,
        )
        guest: Conversation | Multiplexed
        if session.may_grant(Feature.CONCURRENT):
            guest = Multiplexed(
                self._hub,
                self._directory,
                session,
                client.codec,
                client.decoder,
                lambda lane, on_idle: converse(
                    reader=lane, watch=self._watch_for(client.peer), on_idle=on_idle, takes_back=True
                ),
                client.peer,
                stall_s=self._config.stall_timeout,
                max_calls=self._settings.max_calls_in_flight,
            )
        else:
            guest = converse(reader=client.decoder, watch=self._watch_for(client.peer))
        with self._held(client, guest):
            await guest.run((client.sock, b""))

    def pool_after(self, hops: int) -> LinkPool:
        """The links for calls that have passed so many dispatchers before: the next one counts them."""
        pool = self._pools.get(hops)
        if pool is None:
            pool = self._pools[hops] = LinkPool(self._settings, self._resolve, self._hub, self._goodbye, hops + 1)
        return pool

    @property
    def _is_recording(self) -> bool:
        """Whether a file or somebody at the control socket can want records."""
        return self._config.access_log is not None or self._config.control is not None

    def _watch_for(self, peer: str) -> Callable[[Forwarding], Handle] | None:
        """Who writes records of this client's calls, if anybody may."""
        if not self._is_recording:
            return None
        return lambda forwarding: Watcher(forwarding, peer, self._records).handle

    async def _judge(self, hello: Hello) -> Verdict:
        """A client may ask for our object, or (Pyro4 without metadata) not say what it wants."""
        if hello.object_id not in (None, self._config.object):
            raise DaemonError("unknown object")
        return Verdict("hello", self._metadata)
