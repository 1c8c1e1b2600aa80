"""Flame, as in Pyro4: whoever may call it controls this process. Off unless ``config.FLAME_ENABLED`` says otherwise.

Its form on the wire is Pyro4's (pickle, protocol 48), and since pickle is never read from a stranger, both sides need
the same ``_pyroHmacKey``, or TLS with certificates.
"""

from __future__ import annotations

import builtins
import code
import contextlib
import importlib
import inspect
import io
import operator
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any, Final

from ..errors import SecurityError, SerializeError
from ..objects.expose import expose
from ..serializers.pickle import register_flame_class
from ..settings import Settings
from ..uri import Uri
from .config import config
from .daemon import Daemon
from .proxy import Proxy

FLAME_NAME: Final = "Pyro.Flame"
_ONLY: Final = frozenset({"pickle"})
_globals: dict[str, Any] = {"__name__": "pyroxfer.flame", "__builtins__": builtins}
"""Where `Flame.execute` and `Flame.evaluate` run, for all clients."""
_output = threading.Lock()
"""Held while a console has the standard output of the process."""


def connect(location: str, hmac_key: bytes | str | None = None) -> Proxy:
    """A proxy of the Flame server at ``host:port`` or ``./u:socket``, connected.

    Raises:
        SerializeError: ``config.SERIALIZER`` is not ``pickle``, or nothing shows who the server is.
        CommunicationError: there is none, or it has another key.
    """
    if config.SERIALIZER != "pickle":
        raise SerializeError("Flame requires the pickle serializer: set config.SERIALIZER")
    proxy = Proxy(f"PYRO:{FLAME_NAME}@{location}")
    if hmac_key:
        proxy._pyroHmacKey = hmac_key
    proxy._pyroBind()
    return proxy


def start(daemon: Daemon) -> Uri:
    """Let this daemon's clients control the process.

    Raises:
        SecurityError: ``config.FLAME_ENABLED`` is off, or the daemon asks nobody who they are.
        SerializeError: the daemon accepts something else than pickle.
    """
    if not config.FLAME_ENABLED:
        raise SecurityError("Flame is disabled: whoever sets config.FLAME_ENABLED gives clients this whole process")
    if daemon.settings.accepted_serializers != _ONLY:
        raise SerializeError("Flame requires the pickle serializer exclusively: set config.SERIALIZERS_ACCEPTED")
    refuse_strangers(daemon.settings)
    return daemon.register(Flame(), FLAME_NAME)


def refuse_strangers(settings: Settings) -> None:
    """SecurityError unless clients must show who they are."""
    context = settings.ssl_server_context
    if settings.hmac_key is None and (context is None or not context.verify_mode):
        raise SecurityError(
            "Flame needs to know its clients: set the daemon's _pyroHmacKey, or TLS with certificates"
        )


def createModule(  # Pyro's name
    name: str, source: str, filename: str = "<dynamic-module>", namespace: dict[str, Any] | None = None
) -> types.ModuleType:
    """Make a module of source text, and the packages that its dotted name goes through, in ``sys.modules``.

    A module that exists is executed anew in place.
    """
    module, path = types.ModuleType("root"), ""
    for component in name.split("."):
        path = f"{path}.{component}" if path else component
        child = sys.modules.get(path)
        if child is None:
            child = sys.modules[path] = types.ModuleType(path)
            setattr(module, component, child)
        module = child
    exec(compile(source.rstrip(), filename, "exec"), module.__dict__)
    if namespace is not None:
        namespace[name.split(".")[0]] = sys.modules[name.split(".")[0]]
    return module


class FlameModule:
    """A module of the server: ``module.name.name(...)`` calls what is there; `Flame.evaluate` reads values."""

    def __init__(self, flameserver: Any, module: str) -> None:
        self.flameserver = flameserver
        self.module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _RemoteName(self.flameserver, f"{self.module}.{name}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __enter__(self) -> FlameModule:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flameserver._pyroRelease()

    def __repr__(self) -> str:
        return f"<FlameModule {self.module!r}>"


class _RemoteName:
    def __init__(self, flameserver: Any, name: str) -> None:
        self._flameserver = flameserver
        self._name = name

    def __getattr__(self, name: str) -> _RemoteName:
        return _RemoteName(self._flameserver, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._flameserver.invokeModule(self._name, args, kwargs)


class FlameBuiltin:
    """A builtin function of the server."""

    def __init__(self, flameserver: Any, builtin: str) -> None:
        self.flameserver = flameserver
        self.builtin = builtin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.flameserver.invokeBuiltin(self.builtin, args, kwargs)

    def __enter__(self) -> FlameBuiltin:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flameserver._pyroRelease()

    def __repr__(self) -> str:
        return f"<FlameBuiltin {self.builtin!r}>"


class RemoteInteractiveConsole:
    """A console that reads here and runs at the server."""

    def __init__(self, remoteconsole: Any) -> None:
        self.remoteconsole = remoteconsole

    def interact(self) -> None:
        """Read lines until the end of input."""
        remote = self.remoteconsole

        class Console(code.InteractiveConsole):
            def push(self, line: str, *args: Any, **kwargs: Any) -> bool:
                output, more = remote.push_and_get_output(line)
                if output:
                    sys.stdout.write(output)
                return bool(more)

        Console(filename="<remoteconsole>").interact(banner=remote.get_banner())

    def close(self) -> None:
        """End the session at the server."""
        self.remoteconsole.terminate()
        self.remoteconsole._pyroRelease()

    terminate = close

    def __enter__(self) -> RemoteInteractiveConsole:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@expose
class InteractiveConsole:
    """The server's end of a console."""

    def __init__(self, banner: str) -> None:
        self._banner = banner
        self._console = code.InteractiveConsole(filename="<remoteconsole>")

    def push_and_get_output(self, line: str) -> tuple[str, bool]:
        """Run a line. What it printed, and whether the statement goes on."""
        output = io.StringIO()
        with _output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            more = self._console.push(line)
        return output.getvalue(), more

    def get_banner(self) -> str:
        """What to show first."""
        return self._banner

    def write(self, data: str) -> None:
        """Print a text at the server."""
        sys.stdout.write(data)

    def terminate(self) -> None:
        """Forget the session."""
        self._console.resetbuffer()
        self._pyroDaemon.unregister(self)  # type: ignore[attr-defined]  # set when it was registered


@expose
class Flame:
    """What a client of Flame can do, which is everything."""

    def module(self, name: str) -> FlameModule:
        """Import a module here; a stand-in for it."""
        importlib.import_module(name)
        return FlameModule(self, name)

    def builtin(self, name: str) -> FlameBuiltin:
        """A stand-in for a builtin function."""
        return FlameBuiltin(self, name)

    def execute(self, code: str) -> None:
        """Run statements, in a namespace that all clients share."""
        exec(compile(code.rstrip(), "<remote-code>", "exec"), _globals)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, in the same namespace."""
        return eval(expression, _globals)

    def sendmodule(self, modulename: str, modulesource: str) -> None:
        """Make a module of its source; see `createModule`."""
        createModule(modulename, modulesource)

    createmodule = sendmodule

    def deletemodule(self, modulename: str) -> None:
        """Forget a module: the next import loads it anew, or fails if it was made of sent source."""
        parent, _, name = modulename.rpartition(".")
        del sys.modules[modulename]
        if parent in sys.modules:
            with contextlib.suppress(AttributeError):
                delattr(sys.modules[parent], name)

    def getmodule(self, modulename: str) -> str:
        """The source text of a module."""
        return inspect.getsource(importlib.import_module(modulename))

    def sendfile(self, filename: str, filedata: bytes) -> None:
        """Write a file that only its owner can read."""
        descriptor = os.open(filename, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(filedata)

    def getfile(self, filename: str) -> bytes:
        """The contents of a file."""
        return Path(filename).read_bytes()

    def console(self) -> RemoteInteractiveConsole:
        """An interactive session of one's own."""
        daemon: Daemon = self._pyroDaemon  # type: ignore[attr-defined]  # set when it was registered
        banner = f"Python {sys.version} on {sys.platform}\n(Remote console on {daemon.locationStr})"
        console = InteractiveConsole(banner)
        daemon.register(console)
        return RemoteInteractiveConsole(console)

    def invokeBuiltin(self, builtin: str, args: Any, kwargs: Any) -> Any:  # Pyro's name
        """Call a builtin function."""
        return getattr(builtins, builtin)(*args, **kwargs)

    def invokeModule(self, dottedname: str, args: Any, kwargs: Any) -> Any:  # Pyro's name
        """Call ``module.name.name``."""
        module, _, path = dottedname.partition(".")
        return operator.attrgetter(path)(sys.modules[module])(*args, **kwargs)

    invokemodule = invokeModule


for _kind in (FlameModule, FlameBuiltin, RemoteInteractiveConsole):
    register_flame_class(_kind)
