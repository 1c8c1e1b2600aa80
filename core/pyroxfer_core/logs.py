"""Logging by environment: the names of Pyro and our own, and never over what a program set up itself."""

from __future__ import annotations

import logging
import os
from typing import Final

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LEVEL_VARIABLES: Final = ("PYROXFER_LOG_LEVEL", "PYRO_LOGLEVEL")
FILE_VARIABLES: Final = ("PYROXFER_LOG_FILE", "PYRO_LOGFILE")
STANDARD_ERROR: Final = "{stderr}"
"""What Pyro calls standard error where the name of a log file is expected."""
FORMAT: Final = "%(asctime)s %(name)s %(levelname)s %(message)s"


def printable(text: str) -> str:
    """The text with everything that could steer a terminal, or forge a line, written as an escape; it may come from
    anybody."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class OneLine(logging.Formatter):
    """One event, one line, whatever texts of peers are in it; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().formatMessage(record))


def configure_logging(level: str | None = None, file: str | None = None) -> bool:
    """Set up the root logger, unless the program has done so already.

    Args:
        level: one of `LEVELS`, in any case. None: ``PYROXFER_LOG_LEVEL``, then ``PYRO_LOGLEVEL``; without any of
            them nothing is set up, unless ``file`` says where to: then it is INFO.
        file: where to append to; ``{stderr}`` is standard error. None: ``PYROXFER_LOG_FILE``, then ``PYRO_LOGFILE``,
            then standard error.

    Returns:
        whether this call set logging up.

    Raises:
        ValueError: there is no such level; where it came from is told.
        OSError: the file cannot be written.
    """
    level, said_by = (level, "the log level") if level else _first_of(LEVEL_VARIABLES)
    if level is None and file is None:
        return False
    level = level or "INFO"
    if level.upper() not in LEVELS:
        raise ValueError(f"{said_by} is {level!r}; choose one of: {', '.join(LEVELS)}")
    if logging.root.handlers:
        return False
    name = file or _first_of(FILE_VARIABLES)[0] or STANDARD_ERROR
    logging.basicConfig(
        level=level.upper(), format=FORMAT, filename=None if name == STANDARD_ERROR else name, encoding="utf-8"
    )
    for handler in logging.root.handlers:
        handler.setFormatter(OneLine(FORMAT))
    return True


def _first_of(variables: tuple[str, ...]) -> tuple[str | None, str]:
    """The first of these variables that says something, and its name."""
    for variable in variables:
        if value := os.environ.get(variable):
            return value, variable
    return None, ""
