"""Copies of proxies: of a program's own classes, too, whatever their ``__init__`` wants."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
from facade_doubles import Service, serving

from pyroxfer_core.blocking import Daemon, Proxy


class Labelled(Proxy):
    """Has arguments of its own, as the proxies of many programs do."""

    def __init__(self, uri: str, label: str) -> None:
        super().__init__(uri)
        self._pyroTimeout = 5.0
        self._pyroLabel = label

    def loud(self) -> str:
        return str(self.echo("a")).upper()


def pickled(proxy: Proxy) -> Proxy:
    again: Proxy = pickle.loads(pickle.dumps(proxy))
    return again


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("connected", [False, True])
def test_a_copy_is_of_the_same_class(copied: Callable[[Proxy], Proxy], connected: bool) -> None:
    """And has a connection of its own."""
    with serving(Daemon()) as daemon:
        uri = str(daemon.register(Service()))
        with Labelled(uri, "one") as first, Proxy(uri) as plain:
            if connected:
                assert (first.loud(), plain.echo(1)) == ("A", 1)
            with copied(first) as second, copied(plain) as other:
                assert isinstance(second, Labelled)
                assert (second.loud(), other.echo(2)) == ("A", 2)
                assert second._pyroConnection is not first._pyroConnection
                assert (second == first, other == plain) == (True, True)


def test_asynchronous_calls_of_such_a_proxy() -> None:
    """Each is made on a copy."""
    with serving(Daemon()) as daemon, Labelled(str(daemon.register(Service())), "one") as proxy:
        proxy._pyroAsync()
        assert proxy.echo(1).value == 1
