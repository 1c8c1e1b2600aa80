"""Options about TLS and tokens, the same for every command: as a server, as a client, or towards a name server.

Secrets never stand on the command line. A token comes from ``PYROXFER_TOKEN``, a file, or a question; a server that
shows one to its name server has it from ``PYROXFER_NS_TOKEN``. The password of an encrypted key comes from
``PYROXFER_TLS_KEY_PASSWORD``.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import trio

from ..access import Tokens, check_token, load_token
from ..certificates import load_certificate, tls_client_context, tls_server_context
from ..errors import SecurityError
from ..settings import Settings

if TYPE_CHECKING:  # the servers': a client starts without them
    from ..processes.worker import Worker
    from ..server.manager import ServiceManager

log = logging.getLogger(__name__)

TOKEN: Final = "PYROXFER_TOKEN"  # noqa: S105  # the name of a variable
NS_TOKEN: Final = "PYROXFER_NS_TOKEN"  # noqa: S105  # the name of a variable
KEY_PASSWORD: Final = "PYROXFER_TLS_KEY_PASSWORD"  # noqa: S105  # the name of a variable
ASK: Final = "-"
"""In place of a file: ask at the terminal."""

_FILES: Final = ("tls_cert", "tls_key", "tls_ca", "token_file")

F = TypeVar("F", bound=Callable[..., Any])


class ServerAccess:
    """How a server speaks, and whom it lets in, by its options."""

    def __init__(
        self, *, tls_cert: str | None, tls_key: str | None, tls_ca: str | None, token_file: str | None
    ) -> None:
        self._cert, self._key, self._ca, self._token_file = tls_cert, tls_key, tls_ca, token_file
        self._password = os.environ.get(KEY_PASSWORD)

    def settings(self, settings: Settings) -> Settings:
        """The settings with what the options add.

        Raises:
            SecurityError: a file cannot be used, or the options do not go together.
        """
        if self._cert is None and (self._key is not None or self._ca is not None):
            raise SecurityError("--tls-key and --tls-ca of a server need --tls-cert FILE")
        tls = None
        if self._cert is not None:
            tls = tls_server_context(self._cert, self._key, ca=self._ca, password=self._password)
        tokens = None
        if self._token_file is not None:
            tokens = Tokens({"token": _asked()}) if self._token_file == ASK else Tokens.load(self._token_file)
        elif shown := os.environ.get(TOKEN):
            tokens = Tokens({"token": check_token(shown)})
        return settings.with_changes(ssl_server_context=tls, tokens=tokens)

    def refuse_questions(self, option: str) -> None:
        """Check that nothing has to be asked at the terminal.

        Raises:
            SecurityError: it has, and the option does not go with that.
        """
        if self._token_file == ASK:
            raise SecurityError(f"--token-file {ASK} asks at the terminal, {option} cannot: name a file")

    def reload_or_say(self, settings: Settings) -> None:
        """The same, for a server that goes on: one line of its log says what came of it."""
        try:
            self.reload(settings)
        except SecurityError as error:
            log.error("not reloaded: %s", error)
        else:
            log.info("certificate and tokens were read again")

    async def reload_on_hangup(self, settings: Settings, manager: ServiceManager | Worker) -> None:
        """Read certificate and tokens again whenever SIGHUP comes, until cancelled. The manager is told that the
        service is ready, and what it does."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            manager.ready()
            async for _ in signals:
                manager.reloading()
                self.reload_or_say(settings)
                manager.ready()

    def reload(self, settings: Settings) -> None:
        """Read certificate and tokens again; connections go on, new ones get what is there now.

        Raises:
            SecurityError: a file cannot be used; what was read before goes on being used.
        """
        if settings.ssl_server_context is not None and self._cert is not None:
            tls_server_context(self._cert, self._key, ca=self._ca, password=self._password)  # does it all fit?
            load_certificate(settings.ssl_server_context, self._cert, self._key, self._password)
        if settings.tokens is not None:
            settings.tokens.reload()


class ClientAccess:
    """How a client speaks, and what it shows, by its options."""

    def __init__(
        self,
        *,
        tls: bool,
        tls_cert: str | None,
        tls_key: str | None,
        tls_ca: str | None,
        token_file: str | None,
        prefix: str = "",
        token_variable: str = TOKEN,
    ) -> None:
        self._prefix, self._token_variable = prefix, token_variable
        self._tls = tls or tls_cert is not None or tls_ca is not None
        self._cert, self._key, self._ca, self._token_file = tls_cert, tls_key, tls_ca, token_file

    def settings(self, settings: Settings) -> Settings:
        """The settings with what the options add.

        Raises:
            SecurityError: a file cannot be used, or the options do not go together.
        """
        if self._cert is None and self._key is not None:
            raise SecurityError(f"--{self._prefix}tls-key needs --{self._prefix}tls-cert FILE")
        context = None
        if self._tls:
            password = os.environ.get(KEY_PASSWORD)
            context = tls_client_context(self._ca, cert=self._cert, key=self._key, password=password)
        token = os.environ.get(self._token_variable) or None
        if self._token_file is not None:
            token = _asked() if self._token_file == ASK else load_token(self._token_file)
        return settings.with_changes(ssl_client_context=context, token=token)


def _asked() -> str:
    return str(click.prompt("Token", hide_input=True, err=True))


def server_access(command: F) -> F:
    """Add the options of a server; the command gets them as ``access``."""
    options: tuple[Callable[[F], F], ...] = (
        _option("tls-cert", "Speak TLS, with this certificate and those between it and its CA (PEM)."),
        _option("tls-key", "Its private key, if that is in another file."),
        _option("tls-ca", "Let in only clients with a certificate of these CAs (mutual TLS)."),
        _option("token-file", "Let in only who has one of these tokens: a name and a token a line; - asks for one."),
    )
    return _with_options(command, "access", ServerAccess, _FILES, options)


def client_access(command: F) -> F:
    """Add the options of a client; the command gets them as ``access``."""
    return _with_options(command, "access", ClientAccess, ("tls", *_FILES), client_options(click.option))


def nameserver_access(command: F) -> F:
    """Add the options of a server that is a client of the name server; the command gets them as ``ns_access``."""
    options: tuple[Callable[[F], F], ...] = (
        click.option("--ns-tls", is_flag=True, envvar="PYROXFER_NS_TLS", help="Speak TLS with the name server."),
        _option("ns-tls-ca", "CAs to trust there instead of the system's (PEM)."),
        _option("ns-tls-cert", "Certificate to show there (PEM)."),
        _option("ns-tls-key", "Its private key, if that is in another file."),
        _option("ns-token-file", "File with the token to prove there; - asks for it."),
    )
    make = partial(ClientAccess, prefix="ns-", token_variable=NS_TOKEN)
    return _with_options(command, "ns_access", make, ("tls", *_FILES), options, prefix="ns_")


def client_options(option: Callable[..., Callable[[F], F]]) -> list[Callable[[F], F]]:
    """The options of a client, made by something that takes what `click.option` takes."""
    return [
        option("--tls", is_flag=True, envvar="PYROXFER_TLS", help="Speak TLS; --tls-ca and --tls-cert imply it."),
        _option("tls-ca", "CAs to trust instead of the system's (PEM).", option),
        _option("tls-cert", "Certificate to show where one is asked for (PEM).", option),
        _option("tls-key", "Its private key, if that is in another file.", option),
        _option("token-file", "File with the token to prove; - asks for it.", option),
    ]


def _option(name: str, text: str, option: Callable[..., Callable[[F], F]] = click.option) -> Callable[[F], F]:
    variable = f"PYROXFER_{name.replace('-', '_').upper()}"
    kind = click.Path(exists=True, dir_okay=False, allow_dash=name.endswith("token-file"))
    return option(f"--{name}", metavar="FILE", envvar=variable, type=kind, help=text)


def _with_options(
    command: F,
    argument: str,
    make: Callable[..., Any],
    names: Sequence[str],
    options: Sequence[Callable[[F], F]],
    *,
    prefix: str = "",
) -> F:
    """The command with options, whose values come to it as one argument."""

    @wraps(command)
    def with_access(*args: Any, **values: Any) -> Any:
        values[argument] = make(**{name: values.pop(prefix + name) for name in names})
        return command(*args, **values)

    wrapped: Any = with_access
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # the command, with options
