"""What `./scripts/dispatch-memory` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/dispatch-memory", description="Large messages in bounded memory."
    )
    parser.add_argument(
        "--clients", type=at_least(int, 1), default=64, help="that send at once (default: %(default)s)"
    )
    parser.add_argument(
        "--mib", type=at_least(int, 1), default=256, help="size of each message (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    parser().parse_args()
