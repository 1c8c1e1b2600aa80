"""Shared by every test: each async test is bounded by trio itself, so that a hang names the line it hangs in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from certificates import Certificates
from etcds import Etcd
from hypothesis import HealthCheck, settings

DEFAULT_DEADLINE = 60.0

# A slow machine is no finding: what an example costs is measured by the benchmarks, and no test asserts on the clock.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Bound every async test; pytest-timeout is only the last resort for a blocked process."""
    function = getattr(item, "obj", None)
    hypothesis_handle = getattr(function, "hypothesis", None)
    inner = hypothesis_handle.inner_test if hypothesis_handle else function
    if not inspect.iscoroutinefunction(inner) or hasattr(inner, "_bounded"):
        return
    marker = item.get_closest_marker("deadline")
    limit = marker.args[0] if marker else DEFAULT_DEADLINE

    @functools.wraps(inner)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(limit):
            await inner(*args, **kwargs)

    bounded._bounded = True  # type: ignore[attr-defined]  # a mark for the check above
    if hypothesis_handle:
        hypothesis_handle.inner_test = bounded
    else:
        item.obj = bounded  # type: ignore[attr-defined]  # pytest.Function has it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start processes come first: where files run side by side, what is left at the end is short."""
    items.sort(key=lambda item: "core" in item.path.parts)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of two authorities, made once for the whole run."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """A real etcd with one member; every test takes a prefix of its own."""
    server = Etcd(tmp_path_factory.mktemp("etcd"), options=["--unsafe-no-fsync"])
    server.wait()
    yield server
    server.close()
