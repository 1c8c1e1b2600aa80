"""The HTTP gateway: Pyro objects for browsers, shell scripts and other languages."""

from .asgi import Gateway as Gateway
from .asgi import app as app
from .options import GatewayOptions as GatewayOptions
