"""What `./scripts/soak` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/soak", description="Mixed load with faults.")
    parser.add_argument("--minutes", type=at_least(float, 0.01), default=60.0, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="what happens is drawn from it (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=at_least(int, 1),
        default=1,
        help="processes of each file server; with several, one of them is killed now and then (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    parser().parse_args()
