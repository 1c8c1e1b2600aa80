"""HTTP/1.1 on trio for the gateway's own command: a strict parser, bounds on everything, one send for an answer."""

from .server import HttpServer as HttpServer
