"""What `./scripts/scale` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/scale", description="A large installation, simulated.")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: %(default)s)")
    return parser


if __name__ == "__main__":
    parser().parse_args()
