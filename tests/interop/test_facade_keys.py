"""Pyro4's name servers with a key: ours for its programs, its own for ours."""

from __future__ import annotations

import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from peers import started, stock_python

from pyroxfer_core.blocking import locateNS, startNS
from pyroxfer_core.errors import NamingError

PROGRAM = """
import sys, Pyro4
print(Pyro4.locateNS("localhost", int(sys.argv[1]), hmac_key=sys.argv[2].encode()).count())
"""


def test_a_stock_program_finds_ours() -> None:
    """With the key it was started with, and with no other."""
    _, daemon, _ = startNS("localhost", 0, enableBroadcast=False, hmac="secret")
    port = daemon.locationStr.rpartition(":")[2]
    with daemon:
        serving = threading.Thread(target=daemon.requestLoop)
        serving.start()
        try:
            asked = [
                subprocess.run([stock_python(), "-c", PROGRAM, port, key], capture_output=True, text=True, timeout=60)
                for key in ("secret", "wrong")
            ]
        finally:
            daemon.shutdown()
            serving.join()
    assert [each.stdout for each in asked] == ["1\n", ""]


def test_ours_finds_a_stock_one() -> None:
    """With the key it was started with, and with no other."""
    with ExitStack() as stack:
        command = (str(Path(stock_python()).parent / "pyro4-ns"), "-n", "localhost", "-p", "0", "-x")
        port = int(
            started(stack, r"NS running on localhost:(\d+)", *command, PYRO_HMAC_KEY="secret", PYTHONUNBUFFERED="1")
        )
        with locateNS("localhost", port, hmac_key="secret") as names:
            assert names.count() == 1
        for key in ("wrong", None):
            with pytest.raises(NamingError, match="hmac"):
                locateNS("localhost", port, hmac_key=key)
