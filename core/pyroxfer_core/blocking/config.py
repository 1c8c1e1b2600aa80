"""``config`` as Pyro programs know it: attributes with Pyro's names, and Pyro's ``PYRO_…`` environment variables."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..logs import configure_logging
from ..settings import SAFE_SERIALIZERS, UNSAFE_SERIALIZERS, Settings

log = logging.getLogger(__name__)

PREFIX: Final = "PYRO_"
BOOLEANS: Final = {
    **dict.fromkeys(("1", "yes", "on", "true"), True),
    **dict.fromkeys(("0", "no", "off", "false"), False),
}

HONOURED: Final[Mapping[str, Any]] = {
    "HOST": "localhost",
    "NATHOST": None,
    "NATPORT": 0,
    "NS_HOST": "localhost",
    "NS_PORT": 9090,
    "NS_BCHOST": None,
    "NS_BCPORT": 9091,
    "NS_LOOKUP_DELAY": 0.0,
    "NS_AUTOCLEAN": 0.0,
    "COMPRESSION": False,
    "COMMTIMEOUT": 0.0,
    "MAX_RETRIES": 0,
    "MAX_MESSAGE_SIZE": 1024**3,
    "SERVERTYPE": "thread",
    "THREADPOOL_SIZE": 80,
    "SERIALIZER": "serpent",
    "SERIALIZERS_ACCEPTED": SAFE_SERIALIZERS,
    "PREFER_IP_VERSION": 0,
    "ITER_STREAM_LIFETIME": 0.0,
    "ITER_STREAM_LINGER": 30.0,
    "FLAME_ENABLED": False,
    "LOGFILE": "{stderr}",
    "LOGLEVEL": None,
    "LOGWIRE": False,
    "SSL": False,
    "SSL_SERVERCERT": "",
    "SSL_SERVERKEY": "",
    "SSL_SERVERKEYPASSWD": "",
    "SSL_REQUIRECLIENTCERT": False,
    "SSL_CLIENTCERT": "",
    "SSL_CLIENTKEY": "",
    "SSL_CLIENTKEYPASSWD": "",
    "SSL_CACERTS": "",
}
"""Items that have a meaning here, with Pyro5's default, or Pyro4's where Pyro5 has none."""
ACCEPTED: Final[Mapping[str, Any]] = {
    "BROADCAST_ADDRS": ["<broadcast>", "0.0.0.0"],  # noqa: S104  # Pyro's default, only shown
    "POLLTIMEOUT": 2.0,
    "THREADPOOL_SIZE_MIN": 4,
    "ONEWAY_THREADED": True,
    "SOCK_REUSE": True,
    "SOCK_NODELAY": False,
    "USE_MSG_WAITALL": True,
    "DETAILED_TRACEBACK": False,
    "AUTOPROXY": True,
    "METADATA": True,
    "REQUIRE_EXPOSE": True,
    "PICKLE_PROTOCOL_VERSION": 5,
    "DILL_PROTOCOL_VERSION": -1,
    "JSON_MODULE": "json",
    "SERPENT_BYTES_REPR": False,
    "ITER_STREAMING": True,
}
"""Items that programs may set and that change nothing here."""
DEFAULTS: Final[Mapping[str, Any]] = {**HONOURED, **ACCEPTED}
_SECRETS: Final = {"SSL_SERVERKEYPASSWD", "SSL_CLIENTKEYPASSWD"}
_SMALLEST: Final = {"NS_PORT": 0, "NS_BCPORT": 0, "NATPORT": 0, "MAX_RETRIES": 0, "THREADPOOL_SIZE": 1}


class Configuration:
    """Process-wide items with Pyro's names: ``config.SERIALIZER = "json"``. An unknown name is an AttributeError.

    The environment is read at the first use, not at import. A proxy or daemon takes the values at the moment it is
    made. Items without a meaning here are accepted and named in one line of the log.
    """

    __slots__ = ("_set", "_settings", "_values")

    _values: dict[str, Any] | None
    _set: set[str]
    _settings: Settings | None

    def __init__(self) -> None:
        object.__setattr__(self, "_values", None)
        object.__setattr__(self, "_set", set())
        object.__setattr__(self, "_settings", None)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._loaded()[name]
        except KeyError:
            raise AttributeError(f"there is no configuration item {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        values = self._loaded()
        if name not in DEFAULTS:
            raise AttributeError(f"there is no configuration item {name!r}")
        values[name] = checked(name, value)
        self._set.add(name)
        object.__setattr__(self, "_settings", None)
        if name in ACCEPTED and value != DEFAULTS[name]:
            log.info("config.%s has no meaning here and is ignored", name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *DEFAULTS})

    def reset(self, use_environment: bool = True) -> None:
        """Back to the defaults, and what the environment says.

        Raises:
            ValueError: a variable of the environment cannot be used; its name and value are told.
        """
        values, found = dict(DEFAULTS), {}
        if use_environment:
            found = {name: text for name, text in os.environ.items() if name.startswith(PREFIX)}
        known = {name: text for name, text in found.items() if name.removeprefix(PREFIX) in DEFAULTS}
        for variable, text in known.items():
            name = variable.removeprefix(PREFIX)
            values[name] = checked(name, parse(name, text))
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_set", {name.removeprefix(PREFIX) for name in known})
        object.__setattr__(self, "_settings", None)
        ignored = sorted(name for name in found if name.removeprefix(PREFIX) not in HONOURED)
        if ignored:
            log.info("environment variables without a meaning here: %s", ", ".join(ignored))

    def as_dict(self) -> dict[str, Any]:
        """All items and their values."""
        return dict(self._loaded())

    def copy(self) -> Configuration:
        """An independent copy."""
        copy = Configuration()
        object.__setattr__(copy, "_values", dict(self._loaded()))
        object.__setattr__(copy, "_set", set(self._set))
        return copy

    def dump(self) -> str:
        """All items for people, one a line."""
        shown = {name: "***" if name in _SECRETS and value else value for name, value in self._loaded().items()}
        return "\n".join(f"{name} = {value!r}" for name, value in sorted(shown.items()))

    def settings(self) -> Settings:
        """The settings these items stand for.

        Raises:
            SecurityError: a file that one of the SSL items names cannot be used.
            PyroError: SERIALIZER is not one of those offered.
        """
        if self._settings is None:
            object.__setattr__(self, "_settings", self._make_settings())
        settings = self._settings
        assert settings is not None, "made above"
        return settings

    def _make_settings(self) -> Settings:
        values = self._loaded()
        server, client = _contexts(values) if values["SSL"] else (None, None)
        return Settings(
            ssl_server_context=server,
            ssl_client_context=client,
            serializer=values["SERIALIZER"] if "SERIALIZER" in self._set else None,
            accepted_serializers=values["SERIALIZERS_ACCEPTED"] & (SAFE_SERIALIZERS | UNSAFE_SERIALIZERS),
            compression=values["COMPRESSION"],
            call_timeout_s=values["COMMTIMEOUT"] or None,
            max_message_bytes=values["MAX_MESSAGE_SIZE"] or DEFAULTS["MAX_MESSAGE_SIZE"],
            worker_threads=values["THREADPOOL_SIZE"],
            stream_lifetime_s=values["ITER_STREAM_LIFETIME"],
            stream_linger_s=values["ITER_STREAM_LINGER"],
            prefer_ip_version=values["PREFER_IP_VERSION"],
            ns_host=values["NS_HOST"],
            ns_port=values["NS_PORT"],
            ns_broadcast_port=values["NS_BCPORT"],
            log_wire=values["LOGWIRE"],
        )

    def _loaded(self) -> dict[str, Any]:
        if self._values is None:
            configure_logging()
            self.reset()
        values = self._values
        assert values is not None, "reset() makes it"
        return values


def _contexts(values: Mapping[str, Any]) -> tuple[ssl.SSLContext | None, ssl.SSLContext]:
    """What the SSL items stand for: for daemons, if they name a certificate, and for proxies."""
    from ..certificates import tls_client_context, tls_server_context  # only who turns SSL on needs it

    authorities, required = values["SSL_CACERTS"] or None, values["SSL_REQUIRECLIENTCERT"]
    server = None
    if values["SSL_SERVERCERT"]:
        server = tls_server_context(
            values["SSL_SERVERCERT"],
            values["SSL_SERVERKEY"] or None,
            ca=authorities if required else None,
            password=values["SSL_SERVERKEYPASSWD"] or None,
            require_client=required,
        )
    client = tls_client_context(
        authorities,
        cert=values["SSL_CLIENTCERT"] or None,
        key=values["SSL_CLIENTKEY"] or None,
        password=values["SSL_CLIENTKEYPASSWD"] or None,
    )
    return server, client


def parse(name: str, text: str) -> Any:
    """A value from the environment, of the type its item has.

    Raises:
        ValueError: the text does not stand for one.
    """
    default = DEFAULTS[name]
    try:
        return _PARSERS.get(type(default), str)(text)
    except (KeyError, ValueError):
        raise ValueError(f"{PREFIX}{name}={text!r} is not usable: expected {type(default).__name__}") from None


_PARSERS: Final[Mapping[type, Callable[[str], Any]]] = {
    bool: lambda text: BOOLEANS[text.strip().lower()],
    int: int,
    float: float,
    frozenset: lambda text: frozenset(part.strip() for part in text.split(",") if part.strip()),
    list: lambda text: [part.strip() for part in text.split(",") if part.strip()],
}


def checked(name: str, value: Any) -> Any:
    """The value as it is kept.

    Raises:
        ValueError: it is of a wrong type, or out of range.
    """
    default = DEFAULTS[name]
    if isinstance(default, frozenset):
        if isinstance(value, str) or not all(isinstance(part, str) for part in value):
            raise ValueError(f"config.{name} is a set of names, not {value!r}")
        return frozenset(value)
    if isinstance(default, float) and isinstance(value, (int, type(None))):
        value = float(value or 0)
    if default is not None and not isinstance(value, type(default)):
        raise ValueError(f"config.{name} is of type {type(default).__name__}, not {value!r}")
    if isinstance(value, (int, float)) and value < _SMALLEST.get(name, 0) and name not in ACCEPTED:
        raise ValueError(f"config.{name} is at least {_SMALLEST.get(name, 0)}, not {value!r}")
    if name == "SERVERTYPE" and value not in ("thread", "multiplex"):
        raise ValueError(f"config.{name} is thread or multiplex, not {value!r}")
    if name == "PREFER_IP_VERSION" and value not in (0, 4, 6):
        raise ValueError(f"config.{name} is 0, 4 or 6, not {value!r}")
    return value


config: Final = Configuration()
