"""What an object shows, with texts and parameters where its daemon tells them; stock daemons tell names only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from ..client.calls import DAEMON_OBJECT, CallOptions
from ..errors import PyroError
from ..uri import Uri
from .pool import Pool

DESCRIBE_WITHIN_S: Final = 5.0
"""How long one object may take to be described."""
REMEMBER_S: Final = 10.0
"""How long a description is taken for true."""
MAX_REMEMBERED: Final = 1_000
MAX_MEMBERS: Final = 1_000
"""Members of one object that are shown."""
MAX_TEXT: Final = 4_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method."""

    name: str
    kind: str
    """``positional_only``, ``positional_or_keyword``, ``var_positional``, ``keyword_only`` or ``var_keyword``."""
    type: str | None
    """As written in the program; None when it says none."""
    default: str | None
    """As text; None when the parameter must be given."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an object."""

    name: str
    doc: str = ""
    parameters: tuple[Parameter, ...] | None = None
    """None when nobody tells."""
    returns: str | None = None
    oneway: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of an object."""

    name: str
    doc: str = ""
    type: str | None = None
    writable: bool | None = None
    """None when nobody tells."""


@dataclass(frozen=True, slots=True)
class Description:
    """An object for people."""

    doc: str = ""
    methods: tuple[Method, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    complete: bool = False
    """Texts and parameters are known."""


@dataclass(slots=True)
class Describer:
    """Asks daemons what their objects are, and remembers it for a moment."""

    pool: Pool
    _known: OrderedDict[Uri, tuple[float, Description]] = field(default_factory=OrderedDict)

    async def describe(self, uri: Uri) -> Description:
        """What the object at this address shows.

        Raises:
            PyroError: it cannot be reached; within DESCRIBE_WITHIN_S seconds.
        """
        known = self._known.get(uri)
        now = trio.current_time()
        if known is not None and now - known[0] < REMEMBER_S:
            return known[1]
        found = None
        with trio.move_on_after(DESCRIBE_WITHIN_S):
            found = await self._ask(uri)
        if found is None:
            raise PyroError(f"{uri} does not answer within {DESCRIBE_WITHIN_S:g} s")
        self._known[uri] = now, found
        self._known.move_to_end(uri)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return found

    async def _ask(self, uri: Uri) -> Description:
        with self.pool.lease(uri) as proxy:
            await proxy._pyroConnected()
            metadata = proxy._pyroMetadata
        if metadata is None:
            return Description()
        told = await self._told(uri)
        return described(metadata.methods, metadata.oneway, metadata.attrs, told)

    async def _told(self, uri: Uri) -> Mapping[str, Any]:
        """What the daemon says about the object beyond names; nothing from a stock daemon."""
        daemon = Uri.from_state(("PYRO", DAEMON_OBJECT, uri.sockname, uri.host, uri.port))
        try:
            with self.pool.lease(daemon) as proxy:
                await proxy._pyroConnected()
                metadata = proxy._pyroMetadata
                if metadata is None or "describe" not in metadata.methods:
                    return {}
                options = CallOptions(deadline=DESCRIBE_WITHIN_S)
                answer = await proxy._pyroInvoke("describe", (str(uri.object),), {}, options=options)
        except (PyroError, AttributeError):
            return {}
        return answer if isinstance(answer, dict) else {}


def described(
    methods: frozenset[str], oneway: frozenset[str], attributes: frozenset[str], told: Mapping[str, Any]
) -> Description:
    """Names from the metadata, which rules, and what was told about them, as far as it has the right form."""
    about_methods, about_attributes = _mapping(told.get("methods")), _mapping(told.get("attributes"))
    return Description(
        _text(told.get("doc")),
        tuple(
            _method(name, name in oneway, _mapping(about_methods.get(name))) for name in sorted(methods)[:MAX_MEMBERS]
        ),
        tuple(_attribute(name, _mapping(about_attributes.get(name))) for name in sorted(attributes)[:MAX_MEMBERS]),
        bool(told),
    )


def _method(name: str, oneway: bool, about: Mapping[str, Any]) -> Method:
    parameters = about.get("parameters")
    listed = None
    if isinstance(parameters, (list, tuple)):
        listed = tuple(_parameter(_mapping(parameter)) for parameter in parameters)
    returns = _text(about.get("returns")) or None
    return Method(name, _text(about.get("doc")), listed, returns, oneway, about.get("stream") is True)


def _parameter(about: Mapping[str, Any]) -> Parameter:
    default = about.get("default")
    return Parameter(
        _text(about.get("name")),
        _text(about.get("kind")),
        _text(about.get("type")) or None,
        default[:MAX_TEXT] if isinstance(default, str) else None,
    )


def _attribute(name: str, about: Mapping[str, Any]) -> Attribute:
    writable = about.get("writable")
    return Attribute(
        name,
        _text(about.get("doc")),
        _text(about.get("type")) or None,
        writable if isinstance(writable, bool) else None,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""
