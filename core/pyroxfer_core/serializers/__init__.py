"""Values to bodies and back: serpent, json, marshal, msgpack, and the registry of an application's classes."""

from .base import Call as Call
from .base import Serializer as Serializer
from .base import SerializerContext as SerializerContext
from .base import traceback_lines as traceback_lines
from .blob import SerializedBlob as SerializedBlob
from .exceptions import ExceptionWrapper as ExceptionWrapper
from .exceptions import dict_to_exception as dict_to_exception
from .exceptions import exception_to_dict as exception_to_dict
from .factory import make_serializer as make_serializer
from .registry import DEFAULT_REGISTRY as DEFAULT_REGISTRY
from .registry import ClassRegistry as ClassRegistry
from .registry import register_class_to_dict as register_class_to_dict
from .registry import register_dict_to_class as register_dict_to_class
from .registry import unregister_class_to_dict as unregister_class_to_dict
from .registry import unregister_dict_to_class as unregister_dict_to_class
from .vocabulary import DaemonState as DaemonState
from .vocabulary import ProxyState as ProxyState
from .vocabulary import name_set as name_set
from .vocabulary import vocabulary_for as vocabulary_for
