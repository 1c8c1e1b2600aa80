"""Digest and coverage: right for blocks in any order, and no byte is taken twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer.digest import MOST_PIECES, Coverage, PrefixDigest, choose_algorithm, digest_of
from pyroxfer.errors import IntegrityError, PeerError, SourceChangedError


@pytest.mark.parametrize(("algorithm", "reference"), [("blake3", blake3), ("sha256", hashlib.sha256)])
def test_digest_of_bytes_is_the_algorithms_own(algorithm: str, reference: type) -> None:
    for data in (b"", b"x", b"y" * 3_000_000):
        assert digest_of(data, algorithm) == reference(data).hexdigest()


@given(st.permutations(range(6)), st.integers(0, 40))
def test_blocks_in_any_order_give_the_digest_of_the_file(order: list[int], last: int) -> None:
    """The digest never depends on the order of arrival."""
    blocks = [bytes([number]) * 100 for number in range(5)] + [b"z" * last]
    whole = b"".join(blocks)
    fd = os.memfd_create("digest")
    try:
        digest, coverage = PrefixDigest("blake3", fd), Coverage(len(whole))
        for number in order:
            offset = number * 100
            coverage.reserve(offset, len(blocks[number]))
            os.pwrite(fd, blocks[number], offset)
            digest.offer(offset, memoryview(blocks[number]))
            coverage.complete(offset, len(blocks[number]))
            digest.catch_up(coverage.prefix)
        assert coverage.prefix == coverage.done == len(whole)
        assert digest.end().digest == blake3(whole).hexdigest()
        assert digest.end().size == len(whole)
    finally:
        os.close(fd)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12))
def test_no_byte_is_ever_taken_twice(ranges: list[tuple[int, int]]) -> None:
    """An accepted range never meets another one; ``done`` counts what was accepted."""
    coverage = Coverage(30)
    taken: set[int] = set()
    for offset, length in ranges:
        wanted = set(range(offset, offset + length))
        try:
            coverage.reserve(offset, length)
        except PeerError:
            assert wanted & taken or offset + length > 30
            continue
        assert not wanted & taken
        taken |= wanted
        coverage.complete(offset, length)
    assert coverage.done == len(taken)
    assert coverage.prefix == next(n for n in range(31) if n not in taken)
    assert not coverage.busy


def test_blocks_with_too_many_gaps_are_refused() -> None:
    """Each block is compared with all pieces before it, which a peer could make as many as the file has bytes."""
    coverage = Coverage(None)
    with pytest.raises(PeerError, match="gaps"):
        for offset in range(1, 10 * MOST_PIECES, 2):
            coverage.reserve(offset, 1)
            coverage.complete(offset, 1)
    assert coverage.done == MOST_PIECES


def test_a_range_completes_in_steps_and_a_failed_one_is_free_again() -> None:
    coverage = Coverage(100)
    coverage.reserve(0, 100)
    coverage.complete(0, 40)
    assert (coverage.prefix, coverage.busy) == (40, True)
    with pytest.raises(PeerError):
        coverage.reserve(50, 1)
    coverage.complete(40, 0)
    assert (coverage.done, coverage.busy) == (40, False)
    coverage.reserve(40, 60)


def test_a_file_that_shrinks_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(SourceChangedError):
            PrefixDigest("blake3", fd).catch_up(11)
    finally:
        os.close(fd)


def test_a_block_that_comes_a_little_early_waits_for_its_turn() -> None:
    """Nothing is read again for it; what is read meanwhile, or comes much too early, is left."""
    digest = PrefixDigest("blake3", None)
    assert digest.offer(2, memoryview(b"cd"))
    assert digest.offer(4, memoryview(b"e"))
    assert not digest.offer(5, memoryview(b"f"))
    assert digest.hashed == 0
    assert digest.offer(0, memoryview(b"ab"))
    assert digest.end().digest == blake3(b"abcde").hexdigest()
    fd = os.memfd_create("digest")
    try:
        os.pwrite(fd, b"abcdef", 0)
        digest = PrefixDigest("blake3", fd)
        digest.offer(2, memoryview(b"cd"))
        digest.offer(4, memoryview(b"ef"))
        digest.catch_up(3)
        assert digest.hashed == 3
        digest.catch_up(4)
        assert digest.end().digest == blake3(b"abcdef").hexdigest()
    finally:
        os.close(fd)


def test_a_pipe_cannot_be_read_again() -> None:
    digest = PrefixDigest("blake3", None)
    digest.offer(5, memoryview(b"later"))
    with pytest.raises(IntegrityError):
        digest.catch_up(10)


def test_the_best_common_digest_is_chosen() -> None:
    assert choose_algorithm(["sha256", "blake3", "new"]) == "blake3"
    assert choose_algorithm(("sha256",)) == "sha256"
    for theirs in (["md5"], [], None, "blake3"):
        with pytest.raises(PeerError):
            choose_algorithm(theirs)
