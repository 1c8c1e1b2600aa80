"""Remote methods as values: what ``proxy.name`` is for programs without a loop."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..client.calls import checked_options
from ..wire.message import Body


class Method(partial[Any]):
    """``proxy.name``: call it, or set options for calls first."""

    __slots__ = ()

    def options(
        self,
        *,
        deadline: float | None = None,
        annotations: Mapping[str, Body] | None = None,
        correlation_id: uuid.UUID | bytes | None = None,
        read_ahead: int | None = None,
        key: str | bytes | None = None,
    ) -> Callable[..., Any]:
        """The same method with options for the calls made through it.

        Args:
            deadline: seconds the call may take; None: ``_pyroTimeout`` of the proxy.
            annotations: four ASCII characters to bytes, besides those of ``current_context``.
            correlation_id: a UUID that the daemon passes on to its own calls.
            read_ahead: items on their way at once when the call returns an item stream, as in the trio API.
            key: as in the trio API: a daemon of ours runs the method of this object at most once under it.

        Raises:
            PyroError: an option has an unusable value.
        """
        options = checked_options(deadline, annotations, correlation_id, read_ahead, key)
        return partial(self.func.__self__._pyroCallWith, options, *self.args)  # type: ignore[attr-defined]  # a method
