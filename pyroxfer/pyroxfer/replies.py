"""How the service answers: every expected error becomes a record in an ordinary reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from pyroxfer_core import current_call
from pyroxfer_core import errors as core_errors

from .channels.base import MAX_BLOCK
from .errors import TransferError, from_os_error, to_record
from .offer import check_transfer_id

if TYPE_CHECKING:
    from .siblings import Siblings
    from .transfers import Transfers

P = ParamSpec("P")
Answer = TypeVar("Answer")
logger = logging.getLogger("pyroxfer.service")


def replies(
    method: Callable[P, Awaitable[Mapping[str, Any]]],
) -> Callable[P, Awaitable[Mapping[str, Any]]]:
    """Turn a ``TransferError`` of an exposed method into ``{"error": {"code", "text"}}``."""

    @functools.wraps(method)
    async def answering(*args: P.args, **kwargs: P.kwargs) -> Mapping[str, Any]:
        try:
            return await method(*args, **kwargs)
        except TransferError as error:
            return {"error": to_record(error)}
        except OSError as error:
            logger.warning("%s: %s", method.__name__, error)
            return {"error": to_record(from_os_error(error, "at the server"))}

    return answering


def large(method: Callable[P, Awaitable[Answer]]) -> Callable[P, Awaitable[Answer]]:
    """Begin an exposed method that answers with much when its caller has read most of what it got before."""

    @functools.wraps(method)
    async def answering(*args: P.args, **kwargs: P.kwargs) -> Answer:
        async with current_call.room_for(MAX_BLOCK):
            return await method(*args, **kwargs)

    return answering


class OneOfSeveral(Protocol):
    """A service that may be one of several workers: a transfer belongs to the one that its client opened it at."""

    transfers: Transfers
    siblings: Siblings | None


Service = TypeVar("Service", bound=OneOfSeveral)
AboutTransfer = Callable[Concatenate[Service, object, P], Awaitable[Mapping[str, Any]]]


async def elsewhere(service: OneOfSeveral, transfer_id: object) -> int | None:
    """The number of the worker to ask about a transfer; None when that is this one, or nobody has it.

    Raises:
        PeerError: that is no id.
    """
    if service.siblings is None or service.transfers.has(name := check_transfer_id(transfer_id)):
        return None
    return await service.siblings.find(name)


def about_transfer(method: AboutTransfer[Service, P]) -> AboutTransfer[Service, P]:
    """As `replies`, for a method whose first argument is the id of a transfer: another worker's is asked there."""

    @replies
    @functools.wraps(method)
    async def answering(self: Service, transfer_id: object, *args: P.args, **kwargs: P.kwargs) -> Mapping[str, Any]:
        number = await elsewhere(self, transfer_id)
        if number is None or self.siblings is None:
            return await method(self, transfer_id, *args, **kwargs)
        return await self.siblings.ask(number, method.__name__, str(transfer_id), args, kwargs)

    return cast("AboutTransfer[Service, P]", answering)  # mypy takes parameters with names for other ones


def plain_error(error: TransferError) -> core_errors.PyroError:
    """The same as an exception that any Pyro client can decode; its text begins with the error's name."""
    return core_errors.PyroError(f"{type(error).__name__}: {error}")
