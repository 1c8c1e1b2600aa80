"""The admin listener: what probes, Prometheus and the page are told, and who may not ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browser
from doubles_dispatch import RawBackend, ask, blob, config_for, echo, http, raw_backend, raw_client
from prometheus_client.parser import text_string_to_metric_families

from pyroxfer_core import bind_tcp
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import ConfigError, parse_config

PICTURES = Path(__file__).parent.parent.parent / ".screenshots"
COMMAND = ("content-type: application/json",)


@asynccontextmanager
async def administered(*backends: RawBackend, head: str = "", service: str = "") -> AsyncIterator[Dispatcher]:
    head = f'admin = "localhost:0"\ndrain_timeout = 0.1\n{head}'
    config = config_for(*[one.uri for one in backends], head=head, service=service)
    async with Dispatcher(config) as dispatcher:
        yield dispatcher


async def test_probes_tell_health_and_readiness() -> None:
    """Ready means: it takes clients, and every service has a back end. Alive it is meanwhile."""
    async with raw_backend(echo) as backend, administered(backend) as dispatcher:
        status, body = await http(dispatcher, "/healthz")
        assert (status, json.loads(body)["ok"]) == (200, True)
        assert 0 <= json.loads(body)["loop_lag_s"] < 5
        assert (await http(dispatcher, "/readyz"))[0] == 200
        await command(dispatcher, "drain")
        status, body = await http(dispatcher, "/readyz")
        assert (status, json.loads(body)["services_without_backend"]) == (503, ["orders"])
        await command(dispatcher, "undrain")
        assert (await http(dispatcher, "/readyz"))[0] == 200
        dispatcher.begin_drain()
        status, body = await http(dispatcher, "/readyz")
        assert (status, json.loads(body)["draining"]) == (503, True)
        assert (await http(dispatcher, "/healthz"))[0] == 200


async def test_a_dispatcher_that_nobody_finds_is_not_ready() -> None:
    """Its back ends are there, but its name could not be registered."""
    with bind_tcp("localhost", 0) as taken:
        port = taken.getsockname()[1]
    head = f'register = "front"\nnameserver = "localhost:{port}"'
    async with raw_backend(echo) as backend, administered(backend, head=head) as dispatcher:
        status, body = await http(dispatcher, "/readyz")
        answer = json.loads(body)
    assert (status, answer["registered"], answer["services_without_backend"]) == (503, False, [])


async def command(dispatcher: Dispatcher, do: str, target: str = "orders/b0") -> tuple[int, str]:
    body = json.dumps({"do": do, "target": target})
    return await http(dispatcher, "/command", *COMMAND, method="POST", body=body)


async def test_metrics_are_read_by_prometheus() -> None:
    """Its own parser reads them, and the counts are those of what happened."""
    async with raw_backend(echo) as backend, administered(backend) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            for number in range(3):
                await ask(client, blob(number))
            status, text = await http(dispatcher, "/metrics")
        assert status == 200
        found = {
            (sample.name, *(sample.labels[key] for key in ("service", "backend", "what") if key in sample.labels)): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["pyroxfer_dispatcher_clients",] == 1
        assert found["pyroxfer_dispatcher_calls_total", "orders", "calls"] == 3
        assert found["pyroxfer_dispatcher_backend_calls_total", "orders", "b0"] == 3
        assert found["pyroxfer_dispatcher_backend_up", "orders", "b0"] == 1
        assert found["pyroxfer_dispatcher_backend_busy_seconds_total", "orders", "b0"] > 0


@pytest.mark.parametrize(
    ("wanted", "request_"),
    [
        (421, {"path": "/status", "host": "evil.example"}),
        (415, {"path": "/command", "method": "POST", "body": '{"do":"drain"}'}),
        (405, {"path": "/healthz", "method": "DELETE"}),
        (404, {"path": "/../etc/passwd"}),
        (404, {"path": "/nothing"}),
    ],
)
async def test_what_is_not_meant_is_refused(wanted: int, request_: dict[str, Any]) -> None:
    """Other sites by their own names, forms of other sites, other methods, other paths."""
    async with raw_backend(echo) as backend, administered(backend) as dispatcher:
        assert (await http(dispatcher, **request_))[0] == wanted
        assert not dispatcher.directory.services["orders"].group.backends[0].draining


@pytest.mark.parametrize("body", ["[]", "{", '{"do": "weight"}', '{"do": "status"}', "x" * 5000])
async def test_bad_commands_of_a_page_are_answered_with_a_sentence(body: str) -> None:
    async with raw_backend(echo) as backend, administered(backend) as dispatcher:
        status, answer = await http(dispatcher, "/command", *COMMAND, method="POST", body=body)
        assert (status, list(json.loads(answer))) == (400, ["error"])


def test_an_open_admin_door_needs_a_loud_word() -> None:
    """Whoever reaches it can drain back ends."""
    with pytest.raises(ConfigError, match=r"admin: 0\.0\.0\.0 is beyond this machine"):
        parse_config('admin = "0.0.0.0:9096"\n[[services]]\nname = "a"\nlisteners = "one"\n')


@pytest.mark.deadline(120)
async def test_the_status_page_shows_what_runs_and_drains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls appear by themselves with their rate; the button drains, and takes back; nothing comes from elsewhere."""
    async with (
        raw_backend(echo) as first,
        raw_backend(echo) as second,
        administered(first, second, service='discover = "PYRONAME:x@localhost:1"') as dispatcher,
        raw_client(dispatcher.location) as client,
        browser(tmp_path) as page,
    ):
        url = f"http://{dispatcher.admin_location}/"
        await page.look()
        await page.open(url)
        await page.text("#whole", "Up for")
        row = '[data-target="orders/b0"]'
        await page.text(row, "up")
        for number in range(8):
            await ask(client, blob(number))
        await page.text("#services", "8 calls")
        await page.text(row, "ms")
        await page.text("#services", "registry localhost:1: lost, 0 back ends kept (Failed to locate")
        await page.screenshot(PICTURES / "dispatcher-status.png")
        await page.click(f"{row} button")
        await page.text(row, "drained")
        assert dispatcher.directory.services["orders"].group.backends[0].draining
        await page.until(f"document.querySelector('{row} button').innerText === 'Take back'")
        await page.click(f"{row} button")
        await page.text(f"{row} .state", "up")
        assert not dispatcher.directory.services["orders"].group.backends[0].draining
        await page.look(width=390, height=844)
        assert await page.value("document.documentElement.scrollWidth") <= 390
        assert not page.complaints
        assert all(one.startswith((url, "data:", "about:")) for one in page.requested), page.requested
    with capsys.disabled():
        print(f"\nscreenshot: {PICTURES / 'dispatcher-status.png'}")
