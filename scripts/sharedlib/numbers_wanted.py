"""Numbers on the command line of a script. Standard library only: they are asked before an environment is made."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def at_least(kind: Callable[[str], float], least: float) -> Callable[[str], Any]:
    """A number for the command line, not below ``least``."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least}")
        return value

    number.__name__ = kind.__name__  # argparse tells it of a text that is no number at all
    return number
