"""What callers, the log and hooks see of a call that failed."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator

import pytest
from facade_doubles import serving

from pyroxfer_core import Settings, callback, expose
from pyroxfer_core.blocking import BatchProxy, Daemon, Proxy, current_context
from pyroxfer_core.wire.message import Body

STOCK = Settings(protocol=48)
"""A proxy with these gets what stock clients get."""


@expose
class Failing:
    def __init__(self) -> None:
        self._items = iter(["only"])

    def following(self) -> str:
        return next(self._items)

    @property
    def upcoming(self) -> str:
        return next(self._items)

    @expose(inline=True)
    def inline(self) -> str:
        return next(self._items)

    @callback
    def told(self, text: str) -> None:
        raise ValueError(text)

    def untold(self, text: str) -> None:
        raise ValueError(text)


class Annotating(Daemon):
    broken = False

    def annotations(self) -> dict[str, Body]:
        if self.broken:
            raise RuntimeError("the hook is broken")
        return {"DMON": b"always"}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with serving(Daemon()) as running:
        yield running


@pytest.mark.parametrize("settings", [None, STOCK], ids=["own", "stock"])
@pytest.mark.parametrize("way", ["at once", "in a thread", "inline", "attribute", "batch"])
def test_a_method_may_fail_with_stop_iteration(daemon: Daemon, way: str, settings: Settings | None) -> None:
    """It is what `next` of an iterator that has ended raises, and arrives as that, whichever way the call took."""
    with Proxy(daemon.register(Failing()), settings=settings) as proxy:
        assert proxy.following() == "only"
        with pytest.raises((StopIteration, RuntimeError)) as caught:
            if way == "at once":
                proxy.following()
            elif way == "in a thread":
                options = {"key": secrets.token_hex(16)} if settings is None else {"annotations": {"SOME": b"thing"}}
                proxy.following.options(**options)()
            elif way == "inline":
                proxy.inline()
            elif way == "attribute":
                proxy.upcoming  # noqa: B018  # asks the other side
            else:
                batch = BatchProxy(proxy)
                batch.following()
                results = batch()
                assert isinstance(results, Iterator)
                list(results)  # a generator cannot let it pass
    error = caught.value if way != "batch" else caught.value.__cause__
    assert type(error) is StopIteration


@pytest.mark.parametrize("settings", [None, STOCK], ids=["own", "stock"])
def test_errors_of_callbacks_are_logged_here_too(
    daemon: Daemon, settings: Settings | None, caplog: pytest.LogCaptureFixture
) -> None:
    """And the connection goes on."""
    caplog.set_level(logging.WARNING)
    with Proxy(daemon.register(Failing()), settings=settings) as proxy:
        for method in (proxy.untold, proxy.told):
            with pytest.raises(ValueError, match="heard"):
                method("heard")
        link = proxy._pyroConnection
        assert proxy.following() == "only"
        assert proxy._pyroConnection is link
    (record,) = (record for record in caplog.records if record.exc_info)
    assert repr(record.exc_info and record.exc_info[1]) == "ValueError('heard')"


def test_the_hook_adds_annotations_to_failures_too() -> None:
    """As it does in Pyro; and when it fails itself the error of the method arrives all the same."""
    with serving(Annotating()) as daemon, Proxy(daemon.register(Failing())) as proxy:
        with pytest.raises(ValueError, match="one"):
            proxy.untold("one")
        assert current_context.response_annotations == {"DMON": b"always"}
        Annotating.broken = True
        try:
            with pytest.raises(ValueError, match="two"):
                proxy.untold("two")
            assert current_context.response_annotations == {}
        finally:
            Annotating.broken = False
        assert proxy.following() == "only"
