"""A dispatcher as several workers: one to clients, and one to operators."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from doubles_dispatch import POISON, RawBackend, ask, blob, config_for, echo, raw_backend, raw_client

from pyroxfer_core import Worker
from pyroxfer_dispatcher.config import Config, ConfigError, parse_config
from pyroxfer_dispatcher.control import CommandError
from pyroxfer_dispatcher.control import ask as ask_there
from pyroxfer_dispatcher.crew import Crew
from pyroxfer_dispatcher.metrics import Metrics, labelled, plain, text_of
from pyroxfer_dispatcher.shares import check_workers, part_of
from pyroxfer_dispatcher.together import joined

pytestmark = pytest.mark.deadline(120)
RUN = (sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()", "run", "--workers", "2", "-c")


# --- limits


def limited(limits: str = "", backend: str = "") -> Config:
    return config_for("PYRO:a@localhost:1", "PYRO:b@localhost:2", service=limits, backend=backend)


def test_limits_are_divided_without_loss(tmp_path: Path) -> None:
    """What all workers may do together is what the file says, and each has a control socket of its own."""
    config = limited("max_in_flight = 11\nmax_queue = 7\n", "max_in_flight = 4")
    parts = [part_of(config, Worker(number, 3, tmp_path, [])) for number in range(3)]
    services = [part.services[0] for part in parts]
    assert [service.max_in_flight for service in services] == [4, 4, 3]
    assert [service.max_queue for service in services] == [3, 2, 2]
    assert [[entry.max_in_flight for entry in service.backends] for service in services] == [[2, 2], [1, 1], [1, 1]]
    assert len({part.control for part in parts}) == 3
    assert all(part.admin is None and part.register is None for part in parts)


def test_what_cannot_be_shared_is_refused_with_its_line() -> None:
    """Fewer calls at once than workers, and listeners; a single process may have both."""
    config = limited("max_in_flight = 2\n", "max_in_flight = 1")
    heard = parse_config('[[services]]\nname = "events"\nlisteners = "all"\n')
    for one in (config, heard):
        check_workers(one, 1)
    with pytest.raises(ConfigError, match="one worker only"):
        check_workers(heard, 2)
    with pytest.raises(ConfigError) as caught:
        check_workers(config, 3)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "services[0].max_in_flight",
        "services[0].backends[0].max_in_flight",
        "services[0].backends[1].max_in_flight",
    ]


# --- putting together


def backend_seen(state: str = "up", **more: Any) -> dict[str, Any]:
    seen = {
        "name": "a",
        "uri": "PYRO:a@localhost:1",
        "origin": "file",
        "state": state,
        "reason": "",
        "weight": 1.0,
        "tags": [],
        "in_flight": 1,
        "max_in_flight": 2,
        "clients": 3,
        "calls": 4,
        "busy_s": 0.5,
        "ejections": 0,
        "ejected_s": None,
        "p50_s": None,
        "p99_s": 0.25,
    }
    return {**seen, **more}


def status_seen(*backends: dict[str, Any], **calls: int) -> dict[str, Any]:
    service = {
        "name": "orders",
        "running": 1,
        "waiting": 2,
        "calls": calls,
        "busy_s": 1.5,
        "done": 3,
        "discover": [],
        "retries": {"used": 1, "denied": 0},
        "backends": list(backends),
    }
    return {"clients": 5, "cut": 1, "draining": False, "lag_s": 0.0, "services": [service]}


def test_counts_are_added_up_by_name() -> None:
    """Services and backends that only one worker knows are there, too."""
    other = backend_seen(name="b", max_in_flight=None, p50_s=0.5)
    whole = joined([status_seen(backend_seen(), ok=2), status_seen(backend_seen(), other, ok=3, failed=1)])
    assert (whole["clients"], whole["cut"]) == (10, 2)
    (service,) = whole["services"]
    assert (service["running"], service["waiting"], service["done"], service["busy_s"]) == (2, 4, 6, 3.0)
    assert service["calls"] == {"ok": 5, "failed": 1}
    assert service["retries"] == {"used": 2, "denied": 0}
    first, second = service["backends"]
    assert (first["in_flight"], first["max_in_flight"], first["calls"], first["clients"]) == (2, 4, 8, 6)
    assert second["max_in_flight"] is None
    assert (first["p50_s"], first["p99_s"], second["p50_s"]) == (None, 0.25, 0.5)


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (("up", "down"), "up"),
        (("drained", "draining"), "draining"),
        (("drained", "drained"), "drained"),
        (("down", "down"), "down"),
        (("ejected", "up"), "up"),
        (("disabled", "disabled"), "disabled"),
    ],
)
def test_a_backend_is_in_the_state_that_matters(states: tuple[str, str], whole: str) -> None:
    """It gets calls if one worker gives it some; it is drained when it is at all of them."""
    seen = [status_seen(backend_seen(state)) for state in states]
    assert joined(seen)["services"][0]["backends"][0]["state"] == whole


def test_numbers_of_workers_have_a_label_each() -> None:
    """So the counts of one that is replaced begin anew alone; a single process has no such label."""
    seen = [Metrics(partial(status_seen, backend_seen(), ok=count), list) for count in (2, 3)]
    text = text_of(labelled({str(number): plain(one.families()) for number, one in enumerate(seen)})).decode()
    assert 'pyroxfer_dispatcher_calls_total{service="orders",what="ok",worker="0"} 2.0' in text
    assert 'pyroxfer_dispatcher_calls_total{service="orders",what="ok",worker="1"} 3.0' in text
    assert text.count("# TYPE pyroxfer_dispatcher_calls_total counter") == 1
    alone = text_of(seen[0].families()).decode()
    assert 'pyroxfer_dispatcher_calls_total{service="orders",what="ok"} 2.0' in alone


# --- as processes


class Running:
    """A dispatcher with two workers."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.location = process.stdout.readline().strip().rpartition("@")[2]
        self.page = process.stdout.readline().strip().removeprefix("status page: http://").rstrip("/")
        self.control = str(folder / "control")

    async def answers(self, do: str, **more: Any) -> list[dict[str, Any]]:
        async with aclosing(ask_there(self.control, {"do": do, **more})) as answers:
            return [answer async for answer in answers]

    async def status(self) -> dict[str, Any]:
        return (await self.answers("status"))[0]

    async def workers(self) -> dict[int, int]:
        return {worker["number"]: worker["pid"] for worker in (await self.status())["workers"]}

    async def fetched(self, path: str) -> str:
        host, _, port = self.page.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {self.page}\r\nConnection: close\r\n\r\n".encode())
            return b"".join([part async for part in stream]).decode()

    async def ended(self) -> int:
        return await trio.to_thread.run_sync(self.process.wait, 60)


def text_for(folder: Path, *backends: RawBackend, drain_timeout: int = 1) -> str:
    head = f'listen = "localhost:0"\nadmin = "localhost:0"\ncontrol = "{folder / "control"}"\n'
    head += f"drain_timeout = {drain_timeout}\n"
    named = "".join(
        f'[[services.backends]]\nname = "b{n}"\nuri = "{backend.uri}"\n' for n, backend in enumerate(backends)
    )
    return f'{head}[[services]]\nname = "orders"\n{named}'


@contextmanager
def running(folder: Path, *backends: RawBackend, drain_timeout: int = 1) -> Iterator[Running]:
    path = folder / "dispatcher.toml"
    path.write_text(text_for(folder, *backends, drain_timeout=drain_timeout))
    process = subprocess.Popen([*RUN, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        yield Running(process, folder)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@asynccontextmanager
async def dispatching(folder: Path, drain_timeout: int = 1) -> AsyncIterator[tuple[Running, RawBackend, RawBackend]]:
    async with raw_backend(echo) as first, raw_backend(echo) as second:
        with running(folder, first, second, drain_timeout=drain_timeout) as dispatcher:
            yield dispatcher, first, second


async def until(condition: Any) -> None:
    """The time of the whole test ends it otherwise."""
    for _ in itertools.count():
        if await condition():
            return
        await trio.sleep(0.05)


async def test_operators_see_and_tell_all_workers(tmp_path: Path) -> None:
    """Counts are those of all; a drained backend gets nothing from any, nor from one that begins later; the metrics
    tell the workers apart, and `drain` ends all."""
    async with dispatching(tmp_path) as (dispatcher, _, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw_client(dispatcher.location)) for _ in range(8)]
        for client in clients:
            await ask(client, blob())
        status = await dispatcher.status()
        assert status["clients"] == 8
        assert sum(backend["calls"] for backend in status["services"][0]["backends"]) == 8
        assert sum(worker["clients"] for worker in status["workers"]) == 8
        assert (await dispatcher.answers("drain", target="b0", wait=True))[-1]["state"] == "drained"
        assert (await dispatcher.answers("weight", target="b1", weight=7))[-1]["weight"] == 7
        for request, refusal in (({"do": "drain", "target": "nobody"}, "no backend"), ({"do": "dance"}, "known are")):
            with pytest.raises(CommandError, match=refusal):
                await dispatcher.answers(**request)
        before = (await dispatcher.status())["services"][0]["backends"]
        victim = (await dispatcher.workers())[0]
        os.kill(victim, signal.SIGKILL)

        async def replaced() -> bool:
            return (await dispatcher.workers()).get(0, victim) != victim

        await until(replaced)
        async with AsyncExitStack() as others:
            for _ in range(8):
                await ask(await others.enter_async_context(raw_client(dispatcher.location)), blob())
            after = (await dispatcher.status())["services"][0]["backends"]
            assert [backend["state"] for backend in after] == ["drained", "up"]
            assert [backend["weight"] for backend in after] == [1, 7]
            assert after[0]["calls"] <= before[0]["calls"], "nothing came to it, and a part of its count is gone"
        text = await dispatcher.fetched("/metrics")
        assert 'worker="0"' in text and 'worker="1"' in text
        assert '"ready": true' in await dispatcher.fetched("/readyz")
        assert (await dispatcher.answers("drain"))[0]["draining"] == "dispatcher"
        assert await dispatcher.ended() == 0


async def test_calls_of_all_workers_can_be_followed(tmp_path: Path) -> None:
    """`trace` shows each call once, wherever it went."""
    async with dispatching(tmp_path) as (dispatcher, _, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw_client(dispatcher.location)) for _ in range(6)]
        records: list[dict[str, Any]] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                async with aclosing(ask_there(dispatcher.control, {"do": "trace"})) as answers:
                    async for answer in answers:
                        records.append(answer)

            nursery.start_soon(follow)
            while not records:
                await ask(clients[0], blob())
                await trio.sleep(0.05)
            seen = len({record["client"] for record in records})
            assert seen == 1
            for client in clients[1:]:
                while str(client.sock.getsockname()[1]) not in {r["client"].rpartition(":")[2] for r in records}:
                    await ask(client, blob())
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert {record["outcome"] for record in records} == {"ok"}


async def test_a_reload_comes_to_all_workers(tmp_path: Path) -> None:
    """SIGHUP to the parent brings the new file into force everywhere; SIGTERM drains all."""
    async with dispatching(tmp_path) as (dispatcher, first, _):
        (tmp_path / "dispatcher.toml").write_text(text_for(tmp_path, first))
        dispatcher.process.send_signal(signal.SIGHUP)

        async def reloaded() -> bool:
            return len((await dispatcher.status())["services"][0]["backends"]) == 1

        await until(reloaded)
        dispatcher.process.terminate()
        assert await dispatcher.ended() == 0


async def test_new_workers_go_on_with_the_same_sockets(tmp_path: Path) -> None:
    """Those who are connected go on with the old ones, everybody else is with the new ones, which know what operators
    said; control socket and page answer from the new parent, and the old one ends with its last client."""
    async with dispatching(tmp_path, drain_timeout=3600) as (dispatcher, _, _), AsyncExitStack() as stack:
        old, workers = dispatcher.process.pid, await dispatcher.workers()
        await dispatcher.answers("drain", target="b0")
        async with raw_client(dispatcher.location) as stays:
            dispatcher.process.send_signal(signal.SIGUSR2)

            async def succeeded() -> bool:
                return bool((await dispatcher.status())["predecessor"])

            await until(succeeded)
            status = await dispatcher.status()
            stack.callback(end_at_last, status["pid"])
            assert status["pid"] != status["predecessor"] == old
            assert not set((await dispatcher.workers()).values()) & set(workers.values())
            assert [one["state"] for one in status["services"][0]["backends"]] == ["drained", "up"]
            assert '"ready": true' in await dispatcher.fetched("/readyz")
            async with raw_client(dispatcher.location) as comes:
                for client in (stays, comes):
                    assert (await ask(client, blob())).body == POISON
            assert dispatcher.process.poll() is None
        assert await dispatcher.ended() == 0

        async def alone() -> bool:
            return not (await dispatcher.status())["predecessor"]

        await until(alone)


async def test_whoever_asks_for_new_workers_is_told_of_their_parent(tmp_path: Path) -> None:
    async def restart() -> int:
        return 7

    crew = Crew(tmp_path, 0, lambda: None, restart, dict)
    async with aclosing(crew.handle({"do": "restart"})) as answers:
        assert [answer async for answer in answers] == [{"restarted": 7, "was": os.getpid(), "clients": 0}]


async def test_a_restart_that_fails_leaves_the_workers_as_they_are(tmp_path: Path) -> None:
    """Whoever asked for it is told, and clients notice nothing."""
    async with dispatching(tmp_path) as (dispatcher, _, _), raw_client(dispatcher.location) as client:
        workers = await dispatcher.workers()
        (tmp_path / "dispatcher.toml").write_text("nonsense")
        with pytest.raises(CommandError, match="not restarted: the new process did not take over"):
            await dispatcher.answers("restart")
        assert await dispatcher.workers() == workers
        assert (await ask(client, blob())).body == POISON


def end_at_last(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def test_a_file_that_cannot_be_shared_ends_the_command(tmp_path: Path) -> None:
    """One line with the place, exit code 2, and no worker."""
    path = tmp_path / "dispatcher.toml"
    path.write_text(
        '[[services]]\nname = "x"\nmax_in_flight = 1\n[[services.backends]]\nname = "a"\nuri = "PYRO:a@localhost:1"\n'
    )
    done = subprocess.run([*RUN, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "services[0].max_in_flight: 1 calls at once cannot be shared by 2 workers" in done.stderr
    assert parse_config(path.read_text()).services[0].max_in_flight == 1
