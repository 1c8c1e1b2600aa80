"""What the plays of the pure parts begin with."""

from __future__ import annotations

import pytest
from doubles_dispatch import service_of
from doubles_plays import Stage, never

from pyroxfer_core import Uri
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.relay import Relay


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def backend() -> Backend:
    return Backend("b", Uri("PYRO:x@h:1"))


@pytest.fixture
def relay(backend: Backend) -> Relay:
    return Relay(service_of(backend).admission, backend, None, never)
