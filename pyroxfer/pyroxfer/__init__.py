"""pyroxfer: move files between machines, verified at both ends, over a Pyro connection.

async with pyroxfer.serve("/srv/files") as server:
    receipt = await pyroxfer.send("report.pdf", to=f"{server.location}/")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_WHERE = {
    "FileEntry": "offer",
    "FileServer": "serving",
    "Planned": "planning",
    "Progress": "progress",
    "Receipt": "offer",
    "Watched": "watching",
    "errors": "",
    "get": "client",
    "ls": "client",
    "plan_get": "dry_run",
    "plan_send": "dry_run",
    "remove": "client",
    "send": "client",
    "serve": "serving",
    "stat": "client",
    "watch": "watching",
}
"""Public name to the module that has it; none for a module itself. It is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    """Import what has a public name, once."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_WHERE[name] or name}", __name__)
    value = getattr(module, name) if _WHERE[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
