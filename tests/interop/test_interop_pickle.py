"""The pickle family and Flame: the same program with Pyro4 and with ours, at both ends, gives the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matrix
import pytest
from peers import PROGRAMS, stock_python

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.blocking import Daemon as BlockingDaemon
from pyroxfer_core.blocking import config, flame
from pyroxfer_core.errors import PyroError, SecurityError, SerializeError

pytestmark = pytest.mark.interop
FAMILY = ("pickle", "dill", "cloudpickle")
KEY = b"a secret of the test"


def command(library: str, *words: str) -> list[str]:
    python = stock_python() if library == "stock" else sys.executable
    return [python, str(PROGRAMS / "pickled.py"), library, *words]


@contextmanager
def server(library: str, serializer: str) -> Iterator[str]:
    process = subprocess.Popen(command(library, "serve", serializer), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def answers(library: str, role: str, serializer: str, location: str, folder: Path) -> Any:
    done = subprocess.run(
        command(library, role, serializer, location),
        env={**os.environ, "FLAME_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def only_pickle(parameters: Mapping[str, Any]) -> matrix.Unable | None:
    """Stock Flame starts with pickle alone."""
    if parameters["role"] == "objects" or parameters["serializer"] == "pickle":
        return None
    return matrix.Unable("", "stock Pyro4 starts Flame only where pickle is the one serializer")


@matrix.cell(
    "pickle family and Flame, signed: stock pyro4 to ours, ours to stock, ours to ours",
    "{role}",
    "{serializer}",
    cannot=only_pickle,
)
@pytest.mark.parametrize("serializer", FAMILY)
@pytest.mark.parametrize("role", ["objects", "flame"])
def test_both_libraries_at_both_ends_say_the_same(serializer: str, role: str, tmp_path: Path) -> None:
    """Arguments, exceptions, URIs, proxies, batches, streams; and everything that Flame offers (pickle only)."""
    if role == "flame" and serializer != "pickle":
        return  # what Flame is made for
    with server("stock", serializer) as stock, server("ours", serializer) as ours:
        expected = answers("stock", role, serializer, stock, tmp_path)
        assert len(expected) > 8
        for client, location in (("stock", ours), ("ours", stock), ("ours", ours)):
            assert answers(client, role, serializer, location, tmp_path) == expected, client


@expose
class Service:
    def echo(self, value: object) -> object:
        return value


ACCEPTING = Settings(accepted_serializers=frozenset({"pickle", "serpent"}))


async def test_pickle_is_not_read_from_a_stranger() -> None:
    """A daemon that accepts pickle refuses it, unread, from a client that has not shown who it is."""
    ran: list[object] = []

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return ran.append, (1,)

    signing = Settings(serializer="pickle", hmac_key=KEY)
    async with Daemon(settings=ACCEPTING) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=signing) as proxy:
            with pytest.raises(PyroError):
                await proxy.echo(Bomb())
    assert not ran


async def test_a_client_does_not_read_pickle_from_a_stranger() -> None:
    """A proxy that is told to use pickle says what is missing, unless the daemon signs or has a certificate."""
    async with Daemon(settings=ACCEPTING) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=Settings(serializer="pickle")) as proxy:
            with pytest.raises(SerializeError, match="the peer must show who it is"):
                await proxy.echo(1)


async def test_pickle_is_off_unless_named() -> None:
    """Knowing the key is not enough."""
    async with Daemon(settings=Settings(hmac_key=KEY)) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=Settings(serializer="pickle", hmac_key=KEY)) as proxy:
            with pytest.raises(PyroError, match="serializer that is not accepted"):
                await proxy.echo(1)


def test_flame_is_off_unless_enabled_exclusive_and_among_friends() -> None:
    """Each of the three conditions alone keeps it from starting."""
    only = Settings(accepted_serializers=frozenset({"pickle"}), hmac_key=KEY)
    try:
        with BlockingDaemon(settings=only) as daemon:
            with pytest.raises(SecurityError, match="disabled"):
                flame.start(daemon)
            config.FLAME_ENABLED = True
            assert flame.start(daemon).object == "Pyro.Flame"
        with (
            BlockingDaemon(settings=Settings(hmac_key=KEY)) as daemon,
            pytest.raises(SerializeError, match="exclusively"),
        ):
            flame.start(daemon)
        with BlockingDaemon(settings=only.with_changes(hmac_key=None)) as daemon:
            with pytest.raises(SecurityError, match="_pyroHmacKey"):
                flame.start(daemon)
    finally:
        config.reset()


@pytest.mark.parametrize(
    ("variables", "told"),
    [({}, "PYRO_FLAME_ENABLED"), ({"PYRO_FLAME_ENABLED": "1"}, "PYRO_HMAC_KEY")],
)
def test_the_command_needs_the_setting_and_a_key(variables: dict[str, str], told: str) -> None:
    program = "from pyroxfer_core.cli.flame import flame; flame()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 4
    assert told in done.stderr and "Traceback" not in done.stderr
