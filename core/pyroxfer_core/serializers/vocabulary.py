"""What library objects are called on the wire. It depends on the peer, never on the value.

Pyro4 and Pyro5 each know only their own module names, so a URI, a proxy or an error is written in the vocabulary of
the connection; both vocabularies are read everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import SerializeError

OWN_ERRORS: Final = "pyroxfer_core.errors"
"""Module name of the errors that Pyro does not have; written only to peers of our own."""

ERROR_MODULES: Final = frozenset({"Pyro4.errors", "Pyro5.errors", OWN_ERRORS})
URI_NAMES: Final = frozenset({"Pyro4.core.URI", "Pyro5.core.URI"})
PROXY_NAMES: Final = frozenset({"Pyro4.core.Proxy", "Pyro5.client.Proxy"})
DAEMON_NAMES: Final = frozenset({"Pyro4.core.Daemon", "Pyro5.server.Daemon"})
WRAPPER_NAMES: Final = frozenset({"Pyro4.futures._ExceptionWrapper", "Pyro5.core._ExceptionWrapper"})


@dataclass(frozen=True, slots=True)
class ProxyState:
    """A proxy as it travels: what a proxy needs to exist, without a connection."""

    uri_text: str
    oneway: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    attrs: frozenset[str] = frozenset()
    handshake: Any = "hello"
    serializer: str | None = None


@dataclass(frozen=True, slots=True)
class DaemonState:
    """A daemon as it travels: a name without content."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names one kind of peer knows."""

    uri: str
    proxy: str
    daemon: str
    errors: str
    wrapper: str
    own: bool = False
    """The peer is one of ours: it knows our error classes and call outcomes too."""


PYRO4: Final = Vocabulary(
    uri="Pyro4.core.URI",
    proxy="Pyro4.core.Proxy",
    daemon="Pyro4.core.Daemon",
    errors="Pyro4.errors",
    wrapper="Pyro4.futures._ExceptionWrapper",
)
PYRO5: Final = Vocabulary(
    uri="Pyro5.core.URI",
    proxy="Pyro5.client.Proxy",
    daemon="Pyro5.server.Daemon",
    errors="Pyro5.errors",
    wrapper="Pyro5.core._ExceptionWrapper",
)
OWN: Final = Vocabulary(PYRO5.uri, PYRO5.proxy, PYRO5.daemon, PYRO5.errors, PYRO5.wrapper, own=True)


def vocabulary_for(version: int, own: bool) -> Vocabulary:
    """The vocabulary of a peer that speaks protocol ``version`` (48 or 502)."""
    if version == 48:
        return PYRO4
    return OWN if own else PYRO5


def proxy_to_state(proxy: ProxyState, vocabulary: Vocabulary) -> tuple[Any, ...]:
    """The values in which a proxy travels: nine in Pyro4's words, six in Pyro5's."""
    names = tuple(proxy.oneway), tuple(proxy.methods), tuple(proxy.attrs)
    if vocabulary is PYRO4:
        # timeout, HMAC key and retries are ignored by the receiver; the key would be sent in clear
        return proxy.uri_text, *names, 0.0, None, proxy.handshake, 0, proxy.serializer
    return proxy.uri_text, *names, proxy.handshake, proxy.serializer


def state_to_proxy(name: str, state: Any) -> ProxyState:
    """Read a proxy's values; ``name`` tells whose layout it is.

    Raises:
        SerializeError: the number or the types of the values are wrong.
    """
    if not isinstance(state, (list, tuple)):
        raise SerializeError(f"invalid state of {name}")
    if name == "Pyro4.core.Proxy" and len(state) in (8, 9):
        handshake, serializer = state[6], state[8] if len(state) == 9 else None
    elif name == "Pyro5.client.Proxy" and len(state) == 6:
        handshake, serializer = state[4], state[5]
    else:
        raise SerializeError(f"invalid state of {name}")
    if not isinstance(state[0], str) or not isinstance(serializer, str | None):
        raise SerializeError(f"invalid state of {name}")
    oneway, methods, attrs = map(name_set, state[1:4])
    return ProxyState(state[0], oneway, methods, attrs, handshake, serializer)


def served_as(value: object) -> ProxyState | None:
    """The proxy that stands for a value which some daemon of this process serves; None for any other value."""
    find = getattr(getattr(value, "_pyroDaemon", None), "autoproxy", None)
    found = find(value) if callable(find) else None
    return found if isinstance(found, ProxyState) else None


def name_set(names: Any) -> frozenset[str]:
    """A set of names that came as list, tuple or set.

    Raises:
        SerializeError: it is no collection of texts.
    """
    if not isinstance(names, (list, tuple, set, frozenset)) or not _all_text(names):
        raise SerializeError("a list of names was expected")
    return frozenset(names)


def _all_text(names: Iterable[Any]) -> bool:
    return all(isinstance(name, str) for name in names)
