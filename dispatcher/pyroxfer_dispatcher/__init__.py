"""A dispatcher for Pyro calls: routes serialized blobs to backends without reading them."""

from __future__ import annotations

from .config import load_config as load_config
from .routes import RouteTable as RouteTable
from .server import Dispatcher as Dispatcher
