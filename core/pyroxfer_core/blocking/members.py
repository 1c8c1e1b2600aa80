"""The members of a remote object as attributes of its proxy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from ..futures import FutureResult
from ..objects.expose import Metadata
from .forwarding import Forwarding
from .method import Method

Kind = TypeVar("Kind", bound="type[Members]")

NO_MEMBERS: Final = Metadata(frozenset(), frozenset(), frozenset())
keep: Final = object.__setattr__
"""Sets an attribute of a proxy's own without asking whether it is one of the remote object."""
MOST_KINDS: Final = 256
"""Sets of methods whose classes are kept."""
_ORIGIN: Final = "_pyroOrigin"
_AS_IN_ORIGIN: Final = ("__module__", "__doc__", _ORIGIN)


class Members(Forwarding):
    """What makes methods and attributes of the remote object those of a proxy."""

    _pyroMeta: Metadata | None = None
    """Known from the first connection on."""
    _pyroAsynchronous = False

    def __getattr__(self, name: str) -> Any:
        meta = self._pyroMeta
        if meta is None or name not in meta.methods:
            if name.startswith("_pyro") or (name.startswith("__") and name.endswith("__")):
                raise AttributeError(name)
            meta = self._pyroMetadata()
        if meta is None or name in meta.methods:
            return self._pyroMethod(name)
        if name in meta.attrs:
            return self._pyroInvoke("__getattr__", (name,), None)
        raise AttributeError(f"remote object '{self._pyroUri}' has no exposed attribute or method '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_pyro"):
            keep(self, name, value)
            return
        meta = self._pyroMetadata()
        if meta is None or name not in meta.attrs:
            raise AttributeError(f"remote object '{self._pyroUri}' has no exposed attribute '{name}'")
        self._pyroInvoke("__setattr__", (name, value), None)

    def __dir__(self) -> list[str]:
        meta = self._pyroMeta or NO_MEMBERS
        return sorted({*super().__dir__(), *meta.methods, *meta.attrs})

    @property
    def _pyroMethods(self) -> frozenset[str]:
        return (self._pyroMeta or NO_MEMBERS).methods

    @property
    def _pyroAttrs(self) -> frozenset[str]:
        return (self._pyroMeta or NO_MEMBERS).attrs

    @property
    def _pyroOneway(self) -> frozenset[str]:
        return (self._pyroMeta or NO_MEMBERS).oneway

    @property
    def _pyroRawWireResponse(self) -> bool:
        """Pyro5's switch for raw messages instead of results: it is always off.

        Raises:
            AttributeError: it is set to anything that is true.
        """
        return False

    @_pyroRawWireResponse.setter
    def _pyroRawWireResponse(self, wanted: bool) -> None:
        if wanted:
            raise AttributeError(
                "_pyroRawWireResponse is not offered: a call returns its result, never the raw message"
            )

    def _pyroAsync(self, asynchronous: bool = True) -> None:
        """Pyro4's asynchronous mode: each method call runs in a thread and returns a FutureResult at once."""
        self._pyroAsynchronous = asynchronous

    def _pyroMethod(self, name: str) -> Callable[..., Any]:
        return partial(self._pyroLater, name) if self._pyroAsynchronous else Method(self._pyroCall, name)

    def _pyroCall(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """``proxy.method(*args, **kwargs)``."""
        return self._pyroInvoke(method, args, kwargs)

    def _pyroLater(self, method: str, /, *args: Any, **kwargs: Any) -> FutureResult:
        raise NotImplementedError

    @property
    def _pyroKind(self) -> type:
        """The class that the program made this of; see `knows_its_methods`."""
        kind: type = type(self).__dict__.get(_ORIGIN, type(self))
        return kind

    def _pyroKnow(self, meta: Metadata) -> None:
        """Take over what a daemon told of its object."""
        keep(self, "_pyroMeta", meta)
        kind = type(self)
        origin = kind.__dict__.get(_ORIGIN)
        if origin is not None:
            known = _kind_with(origin, meta.methods)
            if known is not kind:
                keep(self, "__class__", known)


class _KnownMethod:
    """Stands in a class for a method that the remote object has."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, proxy: Members | None, kind: type | None = None) -> Any:
        if proxy is None:
            return self
        if proxy._pyroAsynchronous:
            return proxy._pyroMethod(self._name)
        return Method(proxy._pyroCall, self._name)  # as `_pyroMethod`, which would be another step


def knows_its_methods(kind: Kind) -> Kind:
    """Let proxies of a class, not those of its subclasses, find methods without asking `__getattr__`.

    Python asks it after a search that fails, and the error of that costs more than all else before a call. So such a
    proxy changes its class, as soon as the methods are known, for one that has them and is otherwise the same.
    """
    setattr(kind, _ORIGIN, kind)
    return kind


@lru_cache(maxsize=MOST_KINDS)
def _kind_with(origin: type[Members], methods: frozenset[str]) -> type[Members]:
    known = {name: _KnownMethod(name) for name in methods if not name.startswith("_")}
    same = {name: origin.__dict__[name] for name in _AS_IN_ORIGIN}
    return type(origin.__name__, (origin,), {**known, **same, "__slots__": ()})
