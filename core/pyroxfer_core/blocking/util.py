"""What programs use of ``Pyro4.util``."""

from .errors import excepthook as excepthook
from .errors import format_traceback, get_pyro_traceback
from .serializer import SerializerBase as SerializerBase

formatTraceback = format_traceback
getPyroTraceback = get_pyro_traceback
