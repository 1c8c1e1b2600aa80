"""Every error of the RPC core, sorted by whose fault it is.

    PyroError                        anything raised by this library
    ├── NamingError                  the name server does not know, or refuses, the name
    ├── DaemonError                  the daemon was used wrongly: unknown object, id taken
    ├── SecurityError                refused for safety: private name, bad signature, forbidden class
    ├── RemoteError                  a remote exception whose class this process does not know
    └── CommunicationError           the call or the connection failed; ``outcome`` says what is certain
        ├── ConnectionClosedError    the world broke it: connection refused, reset, ended
        ├── TimeoutError             the time allowed ran out
        ├── SessionLost              the object made for a lost connection is gone with it
        ├── RefusedError             the server refused before dispatch: busy, draining, denied
        ├── AuthenticationError      one end is not who the other accepts: certificate, token (a SecurityError too)
        ├── SerializeError           a value cannot be written, or bytes cannot be read back
        └── ProtocolError            the peer spoke wrongly
            └── MessageTooLargeError a message is over the limit

The names are Pyro's where Pyro has one, so programs that catch them keep working.
"""

from __future__ import annotations

import enum
from typing import Any


class Outcome(enum.Enum):
    """What is certain about a call that ended in an error."""

    NOT_SENT = "NotSent"
    """The request cannot have run: it never left whole, or was refused before dispatch."""
    UNKNOWN = "Unknown"
    """The request left whole and no reply came: it may have run."""
    EXECUTED = "Executed"
    """A reply came, even if it cannot be decoded."""


class PyroError(Exception):
    """Base of every error of this library."""


class NamingError(PyroError):
    """The name server does not know the name, or refuses it."""


class DaemonError(PyroError):
    """The daemon was used wrongly: unknown object, id already taken."""


class SecurityError(PyroError):
    """Refused for safety: private name, bad signature, class that must not be decoded."""


class RemoteError(PyroError):
    """A remote exception whose class this process does not know.

    ``class_name`` is the full remote name, ``remote_args`` what it was built from.
    """

    def __init__(self, class_name: str = "", remote_args: tuple[Any, ...] = ()) -> None:
        super().__init__(class_name, remote_args)
        self.class_name = class_name
        self.remote_args = remote_args

    def __str__(self) -> str:
        return f"{self.class_name}: {', '.join(map(str, self.remote_args))}"


class CommunicationError(PyroError):
    """The call or the connection failed. ``outcome`` is None when no call was involved."""

    outcome: Outcome | None = None
    final = False
    """The call must not be sent again, whatever its outcome: what it took along has been used up."""

    def __init__(self, *args: object, outcome: Outcome | None = None) -> None:
        super().__init__(*args)
        if outcome is not None:
            self.outcome = outcome


class ConnectionClosedError(CommunicationError):
    """The connection was refused, reset, or ended."""


class TimeoutError(CommunicationError):
    """The time allowed for connecting or for the call ran out."""


class SessionLost(CommunicationError):  # the contract's word
    """The object made for a connection is gone with it. The call was not sent, and the next one connects anew.

    Raised once for each loss, towards peers of ours whose object lives as long as the connection, and with
    ``Settings(strict_session=True)`` towards stock peers, who do not tell whether it does.
    """


class RefusedError(CommunicationError):
    """The server refused the call before running it (busy, draining, denied): outcome NotSent."""

    outcome = Outcome.NOT_SENT


class AuthenticationError(SecurityError, CommunicationError):
    """One end could not prove who it is, or the other does not accept it: certificate, token (outcome NotSent)."""

    outcome = Outcome.NOT_SENT


class SerializeError(CommunicationError):
    """A value cannot be serialized, or received bytes cannot be turned back into one."""


class ProtocolError(CommunicationError):
    """The peer sent something that is not the protocol."""


class MessageTooLargeError(ProtocolError):
    """A message, or what it inflates to, is over the limit. Nothing of it was kept."""
