"""Real Pyro4 and Pyro5 through the dispatcher, in processes of their own, in every combination of the two."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matrix
import pytest
from peers import ANSWER_WITHIN_S, PROGRAMS, PeerProcess, stock_python

from pyroxfer_core import Proxy, SerializedBlob, Settings

pytestmark = pytest.mark.interop

LIBRARIES = ("pyro4", "pyro5")
SERIALIZERS = ("serpent", "json", "marshal", "msgpack")
HEAD = """
listen = "localhost:0"
methods = ["process", "fail", "stream", "notify"]
oneway = ["notify"]
{head}
"""


class Backend(PeerProcess):
    """A stock backend."""

    def __init__(self, library: str, name: str) -> None:
        super().__init__(stock_python(), str(PROGRAMS / "blob_backend.py"), library, name)
        self.name = name
        self.uri: str = self.read_answer()["uri"]

    def ran(self) -> list[Any]:
        """Method and info of every call so far."""
        answer: list[Any] = self.ask("what?")
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Dispatching:
    """The dispatcher's command in front of some backends."""

    def __init__(self, path: Path, services: dict[str, list[Backend]], head: str = "") -> None:
        text = HEAD.format(head=head)
        for service, backends in services.items():
            text += f'[[services]]\nname = "{service}"\npolicy = "round-robin"\n'
            for backend in backends:
                text += f'[[services.backends]]\nname = "{backend.name}"\nuri = "{backend.uri}"\n'
        path.write_text(text)
        program = "from pyroxfer_dispatcher.cli import main; main()"
        command = [sys.executable, "-c", program, "run", "-c", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"ready: (\S+)", self.process.stdout.readline())
        assert found
        self.uri = found[1]

    def __enter__(self) -> Dispatching:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


StartBackend = Callable[[str, str], Backend]
StartDispatcher = Callable[..., Dispatching]


@pytest.fixture
def backend() -> Iterator[StartBackend]:
    """``backend(library, name)`` starts a backend of the test's own."""
    with ExitStack() as stack:
        yield lambda library, name: stack.enter_context(Backend(library, name))


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[StartDispatcher]:
    """``dispatcher({service: backends}, head="…")`` starts the dispatcher in front of backends."""
    with ExitStack() as stack:
        yield lambda services, head="": stack.enter_context(Dispatching(tmp_path / "d.toml", services, head))


@pytest.fixture
def blob_client() -> Iterator[Callable[[str], PeerProcess]]:
    """``blob_client(library)`` starts a client program."""
    with ExitStack() as stack:
        program = str(PROGRAMS / "blob_client.py")
        yield lambda library: stack.enter_context(PeerProcess(stock_python(), program, library))


@matrix.cell("blobs through the dispatcher, all serializers", "{client_library} client", "{backend_library} backend")
@pytest.mark.parametrize("backend_library", LIBRARIES)
@pytest.mark.parametrize("client_library", LIBRARIES)
def test_stock_clients_reach_stock_backends(
    client_library: str,
    backend_library: str,
    backend: StartBackend,
    dispatcher: StartDispatcher,
    blob_client: Callable[[str], PeerProcess],
) -> None:
    """Results, exceptions, one-way calls and item streams, in all serializers, plain and compressed."""
    backends = [backend(backend_library, name) for name in ("a", "b")]
    running = dispatcher({"orders": backends})
    client = blob_client(client_library)
    for serializer in SERIALIZERS:
        for compress in (False, True):
            data = [1, "x" * 300, {"k": [1.5, None]}]
            seen = client.ask(
                {"uri": running.uri, "serializer": serializer, "compress": compress, "info": "orders", "data": data}
            )
            results = [*seen["process"], seen["after"]]
            assert [(result["info"], result["data"]) for result in results] == [("orders", data)] * 3
            assert {result["backend"] for result in seen["process"]} == {"a", "b"}
            assert seen["fail"] == ["ValueError", "not today"]
            assert seen["notify"] is None
            assert [number for _, number in seen["stream"]] == [0, 1, 2]
            assert len({name for name, _ in seen["stream"]}) == 1
            assert seen["no route"] == ["PyroError", "NotSent: no route for topic 'nowhere'"]
            assert seen["unknown method"][0] == "AttributeError"
    rounds = 2 * len(SERIALIZERS)
    expected = {"process": 3 * rounds, "fail": rounds, "notify": rounds}

    def counts() -> dict[str, int]:
        ran = [call for each in backends for call in each.ran()]
        return {name: ran.count([name, "orders"]) for name in expected}

    until = time.monotonic() + ANSWER_WITHIN_S
    while counts()["notify"] < rounds and time.monotonic() < until:
        time.sleep(0.05)  # a stock daemon runs one-way calls in threads that nobody waits for
    assert counts() == expected


@matrix.cell("blobs through the dispatcher, all serializers", "{client_library} client", "backends of both")
@pytest.mark.parametrize("client_library", LIBRARIES)
def test_both_libraries_serve_one_service(
    client_library: str,
    backend: StartBackend,
    dispatcher: StartDispatcher,
    blob_client: Callable[[str], PeerProcess],
) -> None:
    """One client, two backends that speak different protocols, calls in turn."""
    running = dispatcher({"orders": [backend("pyro4", "four"), backend("pyro5", "five")]})
    client = blob_client(client_library)
    for serializer in SERIALIZERS:
        seen = client.ask({"uri": running.uri, "serializer": serializer, "info": ["orders", 5], "data": [1]})
        assert {result["backend"] for result in seen["process"]} == {"four", "five"}


@pytest.mark.parametrize("client_library", LIBRARIES)
def test_a_killed_backend_is_an_error_at_once_and_never_a_hang(
    client_library: str,
    backend: StartBackend,
    dispatcher: StartDispatcher,
    blob_client: Callable[[str], PeerProcess],
) -> None:
    """While one backend lives all calls succeed; without any the error is NotSent, and the client is not cut off."""
    first, second = backend("pyro5", "a"), backend("pyro4", "b")
    running = dispatcher({"orders": [first, second]})
    client = blob_client(client_library)
    question = {"uri": running.uri, "serializer": "serpent", "info": "orders", "data": [1], "just call": True}
    assert client.ask(question) == [None, None]
    first.kill()
    assert client.ask(question) == [None, None]
    second.kill()
    for name, text in client.ask(question):
        assert name == "PyroError"
        assert text.startswith("NotSent: no live backend of service 'orders': a is down")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_our_proxy_reaches_stock_backends(
    library: str, serializer: str, backend: StartBackend, dispatcher: StartDispatcher
) -> None:
    one = backend(library, "a")
    running = dispatcher({"orders": [one]})
    async with Proxy(running.uri, settings=Settings(serializer=serializer)) as proxy:
        assert (await proxy.process(SerializedBlob("orders", [1, "two"])))["data"] == [1, "two"]
        with pytest.raises(ValueError, match="not today"):
            await proxy.fail(SerializedBlob("orders", [1]))
        assert [item async for item in proxy.stream(SerializedBlob("orders", []))] == [["a", n] for n in range(3)]


@pytest.fixture
def name_server() -> Iterator[int]:
    """Port of a name server of ours."""
    program = "from pyroxfer_core.cli.ns import ns; ns()"
    command = [sys.executable, "-c", program, "-n", "localhost", "-p", "0", "-x", "-s", "memory"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(int(found[1]) for line in process.stdout if (found := re.search(r"URI = \S+:(\d+)$", line)))
        finally:
            process.terminate()


@pytest.mark.parametrize("library", LIBRARIES)
def test_clients_find_it_by_its_name(
    library: str,
    name_server: int,
    backend: StartBackend,
    dispatcher: StartDispatcher,
    blob_client: Callable[[str], PeerProcess],
) -> None:
    """Registered in a name server while it runs, under the object id of an existing program."""
    place = f"localhost:{name_server}"
    head = f'object = "example.dispatcher"\nregister = "example.dispatcher"\nnameserver = "{place}"'
    running = dispatcher({"orders": [backend(library, "a")]}, head)
    question = {"uri": f"PYRONAME:example.dispatcher@{place}", "serializer": "serpent", "info": "orders", "data": [1]}
    assert blob_client(library).ask(question)["after"]["backend"] == "a"
    running.process.terminate()
    running.process.wait(60)
    gone = blob_client(library).ask({**question, "just call": True})
    assert [text for _, text in gone] == ["unknown name: example.dispatcher"] * 2
