"""Fetch a file from a pyroxfer file server with nothing but stock Pyro5 (and its serpent).

    python stock_fetch.py HOST:PORT REMOTE_PATH LOCAL_PATH [iter|annot]
    python stock_fetch.py HOST:PORT                        (lists the served folder)

`iter` reads the file as a stream of items, `annot` as blocks in the annotations of answers, which go past the
serializer and are many times faster. Both work with Pyro4 too: import Pyro4 instead, and keep blocks at 60 KiB.
"""

import sys

import serpent
from Pyro5.api import Proxy, current_context

BLOCK = 512 * 1024


def by_items(server, path, file):
    """One item of 256 KiB a round trip."""
    for item in server.fetch(path):
        file.write(serpent.tobytes(item))


def by_annotations(server, path, file):
    """One block a call, in the annotation XFER of the answer."""
    offset, size = 0, server.stat(path)["size"]
    while offset < size:
        count = server.fetch_block(path, offset, BLOCK)
        block = current_context.response_annotations["XFER"]
        assert len(block) == count
        file.write(block)
        offset += count


def main():
    location, *rest = sys.argv[1:]
    with Proxy(f"PYRO:pyroxfer.files@{location}") as server:
        if not rest:
            for entry in server.list(""):
                print(f"{entry['kind']:8} {entry['size']:>12} {entry['path']}")
            return
        remote, local = rest[:2]
        fetch = by_annotations if rest[2:] == ["annot"] else by_items
        with open(local, "wb") as file:
            fetch(server, remote, file)


if __name__ == "__main__":
    main()
