"""What `./scripts/profile` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sharedlib"))
from numbers_wanted import at_least

WORKS = {
    "call": ("a small call: so many in flight, or the proxy that waits", ("1", "64", "blocking")),
    "block": ("256 KiB of a file, by channel", ("annot", "iter", "raw")),
    "blob": ("a blob through the dispatcher, so many in flight", ("64",)),
}
"""What can be profiled, and in which ways; the first is the default."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/profile", description="Where the microseconds go, on one core, by room."
    )
    kinds = parser.add_subparsers(dest="work", required=True, metavar="call|block|blob", help="what is profiled")
    for name, (what, ways) in WORKS.items():
        kind = kinds.add_parser(name, help=what, description=what)
        kind.add_argument("way", nargs="?", choices=ways, default=ways[0], help="(default: %(default)s)")
        kind.add_argument("--seconds", type=at_least(float, 0.1), default=2.0, help="of load (default: %(default)g)")
        kind.add_argument("--save", type=Path, help="write the figures there")
        kind.add_argument("--against", type=Path, help="compare with figures that were saved")
    return parser


if __name__ == "__main__":
    parser().parse_args()
