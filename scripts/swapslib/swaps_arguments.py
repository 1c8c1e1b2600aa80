"""What `./scripts/swaps` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/swaps", description="Folders swapped for symbolic links: nothing outside may be touched."
    )
    parser.add_argument("--count", type=at_least(int, 1), default=20_000, help="swaps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides what is done when (default: %(default)s)")
    return parser


if __name__ == "__main__":
    parser().parse_args()
