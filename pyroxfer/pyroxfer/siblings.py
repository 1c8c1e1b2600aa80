"""Several workers serve one folder: calls about a transfer go to the one at which its client opened it.

Each worker has a door of its own for the others, a unix socket in the folder that only they share.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from pyroxfer_core import Daemon, Proxy, Settings, Worker, current_call, expose
from pyroxfer_core import errors as core_errors

from .conversation import bounded
from .errors import LostError, PeerError
from .offer import Offer
from .tasks import open_flat_nursery

if TYPE_CHECKING:
    from .service import FileService

logger = logging.getLogger("pyroxfer.service")

OBJECT_ID: Final = "pyroxfer.sibling"
ASK_S: Final = 5.0
"""How long a worker may take to say whether it has a transfer."""
LET_GO_S: Final = 2.0
"""How long it may take to let go of one; whoever goes on with it then writes to a file of its own."""
REMEMBERED: Final = 1000
"""Transfers of others whose places are kept."""
METHODS: Final = frozenset(
    (
        *("keep", "commit", "put_block", "put_annotated"),
        *("compare", "end_download", "get_annotated"),
        *("status", "grant", "suspend", "abort"),
    )
)
"""What may be asked about a transfer."""


def _door(worker: Worker, number: int) -> str:
    return str(worker.folder / f"files{number}")


class Siblings:
    """The other workers, as one of them asks them."""

    def __init__(self, worker: Worker) -> None:
        settings = bounded(Settings())
        self._proxies = {
            number: Proxy(f"PYRO:{OBJECT_ID}@./u:{_door(worker, number)}", settings=settings)
            for number in worker.others
        }
        self._places: dict[str, int] = {}

    async def find(self, transfer_id: str) -> int | None:
        """The worker that has a transfer, or knows what ended it; None when nobody does."""
        known = self._places.get(transfer_id)
        for number in self._proxies if known is None else [known, *self._proxies]:
            if await self._ask_short(number, "has", transfer_id):
                self._places[transfer_id] = number
                while len(self._places) > REMEMBERED:
                    del self._places[next(iter(self._places))]
                return number
        return None

    async def ask(
        self, number: int, method: str, transfer_id: str, args: Sequence[object], more: Mapping[str, object]
    ) -> Mapping[str, Any]:
        """The answer of another worker to a call; annotations go with it in both directions.

        Raises:
            LostError: the worker has died.
        """
        call = self._proxies[number].call.options(annotations=dict(current_call.annotations))(
            method, transfer_id, list(args), dict(more)
        )
        with _lost():
            answer = await call
        current_call.response_annotations.update(call.response_annotations)
        if not isinstance(answer, Mapping):
            raise PeerError("a worker answered with something else than a file service does")
        return answer

    async def blocks(
        self, number: int, transfer_id: str, ranges: object, largest: object
    ) -> AsyncGenerator[object, None]:
        """The blocks of a download of another worker. Errors as ``ask``."""
        with _lost():
            stream = await self._proxies[number].blocks(transfer_id, ranges, largest)
            async with contextlib.aclosing(stream):
                async for item in stream:
                    yield item

    async def take_over(self, offer: Offer) -> bool:
        """End an upload that this offer goes on with, whoever has it; whether there was one."""
        found: list[bool] = []

        async def ask(number: int) -> None:
            found.append(await self._ask_short(number, "take_over", offer.to_dict(), LET_GO_S))

        async with open_flat_nursery() as nursery:
            for number in self._proxies:
                nursery.start_soon(ask, number)
        return any(found)

    async def _ask_short(self, number: int, method: str, argument: object, within_s: float = ASK_S) -> bool:
        """A worker that does not answer has nothing, or nothing that could be waited for."""
        try:
            return bool(await getattr(self._proxies[number], method).options(deadline=within_s)(argument))
        except core_errors.CommunicationError as error:
            logger.info("worker %d does not answer: %s", number, error)
            return False

    def close(self) -> None:
        """Hang up."""
        for proxy in self._proxies.values():
            proxy._pyroRelease()


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except core_errors.CommunicationError as error:
        raise LostError("the worker that had the transfer is gone; start it again") from error


@expose
class SiblingEnd:
    """What a worker does for the others."""

    def __init__(self, service: FileService) -> None:
        self._service = service

    async def has(self, transfer_id: str) -> bool:
        """Whether a transfer is here."""
        return self._service.transfers.has(transfer_id)

    async def call(
        self, method: str, transfer_id: str, args: Sequence[object], more: Mapping[str, object]
    ) -> Mapping[str, Any]:
        """The service's own answer."""
        if method not in METHODS:
            raise PeerError("that is not about a transfer")
        answer: Mapping[str, Any] = await getattr(self._service, method)(transfer_id, *args, **more)
        return answer

    async def blocks(self, transfer_id: str, ranges: object, largest: object) -> AsyncIterator[object]:
        """The service's own blocks."""
        blocks = cast("AsyncGenerator[object, None]", self._service.blocks(transfer_id, ranges, largest))
        async with contextlib.aclosing(blocks) as items:
            async for item in items:
                yield item

    async def take_over(self, offer: Mapping[str, Any]) -> bool:
        """End an upload that another worker goes on with; whether there was one."""
        return await self._service.uploads.give_way(Offer.from_dict(offer), self)


@contextlib.asynccontextmanager
async def open_door(worker: Worker, service: FileService) -> AsyncIterator[None]:
    """Answer the other workers while the block runs."""
    daemon = Daemon(unixsocket=_door(worker, worker.number), settings=bounded(Settings()))
    async with daemon:
        daemon.register(SiblingEnd(service), OBJECT_ID)
        yield
