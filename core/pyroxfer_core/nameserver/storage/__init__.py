"""Where the entries of a name server live."""

from .base import Entry as Entry
from .base import Query as Query
from .base import Storage as Storage
from .choose import open_storage as open_storage
from .memory import MemoryStorage as MemoryStorage
