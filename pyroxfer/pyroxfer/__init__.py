"""pyroxfer: move files between machines, verified at both ends, over a Pyro connection.

async with pyroxfer.serve("/srv/files") as server:
    receipt = await pyroxfer.send("report.pdf", to=f"{server.location}/")
"""

from . import errors as errors
from .client import get as get
from .client import ls as ls
from .client import remove as remove
from .client import send as send
from .client import stat as stat
from .dry_run import plan_get as plan_get
from .dry_run import plan_send as plan_send
from .offer import FileEntry as FileEntry
from .offer import Receipt as Receipt
from .planning import Planned as Planned
from .progress import Progress as Progress
from .serving import FileServer as FileServer
from .serving import serve as serve
from .watching import Watched as Watched
from .watching import watch as watch
