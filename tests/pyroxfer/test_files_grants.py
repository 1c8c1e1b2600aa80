"""Grants open one side stream, once, within half a minute; nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer import FileServer
from pyroxfer.channels.raw import READY
from pyroxfer.conversation import open_conversation
from pyroxfer.errors import DeniedError
from pyroxfer.grants import DOWNLOAD, LIFETIME_S, TOKEN_BYTES, UPLOAD, Grant, GrantBook
from pyroxfer_core import Settings, open_side_stream

GRANT = Grant(UPLOAD, "ab" * 16, 5, 2**40)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_grant_comes_back_whole_and_only_once() -> None:
    book = GrantBook(Clock())
    token = book.issue(GRANT)
    assert len(token) == TOKEN_BYTES <= 120
    assert book.redeem(token.ljust(120, b"\0")) == GRANT
    with pytest.raises(DeniedError, match="used before"):
        book.redeem(token)


def test_two_grants_of_one_range_are_different() -> None:
    book = GrantBook(Clock())
    assert book.issue(GRANT) != book.issue(GRANT)


def test_an_expired_grant_is_void() -> None:
    clock = Clock()
    book = GrantBook(clock)
    fresh, stale = book.issue(GRANT), book.issue(Grant(DOWNLOAD, "00" * 16, 0, 0))
    clock.now += LIFETIME_S - 0.5
    assert book.redeem(fresh) == GRANT
    clock.now += 1
    with pytest.raises(DeniedError):
        book.redeem(stale)


def test_memory_of_used_grants_is_bounded_by_their_lifetime() -> None:
    clock = Clock()
    book = GrantBook(clock)
    for _ in range(100):
        book.redeem(book.issue(GRANT))
        clock.now += 1
    assert len(book._used) <= LIFETIME_S + 2


def test_another_servers_key_does_not_open() -> None:
    with pytest.raises(DeniedError):
        GrantBook(Clock()).redeem(GrantBook(Clock()).issue(GRANT))


async def test_a_grant_ends_with_its_server(root: Path) -> None:
    """Used or not: a server started again on the same folder takes none that was given out before."""
    (root / "f").write_bytes(b"x" * 300_000)
    grants: list[str] = []
    async with FileServer(root) as server, open_conversation(server.uri, Settings()) as talk:
        for _ in range(2):
            grants.append((await talk.ask("open_download", "f", "blake3"))["ticket"]["grant"])
        used = await open_side_stream(server.uri, bytes.fromhex(grants[0]))
        assert (await used.receive_some()).startswith(READY)
        used.abort()
    async with FileServer(root) as server:
        for grant in grants:
            stream = await open_side_stream(server.uri, bytes.fromhex(grant))
            assert await stream.receive_some() == b""
            stream.abort()


@given(st.integers(0, TOKEN_BYTES - 1), st.integers(1, 255))
def test_any_flipped_byte_voids_a_grant(position: int, change: int) -> None:
    book = GrantBook(Clock())
    token = bytearray(book.issue(GRANT))
    token[position] ^= change
    with pytest.raises(DeniedError):
        book.redeem(bytes(token))


@given(st.binary(max_size=130))
def test_any_other_bytes_are_denied(token: bytes) -> None:
    with pytest.raises(DeniedError):
        GrantBook(Clock()).redeem(token)
