"""A daemon of the blocking facade with one object, and a proxy for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from facade_doubles import Service, serving

from pyroxfer_core.blocking import Daemon, Proxy


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def daemon(service: Service) -> Iterator[Daemon]:
    with serving(Daemon()) as running:
        running.register(service, "service")
        yield running


@pytest.fixture
def proxy(daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(daemon.uriFor("service")) as proxy:
        yield proxy
