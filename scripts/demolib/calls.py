"""Blob calls through the dispatcher."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator

import trio
from services import BACKENDS, TOPIC, Appliance
from table import Row

from pyroxfer_core import Proxy, SerializedBlob, Settings

SIZES = {"1 KiB": 1024, "1 MiB": 1024 * 1024}
CALLS = 200


def blob_calls(appliance: Appliance) -> Iterator[Row]:
    """A row for each size: every answer must be the right digest, and every back end must have had its turn."""
    for label, size in SIZES.items():
        yield trio.run(call, appliance, label, size)


async def call(appliance: Appliance, label: str, size: int) -> Row:
    data = os.urandom(size)
    wanted = hashlib.sha256(data).hexdigest()
    served: Counter[str] = Counter()
    right = 0
    settings = Settings(serializer="msgpack")  # knows bytes; what a dispatcher passes on is never written anew
    async with Proxy(f"PYRO:pyroxfer.dispatcher@{appliance.dispatcher}", settings=settings) as dispatcher:
        begin = time.perf_counter()
        for _ in range(CALLS):
            backend, digest = await dispatcher.process(SerializedBlob(TOPIC, [data]))
            served[backend] += 1
            right += digest == wanted
        seconds = time.perf_counter() - begin
    shares = ", ".join(f"{name} {served[name]}" for name in BACKENDS)
    verified = right == CALLS and all(served[name] for name in BACKENDS)
    return Row(f"{CALLS} blobs of {label}", "dispatcher", CALLS * size, seconds, shares, verified)
