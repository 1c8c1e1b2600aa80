"""What `./scripts/swaps` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/swaps", description="Folders swapped for symbolic links: nothing outside may be touched."
    )
    parser.add_argument("--count", type=int, default=20_000, help="swaps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides what is done when (default: %(default)s)")
    return parser


if __name__ == "__main__":
    parser().parse_args()
