"""Connections on trio: plain sockets tried first, waiting only where the kernel says so."""

from .connection import Connection as Connection
from .connection import open_connection as open_connection
from .side import SideStream as SideStream
from .side import open_side_stream as open_side_stream
