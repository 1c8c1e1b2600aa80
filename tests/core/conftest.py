"""Servers that many tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcds import Etcd


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """A real etcd with one member; every test takes a prefix of its own."""
    server = Etcd(tmp_path_factory.mktemp("etcd"), options=["--unsafe-no-fsync"])
    server.wait()
    yield server
    server.close()
