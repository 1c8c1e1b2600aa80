"""Clients that know nothing of the dispatcher: led to a backend by the object that their first message asks for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

import trio

from pyroxfer_core import Connection, ServerSession, Settings, Uri, open_connection, refusal, wanted_object
from pyroxfer_core.errors import (
    ConnectionClosedError,
    MessageTooLargeError,
    ProtocolError,
    PyroError,
    SerializeError,
    TimeoutError,
)
from pyroxfer_core.wire import (
    AUTH_KEY,
    FEATURES_KEY,
    HOP_KEYS,
    STOCK,
    Body,
    Codec,
    Feature,
    Grant,
    Message,
    MessageType,
    Prover,
    hops_of,
    new_offer,
    overheard,
    with_annotation,
    with_hops,
)

from .admin import note
from .backends import Backend
from .frames import Event, Sealed, Splitter, rewritten, unseal
from .routes import Service

MAX_HOPS: Final = 4
"""Forwarders that a CONNECT may pass: more is a loop."""
MAX_WELCOME_BYTES: Final = 1024 * 1024
"""Most bytes of a backend's answer to CONNECT, which names all members of the object."""
RECEIVE_BYTES: Final = 64 * 1024

Resolver = Callable[[Uri], Awaitable[Uri]]


@dataclass(frozen=True, slots=True)
class Opening:
    """The first message of a client, whole."""

    message: Sealed
    codec: Codec
    rest: bytes
    """What the client sent behind it."""
    object_id: str | None
    """None: it does not say, or in a serializer that builds more than plain values."""
    signed: bool
    offer: bytes | None = None
    """What the client offers to agree on."""


@dataclass(frozen=True, slots=True)
class Link:
    """A backend that has answered this client's CONNECT."""

    backend: Backend
    connection: Connection
    answer: bytes
    rest: bytes
    grant: Grant = STOCK
    """What the dispatcher itself has agreed on with the backend, once the first call confirms it."""


class Refused(PyroError):
    """The client is not let in; ``answer`` is what to tell it, encoded, and ``annotations`` those in it."""

    def __init__(self, text: str, answer: bytes, annotations: dict[str, Body] | None = None) -> None:
        super().__init__(text)
        self.answer = answer
        self.annotations = annotations or {}


async def read_opening(client: Connection, settings: Settings) -> Opening | None:
    """Read CONNECT, without answering.

    Returns:
        None when this is no CONNECT that can be read. What came is left to the connection's own decoder, which knows
        what to answer.
    """
    splitter = Splitter(max_message=settings.max_handshake_bytes, collect=settings.max_handshake_bytes)
    data = client.decoder.take_rest()
    opening = None
    with contextlib.suppress(ProtocolError, SerializeError, ConnectionClosedError):
        with trio.move_on_at(client.greet_by):
            event = splitter.take(data)
            while event is None:
                more = await _receive(client)
                data += more
                event = splitter.take(more)
            opening = _opening(event, splitter, settings)
    if opening is None:
        client.decoder.feed(data)
    return opening


def _opening(event: Event, splitter: Splitter, settings: Settings) -> Opening | None:
    if type(event) is not Sealed or event.type != MessageType.CONNECT:
        return None
    body, annotations, signed = unseal(event, splitter.codec, settings.max_annotations)
    object_id = None
    if event.serializer in settings.accepted_serializers:
        object_id = wanted_object(event.serializer, body, event.flags, settings.max_handshake_bytes)
    return Opening(event, splitter.codec, splitter.take_rest(), object_id, signed, annotations.get(FEATURES_KEY))


def alone(opening: Opening, limit: int) -> Opening:
    """The same opening without what its client offers to agree on: no single backend could keep to it."""
    annotations = _annotations_of(opening.message, opening.codec, limit)
    if opening.signed or HOP_KEYS.isdisjoint(annotations):
        return opening
    return _with(opening, {key: value for key, value in annotations.items() if key not in HOP_KEYS}, limit)


def _annotations_of(message: Sealed, codec: Codec, limit: int) -> dict[str, Body]:
    return dict(codec.parse_annotations(message.data[codec.header_size : message.body_at], limit)[0])


def _with(opening: Opening, annotations: dict[str, Body], limit: int) -> Opening:
    """The same opening with these annotations instead of its own."""
    message = opening.message
    data = rewritten(message, opening.codec, annotations, limit)
    body_at = len(data) - (len(message.data) - message.body_at)
    return replace(opening, message=replace(message, data=data, body_at=body_at))


def with_own(session: ServerSession, opening: Opening, answer: bytes, *, is_known: bool) -> bytes:
    """A backend's answer to CONNECT together with what the dispatcher itself grants the client.

    Args:
        session: of the dispatcher and the client.
        is_known: it has heard the client's CONNECT.
    """
    request = opening.message
    if not is_known:
        offer: dict[str, Body] = {} if opening.offer is None else {FEATURES_KEY: opening.offer}
        session.receive(Message(MessageType.CONNECT, request.seq, request.serializer, 0, b"", offer))
    session.narrow(Feature.GOAWAY)
    grant = session.accept(request, b"", {}, None).annotations.get(FEATURES_KEY)
    return answer if grant is None else with_annotation(answer, opening.codec.version, FEATURES_KEY, bytes(grant))


async def _receive(connection: Connection) -> bytes:
    """The next bytes of a connection that nobody decodes. ConnectionClosedError at its end."""
    while True:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            await connection.wait_readable()
            continue
        except OSError as error:
            raise ConnectionClosedError(f"connection to {connection.peer} lost: {error.strerror}") from error
        if not data:
            raise ConnectionClosedError(f"{connection.peer} closed the connection during the handshake")
        return data


class Opener:
    """Opens connections to backends in the name of a client, by its own CONNECT.

    Args:
        resolve: turns PYRONAME into PYRO.
    """

    def __init__(self, settings: Settings, resolve: Resolver) -> None:
        self._settings = settings
        self._resolve = resolve

    async def open_any(self, service: Service, opening: Opening, key: str, *, offer: int = 0) -> Link:
        """A connection to a backend chosen by the service's rule.

        Args:
            key: what the client is told apart by.
            offer: see `open`.

        Raises:
            Refused: there is none, or every one of them said no.
        """
        passed_over: dict[Backend, str] = {}
        answer: bytes | None = None
        while (backend := service.group.pick_home(monotonic(), passed_over, key)) is not None:
            try:
                return await self.open(service, backend, opening, offer=offer)
            except Refused as refused:
                service.group.refused(backend, monotonic())
                answer = refused.answer
                passed_over[backend] = str(refused)
            except PyroError as error:
                passed_over[backend] = str(error)
            finally:
                service.group.tried(backend)
        state = service.group.describe(monotonic(), passed_over)
        text = f"NotSent: no live backend of service {service.name!r}: {state}"
        raise Refused(text, answer or self.refuse(opening, text))

    async def open(self, service: Service, backend: Backend, opening: Opening, *, offer: int = 0) -> Link:
        """A connection to this backend.

        Args:
            offer: feature bits to offer in the dispatcher's own name, where the client offers none.

        Raises:
            Refused: it said no.
            PyroError: it cannot be reached, or talks another protocol.
        """
        version = opening.codec.version
        if version in backend.refused_versions:
            raise ProtocolError(f"does not speak protocol {version}")
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                link = await self._greet(backend, opening, offer)
        except (Refused, ProtocolError):
            raise
        except (PyroError, trio.TooSlowError) as error:
            reason = str(error) or f"no answer within {self._settings.connect_timeout_s:g} s"
            if service.group.failed(backend, monotonic(), reason):
                note(logging.WARNING, "backend_down", backend=backend.name, uri=backend.uri, reason=reason)
            raise TimeoutError(reason) from error
        if service.group.opened(backend, monotonic()):
            note(logging.INFO, "backend_up", backend=backend.name, uri=backend.uri)
        return link

    def refuse(self, opening: Opening, text: str) -> bytes:
        """CONNECTFAIL for a client."""
        message = opening.message
        return refusal(opening.codec.version, text, message.serializer, message.seq)

    async def _greet(self, backend: Backend, opening: Opening, offer: int) -> Link:
        version = opening.codec.version
        offered = new_offer(offer) if offer and version == 502 and not opening.signed else None
        uri = await self._resolve(backend.uri)
        connection = await open_connection(uri, version=version, settings=self._settings)
        prover = None if self._settings.token is None or opening.signed else Prover(self._settings.token)
        try:
            try:
                answer, rest = await self._ask(connection, backend, opening, prover, offered)
            except Refused as refused:
                if prover is None or not prover.is_challenge(refused.annotations.get(AUTH_KEY)):
                    raise
                answer, rest = await self._ask(connection, backend, opening, prover, offered)
            if offered is None:
                return Link(backend, connection, answer.data, rest)
            return Link(backend, connection, *self._own(opening, answer, rest, offered))
        except BaseException:
            connection.close()
            raise

    def _own(self, opening: Opening, answer: Sealed, rest: bytes, offered: bytes) -> tuple[bytes, bytes, Grant]:
        """The answer without what concerns the dispatcher alone, and what that is."""
        limit = self._settings.max_annotations
        annotations = _annotations_of(answer, opening.codec, limit)
        granted = annotations.pop(FEATURES_KEY, None)
        if granted is None:
            return answer.data, rest, STOCK
        return rewritten(answer, opening.codec, annotations, limit), rest, overheard(offered, granted)

    async def _ask(
        self,
        connection: Connection,
        backend: Backend,
        opening: Opening,
        prover: Prover | None,
        offered: bytes | None,
    ) -> tuple[Sealed, bytes]:
        """Send the client's CONNECT, with what the dispatcher itself can prove and offers, and read the answer."""
        limit, version = self._settings.max_annotations, opening.codec.version
        own: dict[str, Body] = {} if prover is None else {AUTH_KEY: prover.annotation()}
        if offered is not None:
            own[FEATURES_KEY] = offered
        if own:
            opening = _with(opening, {**_annotations_of(opening.message, opening.codec, limit), **own}, limit)
        hello = opening.message.data
        await connection.send_encoded(with_hops(hello, version, hops_of(hello, version) + 1))
        return await self._read_welcome(connection, backend, opening)

    async def _read_welcome(self, connection: Connection, backend: Backend, opening: Opening) -> tuple[Sealed, bytes]:
        splitter = Splitter(opening.codec, max_message=MAX_WELCOME_BYTES, collect=MAX_WELCOME_BYTES)
        answer: Event | None = None
        try:
            while answer is None:
                answer = splitter.take(await _receive(connection))
        except MessageTooLargeError:
            raise
        except ProtocolError:
            backend.refused_versions.add(opening.codec.version)
            raise
        assert isinstance(answer, Sealed), "everything up to the limit is collected"
        if answer.type == MessageType.CONNECTFAIL:
            told = _annotations_of(answer, opening.codec, self._settings.max_annotations)
            raise Refused("refused the client's handshake", answer.data, told)
        if answer.type != MessageType.CONNECTOK:
            raise ProtocolError(f"answered CONNECT with a message of type {answer.type}")
        return answer, splitter.take_rest()


def agreement(opening: Opening, answer: bytes, limit: int) -> Grant:
    """What client and backend agreed on, of which the dispatcher only hears.

    Args:
        answer: the backend's CONNECTOK.

    Raises:
        ProtocolError: its annotations are malformed.
    """
    message = Splitter(opening.codec, max_message=len(answer), collect=len(answer)).take(answer)
    assert type(message) is Sealed, "it was taken apart before"
    _, annotations, _ = unseal(message, opening.codec, limit)
    return overheard(opening.offer, annotations.get(FEATURES_KEY))


def is_looping(opening: Opening) -> bool:
    """Whether a client's CONNECT has passed more forwarders than any sane chain has."""
    return hops_of(opening.message.data, opening.codec.version) >= MAX_HOPS
