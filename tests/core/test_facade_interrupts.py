"""Ctrl-C at the blocking proxy: whatever it comes in the middle of, no answer is lost or mixed up."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from facade_doubles import WITHIN_S, Service, StockServer, plain_answer

from pyroxfer_core.blocking import Daemon, Proxy
from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.wire.message import Message


def interrupt_main_soon(service: Service) -> threading.Thread:
    def interrupt() -> None:
        assert service.entered.acquire(timeout=WITHIN_S)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_an_interrupt_ends_a_call_and_leaves_the_connection(service: Service, proxy: Proxy, daemon: Daemon) -> None:
    """A peer of ours is told; the same connection serves the next call, and the late answer is nobody's."""
    thread = interrupt_main_soon(service)
    with pytest.raises(KeyboardInterrupt):
        proxy.wait("interrupted")
    thread.join()
    link = proxy._pyroConnection
    assert proxy.echo(1) == 1
    service.release.set()
    assert [proxy.echo(number) for number in range(5)] == list(range(5))
    assert proxy._pyroConnection is link
    assert daemon.statistics().connections == 1


def test_an_interrupt_of_the_reading_thread_passes_reading_on(service: Service, proxy: Proxy) -> None:
    """Another thread that waited for its answer meanwhile still gets it."""
    late: list[Future[str]] = []

    def interrupt() -> None:
        assert service.entered.acquire(timeout=WITHIN_S)
        late.append(threads.submit(proxy.wait, "other"))
        assert service.entered.acquire(timeout=WITHIN_S)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            proxy.wait("interrupted")
        interrupting.join()
        service.release.set()
        assert late[0].result(WITHIN_S) == "other"


def test_an_interrupt_towards_a_stock_peer_closes() -> None:
    """Its answer would be taken for that of the next call; the proxy connects again."""
    asked = threading.Event()

    def answers(request: Message) -> bytes:
        if len(server.requests) == 1:
            asked.set()
            time.sleep(0.2)
        return plain_answer(request)

    def interrupt() -> None:
        asked.wait(WITHIN_S)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with StockServer(answers) as server, server.proxy() as proxy:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            proxy.echo("interrupted")
        thread.join()
        assert proxy.echo("next") == "answer"
        assert server.connections == 2


def test_interrupts_at_any_moment_lose_nobody(
    daemon: Daemon, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of them, in the middle of whatever a call does: answers stay with their calls, no thread is left."""
    # one may also come in a finalizer, where Python can only report it; the test runner's reporting, longer than the
    # finalizer, would be interrupted in turn
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    stop = threading.Event()
    rng = random.Random(7)

    def kick() -> None:
        while not stop.wait(rng.random() * 0.01):
            os.kill(os.getpid(), signal.SIGINT)

    def call(number: int) -> int:
        done = 0
        while not stop.is_set():
            done += 1
            try:
                assert proxy.echo([number, done]) == [number, done]
            except CommunicationError as error:  # the interrupted thread may have ended the connection
                assert error.outcome in (Outcome.UNKNOWN, Outcome.NOT_SENT)
        return done

    counted: list[int] = []

    def count_interrupt(number: int, frame: object) -> None:
        if threading.current_thread() is threading.main_thread() and armed:
            counted.append(number)
            raise KeyboardInterrupt

    armed = False
    before = signal.signal(signal.SIGINT, count_interrupt)
    try:
        with Proxy(daemon.uriFor("service")) as proxy, ThreadPoolExecutor(3) as threads:
            proxy.echo(0)
            others = [threads.submit(call, number) for number in range(2)]
            threads.submit(kick)
            for turn in range(400):
                try:
                    armed = True
                    value = proxy.echo(turn)
                    armed = False
                    assert value == turn
                except KeyboardInterrupt:
                    armed = False
                except CommunicationError:
                    armed = False
            stop.set()
            assert all(other.result(WITHIN_S) > 0 for other in others)
            assert proxy.echo("alive") == "alive"
    finally:
        stop.set()
        signal.signal(signal.SIGINT, before)
    assert counted
