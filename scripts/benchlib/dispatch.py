"""What a dispatcher costs: blobs against Pyro5's own way, transparent mode against HAProxy and a proxy in grpc."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
import tools
from measure import Comparison, Contestant, Effort, Sample, Samples, in_turns
from processes import ALL_CORES, OURS, Cores, Server, command, others, program, run_client, stock

SIZES = {"1 KB": 1024, "64 KB": 65536, "1 MB": 1 << 20}
SPEED_WANTED = {"1 KB": 1.2, "64 KB": 1.2, "1 MB": 1.0}
ADDED_WANTED = {"1 KB": 1 / 0.65, "64 KB": 1 / 0.65, "1 MB": None}
TITLE = "Dispatcher"
HAPROXY = tools.found("haproxy")
NOTE = """\
Blobs: a stock Pyro5 client calls a stock Pyro5 back end (msgpack), directly and through the dispatcher by turns of 50
calls; a hop is the difference of the medians. Transparent: `add(1, 2)` through something that knows nothing of the
call; HAProxy relays bytes (mode tcp), grpc has a generic proxy of its own in front of its own server. In flight: our
client calls our back end with blobs of 1 KB, several at once on its one connection. A ratio above 1 means that ours
is better.""" + ("" if HAPROXY else " HAProxy is not installed here: its rows are left out.")
PYRO5, US = "Pyro5's own way", "our dispatcher"
IN_FLIGHT = (1, 8, 64)
Between = Callable[[str], AbstractContextManager[tuple[str, Server | None]]]
WAYS = ("directly", "HAProxy", US)


def measure(effort: Effort) -> dict[str, Any]:
    """Four tables."""
    print("dispatcher: blobs", file=sys.stderr)
    hops = in_turns(blob_contestants(300 if effort.quick else 2000), effort.repetitions)
    speeds = Samples(
        {name: [Sample(1e6 / one.extra["through"]) for one in taken] for name, taken in hops.rows.items()}
    )
    print("dispatcher: transparent", file=sys.stderr)
    passed = in_turns(list(transparent_contestants(effort.seconds)), effort.repetitions)
    print("dispatcher: blobs in flight", file=sys.stderr)
    in_flight = in_turns(list(in_flight_contestants(effort.seconds)), effort.repetitions)
    return {
        "One blob hop": report.section("µs a hop", hops, blob_comparisons("one hop", ADDED_WANTED, lower=True)),
        "Blobs through": report.section("calls/s", speeds, blob_comparisons("through", SPEED_WANTED, lower=False)),
        "Transparent mode": report.section("calls/s", passed, transparent_comparisons()),
        "Blobs in flight on one connection": report.section("calls/s", in_flight, in_flight_comparisons()),
    }


# -- blobs


def hop_of_pyro5(size: int, calls: int) -> Sample:
    with ExitStack() as running:
        backend = running.enter_context(Server(program(stock(), "pyro5_blob_backend.py")))
        dispatcher = running.enter_context(Server(program(stock(), "pyro5_blob_dispatcher.py", backend.uri)))
        return hop(backend.uri, dispatcher.uri, size, calls)


def hop_of_ours(size: int, calls: int) -> Sample:
    with Server(program(stock(), "pyro5_blob_backend.py")) as backend, ours(backend.uri) as dispatcher:
        return hop(backend.uri, dispatcher.uri, size, calls)


def hop(direct: str, through: str, size: int, calls: int) -> Sample:
    """Median of the calls through the dispatcher less that of the direct calls."""
    result = run_client(program(stock(), "pyro5_blob_client.py", direct, through, size, calls))
    return Sample(result["through"] - result["direct"], {"direct": result["direct"], "through": result["through"]})


def blob_contestants(calls: int) -> list[Contestant]:
    ways = {PYRO5: hop_of_pyro5, US: hop_of_ours}
    return [
        Contestant(f"{name}, {label}", partial(way, size, calls if size <= 65536 else calls // 5))
        for label, size in SIZES.items()
        for name, way in ways.items()
    ]


def blob_comparisons(
    what: str, wanted: dict[str, float | None] | dict[str, float], *, lower: bool
) -> list[Comparison]:
    return [
        Comparison(f"{what}, {label}", f"{US}, {label}", [f"{PYRO5}, {label}"], wanted[label], lower_is_better=lower)
        for label in SIZES
    ]


# -- transparent


def transparent_contestants(seconds: float) -> Iterator[Contestant]:
    for clients in (1, 8):
        server = program(stock(), "pyro5_rpc_server.py", "thread")
        client = program(stock(), "pyro5_rpc_client.py", "{uri}", "serpent", seconds, clients)
        for way in ways():
            yield Contestant(f"stock, {clients} at once, {way}", partial(rate, server, client, way))
    server = program(OURS, "rpc_server.py")
    client = program(OURS, "rpc_client_trio.py", "{uri}", "default", seconds, 8)
    for way in ways():
        yield Contestant(f"ours, 8 in flight, {way}", partial(rate, server, client, way))
    grpc = partial(rate_of_grpc, seconds)
    yield Contestant("grpc, 8 in flight, its generic proxy", grpc)


def in_flight_contestants(seconds: float) -> Iterator[Contestant]:
    server = program(OURS, "blob_server.py")
    for many in IN_FLIGHT:
        client = program(OURS, "blob_client_trio.py", "{uri}", seconds, many)
        for way in ways():
            taken = partial(rate, server, client, way, ours=ours_for_blobs)
            yield Contestant(f"blobs, {many} in flight, {way}", taken)


def in_flight_comparisons() -> list[Comparison]:
    rival = "HAProxy" if HAPROXY else "directly"
    rows = [f"blobs, {many} in flight" for many in IN_FLIGHT]
    return [Comparison(f"{row}, against {rival}", f"{row}, {US}", [f"{row}, {rival}"], None) for row in rows]


def ways() -> list[str]:
    return [way for way in WAYS if way != "HAProxy" or HAPROXY]


def rate(server: list[str], client: list[str], way: str, ours: Between | None = None) -> Sample:
    """Calls a second; ``{uri}`` in the client's command becomes that of whatever is in between.

    Args:
        ours: how our dispatcher is used; by default in transparent mode.
    """
    between = {"directly": directly, "HAProxy": haproxy, US: ours or ours_transparent}[way]
    with Server(server) as backend, between(backend.uri) as (uri, passing):
        return passed_on(passing, [word.replace("{uri}", uri) for word in client])


def rate_of_grpc(seconds: float) -> Sample:
    with (
        Server(program(others(), "others_server.py", "grpc")) as backend,
        Server(program(others(), "grpc_proxy.py", backend.uri)) as proxy,
    ):
        return passed_on(proxy, program(others(), "others_client.py", "grpc", proxy.uri, seconds, 8))


def passed_on(passing: Server | None, client: list[str]) -> Sample:
    """Calls a second, and what they cost what they pass."""
    before = passing.cpu_s() if passing else 0.0
    result = run_client(client)
    used = {}
    if passing:
        per_call = (passing.cpu_s() - before) / result["calls"] * 1e6
        used = {"CPU µs a call in between": per_call, "MiB in between": passing.peak_rss_mib()}
    return Sample(result["calls"] / result["seconds"], used)


def transparent_comparisons() -> list[Comparison]:
    found = []
    if HAPROXY:
        for who, wanted in (("stock, 1 at once", 0.7), ("stock, 8 at once", 0.7), ("ours, 8 in flight", 0.9)):
            found.append(Comparison(f"{who}, against HAProxy", f"{who}, {US}", [f"{who}, HAProxy"], wanted))
    rival = "grpc, 8 in flight, its generic proxy"
    return [*found, Comparison("ours, 8 in flight, against grpc", f"ours, 8 in flight, {US}", [rival], 3.0)]


@contextmanager
def directly(uri: str) -> Iterator[tuple[str, None]]:
    yield uri, None


@contextmanager
def ours(uri: str, on: Cores = ALL_CORES) -> Iterator[Server]:
    """The dispatcher's command before one back end."""
    object_id = uri.removeprefix("PYRO:").partition("@")[0]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "dispatcher.toml"
        config.write_text(
            'listen = "127.0.0.1:0"\nmethods = ["process"]\n[[services]]\nname = "topic"\n'
            f'objects = ["{object_id}"]\n'
            f'[[services.backends]]\nname = "only"\nuri = "{uri}"\n'
        )
        with Server(command("pyroxfer-dispatcher", "run", "-c", config), on) as dispatcher:
            yield dispatcher


@contextmanager
def ours_transparent(uri: str) -> Iterator[tuple[str, Server]]:
    with ours(uri) as dispatcher:
        yield elsewhere(uri, dispatcher.uri.partition("@")[2]), dispatcher


@contextmanager
def ours_for_blobs(uri: str) -> Iterator[tuple[str, Server]]:
    with ours(uri) as dispatcher:
        yield dispatcher.uri, dispatcher


@contextmanager
def haproxy(uri: str) -> Iterator[tuple[str, Server]]:
    """HAProxy relaying one port to the back end's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "haproxy.cfg"
        config.write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
            f"listen relay\n bind {place}\n server only {uri.partition('@')[2]}\n"
        )
        assert HAPROXY is not None
        # It says nothing when it is ready: a shell tells where it is, and becomes it.
        with Server(["sh", "-c", f'echo "PYRO:x@{place}"; exec {HAPROXY} -q -db -f {config}']) as relay:
            wait_for(place)
            yield elsewhere(uri, place), relay


def wait_for(place: str) -> None:
    host, port = place.split(":")
    for _ in range(100):
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nothing listens on {place}")


def elsewhere(uri: str, place: str) -> str:
    """The same object at another place."""
    return f"{uri.partition('@')[0]}@{place}"
