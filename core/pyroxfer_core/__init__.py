"""The RPC core of pyroxfer: speaks the protocols of Pyro4 and Pyro5 on trio."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors as errors
    from .access import Identity as Identity
    from .access import Tokens as Tokens
    from .access import load_token as load_token
    from .certificates import tls_client_context as tls_client_context
    from .certificates import tls_server_context as tls_server_context
    from .client.batch import BatchProxy as BatchProxy
    from .client.introduce import introduce as introduce
    from .client.proxy import Proxy as Proxy
    from .futures import open_futures as open_futures
    from .logs import configure_logging as configure_logging
    from .nameserver.keeping import keep_registered as keep_registered
    from .nameserver.lookup import locate_ns as locate_ns
    from .nameserver.lookup import resolve as resolve
    from .objects.context import current_call as current_call
    from .objects.expose import Metadata as Metadata
    from .objects.expose import behavior as behavior
    from .objects.expose import callback as callback
    from .objects.expose import expose as expose
    from .objects.expose import idempotent as idempotent
    from .objects.expose import oneway as oneway
    from .processes.launch import supervise as supervise
    from .processes.launch import worker_count as worker_count
    from .processes.supervisor import Supervisor as Supervisor
    from .processes.worker import Worker as Worker
    from .serializers.blob import SerializedBlob as SerializedBlob
    from .server.daemon import CutCall as CutCall
    from .server.daemon import Daemon as Daemon
    from .server.handshake import accept_handshake as accept_handshake
    from .server.handshake import authenticate as authenticate
    from .server.handshake import error_body as error_body
    from .server.handshake import plain_call as plain_call
    from .server.handshake import refusal as refusal
    from .server.handshake import wanted_object as wanted_object
    from .server.hello import Hello as Hello
    from .server.hello import Verdict as Verdict
    from .server.manager import ServiceManager as ServiceManager
    from .server.serving import serve as serve
    from .settings import Settings as Settings
    from .transport.connection import Connection as Connection
    from .transport.connection import open_connection as open_connection
    from .transport.inherited import InheritedListener as InheritedListener
    from .transport.inherited import inherited_listeners as inherited_listeners
    from .transport.listen import serve_connections as serve_connections
    from .transport.side import SideStream as SideStream
    from .transport.side import open_side_stream as open_side_stream
    from .transport.sockets import StreamSocket as StreamSocket
    from .transport.sockets import bind_tcp as bind_tcp
    from .uri import Uri as Uri
    from .wire.session import ServerSession as ServerSession

_WHERE = {
    "BatchProxy": "client.batch",
    "Connection": "transport.connection",
    "CutCall": "server.daemon",
    "Daemon": "server.daemon",
    "Hello": "server.hello",
    "Identity": "access",
    "InheritedListener": "transport.inherited",
    "Metadata": "objects.expose",
    "Proxy": "client.proxy",
    "SerializedBlob": "serializers.blob",
    "ServerSession": "wire.session",
    "ServiceManager": "server.manager",
    "Settings": "settings",
    "SideStream": "transport.side",
    "StreamSocket": "transport.sockets",
    "Supervisor": "processes.supervisor",
    "Tokens": "access",
    "Uri": "uri",
    "Verdict": "server.hello",
    "Worker": "processes.worker",
    "accept_handshake": "server.handshake",
    "authenticate": "server.handshake",
    "behavior": "objects.expose",
    "bind_tcp": "transport.sockets",
    "callback": "objects.expose",
    "configure_logging": "logs",
    "current_call": "objects.context",
    "error_body": "server.handshake",
    "errors": "",
    "expose": "objects.expose",
    "idempotent": "objects.expose",
    "inherited_listeners": "transport.inherited",
    "introduce": "client.introduce",
    "keep_registered": "nameserver.keeping",
    "load_token": "access",
    "locate_ns": "nameserver.lookup",
    "oneway": "objects.expose",
    "open_connection": "transport.connection",
    "open_futures": "futures",
    "open_side_stream": "transport.side",
    "plain_call": "server.handshake",
    "refusal": "server.handshake",
    "resolve": "nameserver.lookup",
    "serve": "server.serving",
    "serve_connections": "transport.listen",
    "supervise": "processes.launch",
    "tls_client_context": "certificates",
    "tls_server_context": "certificates",
    "wanted_object": "server.handshake",
    "worker_count": "processes.launch",
}
"""Public name to the module that has it; none for a module itself. It is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    """Import what has a public name, once."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_WHERE[name] or name}", __name__)
    value = getattr(module, name) if _WHERE[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
