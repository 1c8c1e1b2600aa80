"""How the service answers: every expected error becomes a record in an ordinary reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec

from pyroxfer_core import errors as core_errors

from .errors import TransferError, from_os_error, to_record

P = ParamSpec("P")
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


def plain_error(error: TransferError) -> core_errors.PyroError:
    """The same as an exception that any Pyro client can decode; its text begins with the error's name."""
    return core_errors.PyroError(f"{type(error).__name__}: {error}")
