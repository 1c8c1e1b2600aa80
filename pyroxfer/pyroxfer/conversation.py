"""One client's conversation with one file service: calls whose replies are opened, and the errors in them raised."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, Final, cast

import trio

from pyroxfer_core import Proxy, Settings, Uri
from pyroxfer_core import errors as core_errors

from .digest import choose_algorithm
from .errors import MAX_TEXT, PeerError, from_record
from .offer import checked_grant
from .packing import ZSTD

PROTOCOL: Final = 1
"""Version of the calls between the two ends of this package."""
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Largest message that either end of the file service reads: a batch of small files and room to spare."""
GIVE_UP_S: Final = 2.0
"""How long a client that failed goes on telling the server; the server would find out by itself."""


def bounded(settings: Settings) -> Settings:
    """The settings with the file service's own limit of a message, unless theirs is lower."""
    return settings.with_changes(max_message_bytes=min(settings.max_message_bytes, MAX_MESSAGE))


def opened(reply: object) -> Mapping[str, Any]:
    """The dictionary of a reply.

    Raises:
        TransferError: the one that the reply carries.
        PeerError: it is no such reply.
    """
    if not isinstance(reply, Mapping):
        raise PeerError("the server answered with something else than a file service does")
    if "error" in reply:
        raise from_record(reply["error"])
    return reply


@contextlib.contextmanager
def _only_our_errors() -> Iterator[None]:
    """Turn an exception that the peer's method ended with, of whatever class it is, into one of ours."""
    try:
        yield
    except core_errors.PyroError:
        raise
    except Exception as error:
        raise _foreign(error) from error


def _foreign(error: Exception) -> PeerError:
    text = f"the server failed with {type(error).__name__}: {error}"
    return PeerError(f"{text[:MAX_TEXT]}; is that a file server of the same version?")


class Conversation:
    """Calls on a file service. Many tasks may share one.

    Raises (every call):
        TransferError: what the service answered.
        CommunicationError: the network, with its outcome.
    """

    def __init__(
        self, proxy: Proxy, settings: Settings, algorithm: str, round_trip_s: float = 0.0, packs: bool = False
    ) -> None:
        self._proxy = proxy
        self.settings = settings
        self.algorithm = algorithm
        """The digest that both ends have."""
        self.round_trip_s = round_trip_s
        """How long a call took that did nothing."""
        self.packs = packs
        """The server can pack and unpack blocks."""

    @property
    def where(self) -> Uri:
        """The place of the server, for side streams."""
        return self._proxy._pyroUri

    async def ask(self, method: str, *args: object) -> Mapping[str, Any]:
        """Call a method of the service; its reply."""
        with _only_our_errors():
            return opened(await getattr(self._proxy, method)(*args))

    async def ask_with(
        self, method: str, *args: object, annotations: Mapping[str, bytes] | None = None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """As ``ask``, with annotations both ways; the reply and its annotations."""
        call = getattr(self._proxy, method).options(annotations=dict(annotations or {}))(*args)
        with _only_our_errors():
            reply = opened(await call)
        return reply, call.response_annotations

    async def items(self, method: str, *args: object, read_ahead: int = 1) -> AsyncGenerator[Any, None]:
        """Call a method that answers with a stream of items; close what comes back."""
        with _only_our_errors():
            stream = await getattr(self._proxy, method).options(read_ahead=read_ahead)(*args)
        if not hasattr(stream, "__aiter__"):
            opened(stream)
            raise PeerError("the server answered with something else than a stream")
        return self._checked(cast("AsyncGenerator[Any, None]", stream))

    async def _checked(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(stream):
            with _only_our_errors():
                async for item in stream:
                    yield item

    async def grant(self, transfer_id: str) -> str:
        """A fresh grant for one side stream of a transfer."""
        return checked_grant((await self.ask("grant", transfer_id)).get("grant"))

    async def give_up(self, transfer_id: str, *, keep: bool) -> int | None:
        """Tell the server that a transfer is over; with ``keep`` it keeps what is worth it of an upload. So many
        bytes are kept, as far as it answered. Never fails; takes two seconds at most, even when cancelled."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GIVE_UP_S):
            try:
                kept = (await self.ask("suspend" if keep else "abort", transfer_id)).get("kept", 0)
                return kept if isinstance(kept, int) else 0
            except core_errors.PyroError:
                pass  # the server lets go of the transfer when it sees the connection gone or the lease over
        return None


@contextlib.asynccontextmanager
async def open_conversation(uri: Uri, settings: Settings) -> AsyncIterator[Conversation]:
    """Connect, and make sure that a file service of the right version is there.

    Raises:
        PeerError: something else answers, or another version.
        NamingError, CommunicationError: nobody can be reached there.
    """
    settings = bounded(settings)
    async with Proxy(uri, settings=settings) as proxy:
        await _bind(proxy, uri)
        asked = trio.current_time()
        hello = await _hello(proxy, uri)
        took = trio.current_time() - asked
        packings = hello.get("packings")
        packs = isinstance(packings, (list, tuple)) and ZSTD in packings
        yield Conversation(proxy, settings, choose_algorithm(hello.get("algorithms")), took, packs)


@contextlib.contextmanager
def _file_service_wanted(uri: Uri) -> Iterator[None]:
    """Say of whatever else answers there that it is no file service."""
    try:
        yield
    except AttributeError:
        raise PeerError(f"{uri} is not a file service; start one with `pyroxfer serve`") from None
    except core_errors.CommunicationError as error:
        if type(error) is core_errors.CommunicationError:
            raise PeerError(f"{uri} refused the conversation: {error}") from error
        raise
    except core_errors.DaemonError as error:
        raise PeerError(f"{uri} is not a file service: {error}") from error
    except core_errors.PyroError:
        raise
    except Exception as error:
        raise _foreign(error) from error


async def _bind(proxy: Proxy, uri: Uri) -> None:
    with _file_service_wanted(uri):
        await proxy._pyroBind()


async def _hello(proxy: Proxy, uri: Uri) -> Mapping[str, Any]:
    with _file_service_wanted(uri):
        hello = opened(await proxy.hello())
    if hello.get("protocol") != PROTOCOL:
        raise PeerError(f"{uri} speaks another version of the file service; use the same version at both ends")
    return hello
