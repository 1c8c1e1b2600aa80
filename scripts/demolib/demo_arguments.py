"""What `./scripts/demo` may be told. Standard library only: it is asked before an environment is made."""

from __future__ import annotations

import argparse
import re

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/demo", description="The whole appliance on real files.")
    parser.add_argument("--keep", action="store_true", help="leave the services up until Ctrl-C and say what to try")
    parser.add_argument(
        "--size", type=size_in_bytes, default="1GiB", help="size of the large file (default: %(default)s)"
    )
    return parser


def size_in_bytes(text: str) -> int:
    """``1GiB``, ``100MiB``, ``5000``."""
    match = re.fullmatch(r"(\d+) ?(|[KMG]iB)", text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1GiB or 100MiB")
    return int(match[1]) * UNITS[match[2]]


if __name__ == "__main__":
    parser().parse_args()
