"""Pyro5's API for programs without a loop: change one import and go on."""

from ..errors import CommunicationError as CommunicationError
from ..errors import ConnectionClosedError as ConnectionClosedError
from ..errors import DaemonError as DaemonError
from ..errors import NamingError as NamingError
from ..errors import ProtocolError as ProtocolError
from ..errors import PyroError as PyroError
from ..errors import SecurityError as SecurityError
from ..errors import SerializeError as SerializeError
from ..errors import TimeoutError as TimeoutError
from ..objects.expose import behavior as behavior
from ..objects.expose import callback as callback
from ..objects.expose import expose as expose
from ..objects.expose import oneway as oneway
from ..serializers.blob import SerializedBlob as SerializedBlob
from ..serializers.registry import register_class_to_dict as register_class_to_dict
from ..serializers.registry import register_dict_to_class as register_dict_to_class
from ..serializers.registry import unregister_class_to_dict as unregister_class_to_dict
from ..serializers.registry import unregister_dict_to_class as unregister_dict_to_class
from ..settings import Settings as Settings
from ..uri import Uri as Uri
from .batch import BatchProxy as BatchProxy
from .context import current_context as current_context
from .daemon import Daemon as Daemon
from .daemon import serve as serve
from .names import locate_ns as locate_ns
from .names import resolve as resolve
from .proxy import Proxy as Proxy

URI = Uri
