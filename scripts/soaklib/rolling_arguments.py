"""What `./scripts/rolling` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/rolling", description="Restarts under load that nobody notices.")
    parser.add_argument("--count", type=at_least(int, 1), default=60, help="restarts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides who is restarted when (default: %(default)s)")
    parser.add_argument(
        "--callers", type=at_least(int, 1), default=2, help="of each kind, for each way (default: %(default)s)"
    )
    parser.add_argument("--own", action="store_true", help="no stock clients; back ends are not always drained first")
    return parser


if __name__ == "__main__":
    parser().parse_args()
