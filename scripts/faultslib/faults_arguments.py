"""What `./scripts/faults` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/faults", description="Transfers under faults: exit 0 must mean equal bytes."
    )
    parser.add_argument("--count", type=at_least(int, 1), default=10_000, help="fault runs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which faults (default: %(default)s)")
    return parser


if __name__ == "__main__":
    parser().parse_args()
