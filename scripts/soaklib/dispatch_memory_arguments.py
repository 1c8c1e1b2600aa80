"""What `./scripts/dispatch-memory` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/dispatch-memory", description="Large messages in bounded memory."
    )
    parser.add_argument("--clients", type=int, default=64, help="that send at once (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=256, help="size of each message (default: %(default)s)")
    return parser


if __name__ == "__main__":
    parser().parse_args()
