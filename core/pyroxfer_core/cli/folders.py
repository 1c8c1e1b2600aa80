"""The folders of the user, by the XDG rules."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def config_folder() -> Path:
    """Where the user's configuration is, whether the folder exists or not.

    Raises:
        FileNotFoundError: nothing says where the user's home is.
    """
    return _folder("XDG_CONFIG_HOME", ".config")


def state_folder() -> Path:
    """Where the user's state is kept; the folder is made, for the user alone.

    Raises:
        OSError: it cannot be made or written to, or nothing says where the user's home is.
    """
    folder = _folder("XDG_STATE_HOME", ".local/state")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):  # another user made it, as with sudo
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def _folder(variable: str, below_home: str) -> Path:
    return (Path(os.environ.get(variable) or _home() / below_home)) / "pyroxfer"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user that the system does not know, as in a container
        raise FileNotFoundError(errno.ENOENT, "nothing says where the home folder of this user is", "HOME") from None
