"""How long calls take: quantiles out of buckets, of a while only, and histograms that Prometheus reads."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from doubles_dispatch import ask, blob, echo, http, operated, raw_backend, raw_client, service_of
from doubles_plays import Stage, called, reply, request
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pyroxfer_core import Uri
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.admission import Ticket
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.commands import ReleaseBackend, Reply
from pyroxfer_dispatcher.config import parse_config
from pyroxfer_dispatcher.events import BackendLost, BlobArrived, ReplyArrived
from pyroxfer_dispatcher.latency import BOUNDS, WINDOW_S, Histogram, Recent

TIMES = st.floats(BOUNDS[0], BOUNDS[-1])


@given(st.lists(TIMES, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_a_fifth_of_the_truth(times: list[float], part: float) -> None:
    recent = Recent()
    for seconds in times:
        recent.add(seconds, 0.0)
    found = recent.quantile(part, 0.0)
    truth = sorted(times)[math.ceil(part * len(times)) - 1]
    assert found is not None
    assert truth / 1.2 <= found <= truth * 1.2


def test_quantiles_forget() -> None:
    """The last one or two minutes count, and nothing before."""
    recent = Recent()
    assert recent.quantile(0.5, 0.0) is None
    for _ in range(100):
        recent.add(1.0, 0.0)
    recent.add(0.01, WINDOW_S)
    assert recent.quantile(0.5, WINDOW_S) == pytest.approx(1.0, rel=0.2)
    assert recent.quantile(0.5, 2 * WINDOW_S) == pytest.approx(0.01, rel=0.2)
    assert recent.quantile(0.5, 9 * WINDOW_S) is None
    recent.add(1.0, 9 * WINDOW_S)
    assert recent.quantile(0.5, 19 * WINDOW_S) is None


def test_what_takes_for_ever_counts_as_the_last_bound() -> None:
    recent = Recent()
    recent.add(1e9, 0.0)
    assert recent.quantile(0.5, 0.0) == BOUNDS[-1]


@given(st.lists(st.floats(0, 1e6), max_size=100))
def test_a_histogram_counts_what_took_no_longer(times: list[float]) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds)
    told = list(histogram.cumulative())
    assert told == [(bound, sum(seconds <= bound for seconds in times)) for bound, _ in told]
    assert told[-1][0] == math.inf
    assert histogram.total_s == pytest.approx(sum(times))


def test_memory_does_not_grow_with_calls() -> None:
    chance, recent, histogram = random.Random(1), Recent(), Histogram()
    for call in range(10_000):
        recent.add(chance.expovariate(1), call / 10)
        histogram.add(chance.expovariate(1))
    assert len(recent._now) == len(recent._before) == len(histogram.counts) == len(BOUNDS) + 1


def test_waiting_is_told_apart_from_running() -> None:
    """A call that waited 2 s and ran 8 s; the backend is not to blame for the queue."""
    [backend] = [Backend("b", Uri("PYRO:x@localhost:1"), 1)]
    admission = service_of(backend).admission
    ticket = Ticket("client", lambda verdict: None)
    ticket.asked_at, ticket.started_at = 10.0, 12.0
    admission.group.take(backend)
    admission.running = 1
    admission.release(ticket, backend, 20.0)
    assert (admission.times.queue.total_s, admission.times.call.total_s) == (2.0, 10.0)
    assert backend.times.quantile(0.5, 20.0) == pytest.approx(8.0, rel=0.2)


def test_a_connection_that_cannot_be_had_is_no_quick_call() -> None:
    stage = Stage()
    asked = request()
    stage.perform([*called(stage, asked, stage.a), (ReplyArrived(reply(1)), [ReleaseBackend(), Reply(reply(7))])])
    stage.forwarding.handle(BlobArrived(asked), 1.0)
    stage.forwarding.handle(BackendLost("refused"), 1.0)
    admission = stage.directory.services["orders"].admission
    assert admission.done == 1
    assert sum(admission.times.call.counts) == 1
    assert stage.b.times.quantile(0.5, 1.0) is None


async def test_operators_and_prometheus_see_them(tmp_path: Path) -> None:
    async with (
        raw_backend(echo) as backend,
        operated(tmp_path, backend, head='admin = "localhost:0"') as (dispatcher, there),
        raw_client(dispatcher.location) as client,
    ):
        (before,) = await there("status")
        for number in range(5):
            await ask(client, blob(number))
        (after,) = await there("status")
        _, text = await http(dispatcher, "/metrics")
    told = [one["services"][0]["backends"][0] for one in (before, after)]
    assert (told[0]["p50_s"], told[0]["p99_s"]) == (None, None)
    assert 0 < told[1]["p50_s"] <= told[1]["p99_s"]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("queue", "call"):
        family = families[f"pyroxfer_dispatcher_{name}_seconds"]
        assert family.type == "histogram"
        counts = {sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels}
        assert len(counts) == len(BOUNDS[::2]) + 1
        assert counts["+Inf"] == 5
        (whole,) = [sample.value for sample in family.samples if sample.name.endswith("_sum")]
        assert whole >= 0


async def test_topics_share_the_histograms_of_their_service() -> None:
    """There may be a thousand of them."""
    config = parse_config('listen = "localhost:0"\n[[services]]\nname = "events"\nlisteners = "one"\n')
    dispatcher = Dispatcher(config)
    service = dispatcher.directory.services["events"]
    assert service.listeners is not None
    for topic in ("events", "others"):
        service.listeners.register(topic, Uri("PYRO:x@localhost:1"))
    times = {id(one.admission.times) for one in (service, *service.listeners.topics())}
    assert len(times) == 1
    assert [name for name, _ in dispatcher._management.operations.times()] == ["events"]
