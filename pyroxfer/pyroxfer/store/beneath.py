"""openat2(2): a path below a folder in one step that cannot leave it or pass through a link. Blocking.

Only ever a shorter way: whoever gets None walks component by component, and learns from that what is wrong.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Final

_NUMBER: Final = 437
"""Of the system call: one for every architecture that came before it, but for Alpha."""
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BENEATH: Final = 0x08
"""From linux/openat2.h."""


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _syscall() -> ctypes._NamedFuncPointer | None:
    """syscall(2) of the C library, where the system call may have this number."""
    if not sys.platform.startswith("linux") or os.uname().machine == "alpha":
        return None
    function = ctypes.CDLL(None).syscall
    function.restype = ctypes.c_long
    function.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)
    return function


def open_beneath(folder_fd: int, path: str, flags: int) -> int | None:
    """A descriptor of what is at a relative path below an open folder; None for every error, and where the kernel
    does not know how or somebody keeps it from it."""
    function = _syscall()
    if function is None:
        return None
    how = _How(flags, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    fd = function(_NUMBER, folder_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    return fd if fd >= 0 else None
