"""The name server: names to URIs, over the network and in a program."""

from .keeping import Registration as Registration
from .keeping import keep_registered as keep_registered
from .lookup import locate_ns as locate_ns
from .lookup import read_entries as read_entries
from .lookup import resolve as resolve
from .server import RunningNameServer as RunningNameServer
from .server import start_ns as start_ns
from .service import NameServer as NameServer
from .storage import Address as Address
from .storage import Changes as Changes
from .storage import Entry as Entry
from .storage import Lease as Lease
from .storage import Query as Query
from .storage import Registry as Registry
from .storage import open_registry as open_registry
