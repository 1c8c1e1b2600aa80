"""What `./scripts/cuts` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/cuts", description="Breaks connections at every byte; callers must be told what ran."
    )
    parser.add_argument(
        "--count", type=at_least(int, 1), help="cuts of all pairs together; without it every place once"
    )
    parser.add_argument("--seed", type=int, default=1, help="which places come first")
    parser.add_argument("--pair", default="", metavar="TEXT", help="only pairs with this in their names")
    return parser


if __name__ == "__main__":
    parser().parse_args()
