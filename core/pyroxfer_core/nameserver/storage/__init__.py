"""Where the entries of a name server live."""

from .base import Address as Address
from .base import Changes as Changes
from .base import Entry as Entry
from .base import Lease as Lease
from .base import Query as Query
from .base import Registry as Registry
from .choose import open_registry as open_registry
from .memory import MemoryStorage as MemoryStorage
