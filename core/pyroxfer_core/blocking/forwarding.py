"""The dunder methods that proxies forward, as in Pyro5: length, items, iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..objects.expose import Metadata


class Forwarding:
    """What makes a proxy of a container look like one."""

    _pyroUri: Any

    def _pyroMetadata(self) -> Metadata | None:
        raise NotImplementedError

    def _pyroInvoke(
        self,
        methodname: str,
        vargs: Any,
        kwargs: dict[str, Any] | None,
        flags: int = 0,
        objectId: str | None = None,
    ) -> Any:
        raise NotImplementedError

    def _pyroForward(self, name: str, *args: Any) -> Any:
        """Call a remote dunder method.

        Raises:
            TypeError: the remote object does not expose it.
        """
        meta = self._pyroMetadata()
        if meta is not None and name not in meta.methods:
            raise TypeError(f"remote object '{self._pyroUri}' does not expose {name}")
        return self._pyroInvoke(name, args, {})

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return int(self._pyroForward("__len__"))

    def __getitem__(self, index: Any) -> Any:
        return self._pyroForward("__getitem__", index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._pyroForward("__setitem__", index, value)

    def __delitem__(self, index: Any) -> None:
        self._pyroForward("__delitem__", index)

    def __iter__(self) -> Iterator[Any]:
        """The remote ``__iter__``, else ``__getitem__`` with 0, 1, 2… as Python itself does."""
        meta = self._pyroMetadata()
        if meta is None or "__iter__" in meta.methods:
            yield from self._pyroForward("__iter__")
            return
        index = 0
        while True:
            try:
                item = self._pyroForward("__getitem__", index)
            except (IndexError, StopIteration):
                return
            yield item
            index += 1
