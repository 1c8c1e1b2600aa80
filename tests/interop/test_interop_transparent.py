"""Unmodified clients through the dispatcher: every scenario of the conformance suite, as if it were not there."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matrix
import pytest
from peers import Client, PeerError, Service, StartClient, StartService
from scenarios import EXPECTED, PROTOCOL, SERIALIZERS, STOCK, client_cannot, either_cannot, expected_of_stock
from trio_scenarios import SCENARIOS

from pyroxfer_core import Proxy, Settings
from pyroxfer_core.errors import PyroError

CONFIG = """
listen = "localhost:0"
default = "all"
[[services]]
name = "all"
objects = ["*"]
stateless = {stateless}
[[services.backends]]
name = "only"
uri = "{uri}"
"""


class Through:
    """A service as clients find it behind the dispatcher: the same objects at another place."""

    def __init__(self, behind: Service, location: str) -> None:
        self.library = behind.library
        self.uris = {name: uri.replace(uri.partition("@")[2], location) for name, uri in behind.uris.items()}

    @property
    def uri(self) -> str:
        return self.uris["shared"]


StartThrough = Callable[..., Any]


@pytest.fixture(scope="session")
def through(service: StartService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartThrough]:
    """``through(library, *options, stateless=False)``: that daemon behind a dispatcher of its own."""
    with ExitStack() as stack:
        running: dict[object, Through] = {}

        def start(library: str, *options: str, stateless: bool = False) -> Through:
            key = (library, options, stateless)
            if key not in running:
                behind = service(library, *options)
                path = tmp_path_factory.mktemp("dispatcher") / "d.toml"
                path.write_text(CONFIG.format(uri=behind.uri, stateless=str(stateless).lower()))
                running[key] = Through(behind, stack.enter_context(Running(path)).location)
            return running[key]

        yield start


class Running:
    """The dispatcher's command."""

    def __init__(self, path: Path) -> None:
        program = "from pyroxfer_dispatcher.cli import main; main()"
        command = [sys.executable, "-c", program, "run", "-c", str(path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"ready: \S+@(\S+)", self._process.stdout.readline())
        assert found
        self.location = found[1]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


MODES = ("pinned", "spread")
WAYS = [*(("pinned", name) for name in SERIALIZERS), ("spread", "serpent")]
PAIRS = [(client, backend) for client in STOCK for backend in (client, "trio")]


def pair_cannot(parameters: Mapping[str, Any]) -> matrix.Unable | None:
    return (either_cannot if parameters["backend"] in STOCK else client_cannot)(parameters)


@matrix.cell(
    "through the dispatcher, {mode}: stock {library} client", column="{backend} {serializer}", cannot=pair_cannot
)
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize(("mode", "serializer"), WAYS)
@pytest.mark.parametrize(("library", "backend"), PAIRS)
def test_stock_client(
    client: StartClient,
    through: StartThrough,
    library: str,
    backend: str,
    mode: str,
    serializer: str,
    scenario: str,
) -> None:
    """A stock client sees through the dispatcher what it sees without it."""
    cannot = pair_cannot({"scenario": scenario, "serializer": serializer, "backend": backend})
    stock, daemon = client(library), through(backend, stateless=mode == "spread")
    wanted = expected_of_stock(scenario, serializer) if backend in STOCK else EXPECTED[scenario]
    if cannot is None:
        assert stock.play(scenario, daemon, serializer) == wanted
    else:
        with pytest.raises(PeerError, match=cannot.match):
            stock.play(scenario, daemon, serializer)


PUSHED = ("trio", "pinned", "stream_linger")
"""Two ends of ours: items that were pushed go down with their connection; what comes next is a later one, or none."""


@matrix.cell("through the dispatcher, {mode}: our trio proxy", column="{backend} msgpack")
@pytest.mark.parametrize("scenario", EXPECTED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ("pyro5", "trio"))
async def test_trio_proxy(through: StartThrough, backend: str, mode: str, scenario: str) -> None:
    """So does a proxy of ours, whose own agreements with a daemon of ours pass through or stay away."""
    daemon = through(backend, stateless=mode == "spread")
    settings = Settings(serializer="msgpack", protocol=PROTOCOL.get(backend))
    async with Proxy(daemon.uri, settings=settings) as proxy:
        if (backend, mode, scenario) == PUSHED:
            with contextlib.suppress(PyroError):
                first, later = await SCENARIOS[scenario](proxy, daemon, settings)
                assert (first, later > 0) == (0, True)
            return
        assert await SCENARIOS[scenario](proxy, daemon, settings) == EXPECTED[scenario]


@pytest.mark.parametrize("scenario", ("calls", "exceptions", "stream", "oneway", "annotations"))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extra", ("hmac", "compression"))
def test_stock_client_with(client: StartClient, through: StartThrough, mode: str, extra: str, scenario: str) -> None:
    """Signed and compressed messages pass as they are: a signature stays valid."""
    options = ("--key", "secret") if extra == "hmac" else ("--compression",)
    daemon = through("pyro4", *options, stateless=mode == "spread")
    given: dict[str, Any] = {"key": "secret"} if extra == "hmac" else {"compression": True}
    assert client("pyro4").play(scenario, daemon, "serpent", **given) == EXPECTED[scenario]


def test_client_of_the_other_protocol_is_refused_with_the_reason(through: StartThrough) -> None:
    """A body of one protocol means nothing to a daemon of the other: the client is told at once."""
    with Client("pyro4") as peer, pytest.raises(PeerError, match=r"does not speak protocol 48|protocol version"):
        peer.play("calls", through("pyro5"), "serpent")
