"""A short slice of the campaign that cuts connections at every byte, and proof that it would see a lie."""

from __future__ import annotations

from random import Random

import pytest
from cuts import Report, allowed, cut_pair, places_of
from doubles import fault_proxy
from sides import OurClient, OurDaemon, our_daemon, pairs

from pyroxfer_core import Settings

OURS = [name for name in pairs() if "Pyro" not in name]
WITH_STOCK = [name for name in pairs() if "Pyro" in name]


async def cut_some(name: str, count: int) -> Report:
    daemon, client = pairs()[name]
    async with daemon as server, client as caller:
        return await cut_pair(name, server, caller, count, seed=5)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("name", OURS)
async def test_what_callers_are_told_is_what_ran(name: str) -> None:
    """Wherever the connection breaks, in either direction."""
    report = await cut_some(name, 40)
    assert report.violations == []
    assert len(report.outcomes) >= 2


@pytest.mark.interop
@pytest.mark.deadline(120)
@pytest.mark.parametrize("name", WITH_STOCK)
async def test_the_same_with_stock_peers(name: str) -> None:
    report = await cut_some(name, 20)
    assert report.violations == []
    assert sum(report.outcomes.values()) == 20


class Liar(OurClient):
    """Says that nothing was sent, whatever happened."""

    async def call(self, location: str, method: str, name: str) -> str:
        await super().call(location, method, name)
        return "notsent"


class Repeater(OurClient):
    """Sends every call twice."""

    async def call(self, location: str, method: str, name: str) -> str:
        await super().call(location, method, name)
        return await super().call(location, method, name)


@pytest.mark.parametrize("kind", [Liar, Repeater])
async def test_the_campaign_sees_a_client_that_lies(kind: type[OurClient]) -> None:
    async with our_daemon() as server:
        report = await cut_pair("lies", server, kind(Settings(), ("run",)), 30, seed=1)
    assert report.violations
    assert "told" in report.violations[0]


async def test_the_campaign_sees_a_daemon_that_runs_calls_twice() -> None:
    class Doubling(OurDaemon):
        async def counts(self) -> dict[str, int]:
            return {name: 2 * count for name, count in (await super().counts()).items()}

    daemon, _ = pairs()[OURS[0]]
    async with daemon as server:
        assert isinstance(server, OurDaemon)
        server.__class__ = Doubling
        report = await cut_pair("doubles", server, OurClient(Settings(), ("run",)), 30, seed=1)
    assert report.violations


@pytest.mark.parametrize(
    ("method", "outcome", "runs"),
    [
        ("run", "notsent", {0}),
        ("run", "executed", {1}),
        ("run", "value", {1}),
        ("run", "unknown", {0, 1}),
        ("keyed", "value", {1}),
        ("look", "value", {1, 2, 3}),
        ("look", "notsent", {0}),
        ("note", "value", {0, 1}),
        ("run", "something else", set()),
    ],
)
def test_what_may_have_run(method: str, outcome: str, runs: set[int]) -> None:
    assert allowed(method, outcome) == runs


async def test_every_byte_of_a_conversation_is_a_place() -> None:
    """Both directions, from before the first byte to after the last."""
    async with our_daemon() as server, fault_proxy(server.location) as relay:
        client = OurClient(Settings(), ("run",))
        places = await places_of(client, relay, Random(1))
        sizes = {direction: max(offset for _, at, offset in places if at == direction) for _, direction, _ in places}
        assert sorted(places) == sorted(
            ("run", direction, offset) for direction, size in sizes.items() for offset in range(size + 1)
        )
        assert min(sizes.values()) > 100
