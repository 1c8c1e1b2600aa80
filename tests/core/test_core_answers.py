"""Answers that cannot be written, or that say something odd."""

from __future__ import annotations

from typing import Any

import pytest

from pyroxfer_core import (
    Daemon,
    Proxy,
    Settings,
    current_call,
    expose,
)
from pyroxfer_core.errors import (
    Outcome,
    ProtocolError,
    PyroError,
    RemoteError,
)


class MuteError(Exception):
    """Has no text, as exceptions of careless programs have."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("serializer", [None, "serpent", "json", "marshal", "msgpack"])
@pytest.mark.parametrize("protocol", [48, 502])
async def test_whatever_is_wrong_with_an_answer_its_caller_hears_of_it(protocol: int, serializer: str | None) -> None:
    """And the connection goes on."""
    bad_annotations: list[tuple[Any, Any]] = [("ABCD", "text"), ("ABCD", None), ("ABC", b""), (5, b"")]

    @expose
    class Odd:
        def mute(self) -> None:
            raise MuteError

        def surrogate(self) -> None:
            raise ValueError("\ud800")

        async def annotate(self, number: int) -> None:
            key, value = bad_annotations[number]
            current_call.response_annotations[key] = value

        async def echo(self, value: int) -> int:
            return value

    async with Daemon(settings=Settings(remote_tracebacks=False)) as daemon:
        uri = daemon.register(Odd())
        async with Proxy(uri, settings=Settings(protocol=protocol, serializer=serializer)) as proxy:
            with pytest.raises(RemoteError, match="MuteError"):
                await proxy.mute()
            with pytest.raises((ValueError, PyroError), match=r"ValueError|\ud800"):
                await proxy.surrogate()
            for number, (key, value) in enumerate(bad_annotations):
                with pytest.raises(PyroError, match="annotation"):
                    await proxy.annotate(number)
                with pytest.raises(ProtocolError, match="annotation") as caught:
                    await proxy.echo.options(annotations={key: value})(1)
                assert caught.value.outcome is Outcome.NOT_SENT
            assert daemon.statistics().connections == 1
            assert await proxy.echo(2) == 2
