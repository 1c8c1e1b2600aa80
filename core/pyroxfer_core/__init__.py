"""The RPC core of pyroxfer: speaks the protocols of Pyro4 and Pyro5 on trio."""

from . import errors as errors
from .client.batch import BatchProxy as BatchProxy
from .client.proxy import Proxy as Proxy
from .futures import open_futures as open_futures
from .nameserver.lookup import locate_ns as locate_ns
from .nameserver.lookup import resolve as resolve
from .objects.context import current_call as current_call
from .objects.expose import behavior as behavior
from .objects.expose import callback as callback
from .objects.expose import expose as expose
from .objects.expose import oneway as oneway
from .serializers.blob import SerializedBlob as SerializedBlob
from .server.daemon import Daemon as Daemon
from .server.handshake import accept_handshake as accept_handshake
from .server.handshake import error_body as error_body
from .server.serving import serve as serve
from .settings import Settings as Settings
from .transport.connection import Connection as Connection
from .transport.connection import open_connection as open_connection
from .transport.listen import serve_connections as serve_connections
from .transport.side import SideStream as SideStream
from .transport.side import open_side_stream as open_side_stream
from .uri import Uri as Uri
