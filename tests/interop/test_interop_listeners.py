"""The listeners of Pyro's blob dispatch example, unchanged: stock programs that register and are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import matrix
import pytest
from peers import PROGRAMS, PeerProcess, stock_python
from test_interop_transparent import Running

from pyroxfer_core import Proxy, SerializedBlob, Settings

CONFIG = """
listen = "localhost:0"
methods = ["process_blob"]
[[services]]
name = "events"
match = "*"
listeners = "all"
"""


class Listener(PeerProcess):
    """A stock listener, registered."""

    def __init__(self, library: str, uri: str, topic: str, serializer: str) -> None:
        program = str(PROGRAMS / "blob_listener.py")
        super().__init__(stock_python(), program, library, uri, topic, serializer)
        assert self.read_answer() == "registered"

    def heard(self) -> list[list[object]]:
        answer: list[list[object]] = self.ask("what?")
        return answer


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[str]:
    """Where a dispatcher is that takes listeners."""
    path = tmp_path / "d.toml"
    path.write_text(CONFIG)
    with Running(path) as running:
        yield f"PYRO:pyroxfer.dispatcher@{running.location}"


@matrix.cell(
    "blobs through the dispatcher, listeners of topics",
    "stock listeners of both libraries",
    "serpent, msgpack, marshal",
)
async def test_stock_listeners_of_both_libraries_hear_the_blobs_of_their_topics(dispatcher: str) -> None:
    """Whatever the serializer and the protocol, each listener of the topic is called once for each blob."""
    with ExitStack() as stack:
        four, five, other = (
            stack.enter_context(Listener(library, dispatcher, topic, serializer))
            for library, topic, serializer in (
                ("pyro4", "news", "serpent"),
                ("pyro5", "news", "msgpack"),
                ("pyro5", "weather", "json"),
            )
        )
        for serializer in ("serpent", "msgpack", "marshal"):
            async with Proxy(dispatcher, settings=Settings(serializer=serializer)) as proxy:
                assert await proxy.process_blob(SerializedBlob("news", [serializer, 1])) is None
        expected = [["news", [serializer, 1]] for serializer in ("serpent", "msgpack", "marshal")]
        assert four.heard() == expected
        assert five.heard() == expected
        assert other.heard() == []
