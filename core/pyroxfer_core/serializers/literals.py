"""Python literals as text, read."""

from __future__ import annotations

import ast
from typing import Any, Final

TRIES: Final = 20


def read_literal(text: str) -> Any:
    """The value of a Python literal; fails as ``ast.literal_eval`` does.

    Python 3.11 counts for all threads together how deep the tree is that it builds. When the garbage collector lets
    another thread parse meanwhile, it takes its own count for wrong (SystemError). The text is fine, and read again.
    """
    for _ in range(TRIES):
        try:
            return ast.literal_eval(text)
        except SystemError:
            continue
    return ast.literal_eval(text)
