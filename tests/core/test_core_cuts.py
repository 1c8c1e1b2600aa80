"""The outcome oracle: a connection cut at every byte of a call, and a counter in the server that knows better."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from doubles import FaultProxy, fault_proxy

from pyroxfer_core import Daemon, Proxy, Settings, expose, oneway
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError

CLIENTS = {
    "own": Settings(),
    "48": Settings(protocol=48),
    "502 json": Settings(protocol=502, serializer="json"),
}
EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
ALLOWED = {Outcome.NOT_SENT: {0}, Outcome.UNKNOWN: {0, 1}, Outcome.EXECUTED: {1}}


@expose
class Oracle:
    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()

    async def run(self, name: str) -> str:
        self.executed[name] += 1
        return name

    async def run_later(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        self.executed[name] += 1
        return name

    def run_in_thread(self, name: str) -> str:
        self.executed[name] += 1
        return name

    async def fail(self, name: str) -> None:
        self.executed[name] += 1
        raise LookupError(name)

    @oneway
    async def note(self, name: str) -> None:
        self.executed[name] += 1


async def attempt(proxy: Proxy, method: str, name: str) -> Outcome | None:
    """What the caller is told about a call; None that it simply worked."""
    try:
        assert await getattr(proxy, method)(name) in (name, None)
    except LookupError:
        return Outcome.EXECUTED
    except CommunicationError as error:
        assert error.outcome is not None, error
        return error.outcome
    return None


async def cut_connected(
    oracle: Oracle, relay: FaultProxy, client: Settings, method: str, direction: str, after: int
) -> None:
    """A call on a connection that breaks ``after`` bytes into it, in one direction."""
    name = f"{direction} {after}"
    async with Proxy(f"PYRO:oracle@{relay.location}", settings=client) as proxy:
        relay.cut_next()
        await proxy.run("warm up")
        relay.cut_in(**{direction: after})
        outcome = await attempt(proxy, method, name)
        if method != "note" or outcome is Outcome.NOT_SENT:
            expected = {1} if outcome is None else ALLOWED[outcome]
            assert oracle.executed[name] in expected, (name, outcome)
        assert oracle.executed[name] <= 1
        following = await attempt(proxy, "run", f"next {name}")
        if method == "note" or outcome in (None, Outcome.EXECUTED):  # the cut may come only now
            assert oracle.executed[f"next {name}"] in ({1} if following is None else ALLOWED[following])
        else:
            assert following is None, "the next call is right"


@pytest.mark.deadline(240)
@EVERY_CLIENT
@pytest.mark.parametrize("method", ["run", "run_later", "run_in_thread", "fail", "note"])
async def test_a_call_cut_at_every_byte(client: Settings, method: str) -> None:
    oracle = Oracle()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(oracle, "oracle")
        async with fault_proxy(daemon.location) as relay:
            sizes = await measure(relay, client, method)
            for direction, size in zip(("to_server", "to_client"), sizes, strict=True):
                for after in offsets(size):
                    await cut_connected(oracle, relay, client, method, direction, after)
    assert max(oracle.executed[name] for name in oracle.executed if name != "warm up") == 1


def offsets(size: int) -> list[int]:
    """Every byte of small messages; of large ones (tracebacks) the first and last 150, and some between."""
    return (
        list(range(size + 1)) if size <= 300 else [*range(150), *range(150, size - 150, 97), *range(size - 150, size)]
    )


async def measure(relay: FaultProxy, client: Settings, method: str) -> tuple[int, int]:
    """Bytes of one call to the server and back."""
    async with Proxy(f"PYRO:oracle@{relay.location}", settings=client) as proxy:
        relay.cut_next()
        await proxy.run("warm up")
        await trio.testing.wait_all_tasks_blocked()
        before = tuple(relay.counted)
        await attempt(proxy, method, "to_server 00")
        await trio.testing.wait_all_tasks_blocked(0.005)
        to_server, to_client = (now - then for now, then in zip(relay.counted, before, strict=True))
        return to_server, to_client


@pytest.mark.deadline(240)
@EVERY_CLIENT
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_first_call_cut_at_every_byte_of_the_handshake(client: Settings, direction: str) -> None:
    oracle = Oracle()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(oracle, "oracle")
        async with fault_proxy(daemon.location) as relay:
            relay.cut_next()
            async with Proxy(f"PYRO:oracle@{relay.location}", settings=client) as proxy:
                await proxy.run("whole")
            size = relay.counted[direction == "to_client"]
            assert size > 100
            for after in range(0, size + 1, 2):
                name = f"first {after}"
                relay.cut_next(**{direction: after})
                async with Proxy(f"PYRO:oracle@{relay.location}", settings=client) as proxy:
                    outcome = await attempt(proxy, "run", name)
                    assert oracle.executed[name] in ({1} if outcome is None else ALLOWED[outcome]), (name, outcome)
                    assert await attempt(proxy, "run", f"next {name}") is None


async def test_concurrent_calls_cut_together() -> None:
    """Every call gets an outcome of its own, and the counter agrees with each."""
    oracle = Oracle()
    told: dict[str, Outcome | None] = {}
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(oracle, "oracle")
        async with fault_proxy(daemon.location) as relay:
            for after in range(0, 900, 30):
                relay.cut_next()
                async with Proxy(f"PYRO:oracle@{relay.location}") as proxy:
                    await proxy.run("warm up")
                    relay.cut_in(to_server=after)

                    async def call(name: str, proxy: Proxy = proxy) -> None:
                        told[name] = await attempt(proxy, "run", name)

                    async with trio.open_nursery() as nursery:
                        for number in range(8):
                            nursery.start_soon(call, f"{after} {number}")
    for name, outcome in told.items():
        assert oracle.executed[name] in ({1} if outcome is None else ALLOWED[outcome]), (name, outcome)
    assert Outcome.UNKNOWN in told.values()


@pytest.mark.parametrize("read_ahead", [1, 3])
@pytest.mark.parametrize("client", [Settings(), Settings(protocol=48)], ids=["own", "48"])
async def test_a_stream_cut_anywhere_gives_a_prefix(client: Settings, read_ahead: int) -> None:
    @expose
    class Source:
        async def items(self) -> Any:
            for number in range(5):
                yield number

    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(Source(), "oracle")
        async with fault_proxy(daemon.location) as relay:
            for after in range(0, 1500, 37):
                relay.cut_next(to_client=after)
                seen = []
                async with Proxy(f"PYRO:oracle@{relay.location}", settings=client) as proxy:
                    try:
                        async for item in proxy.items.options(read_ahead=read_ahead)():
                            seen.append(item)
                    except PyroError as error:
                        assert isinstance(error, CommunicationError)
                        assert error.outcome is not None
                    else:
                        assert seen == list(range(5))
                assert seen == list(range(len(seen)))
