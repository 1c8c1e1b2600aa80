"""Several workers on one listener: the parent that keeps them, how connections are shared, and keys among them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from doubles import until

from pyroxfer_core import Daemon, Proxy, behavior, expose
from pyroxfer_core import blocking as pyro
from pyroxfer_core.cli.echo import echo
from pyroxfer_core.errors import CommunicationError, DaemonError, Outcome, PyroError
from pyroxfer_core.processes.claims import Claims
from pyroxfer_core.processes.handover import Mailbox, hand_over
from pyroxfer_core.processes.loads import AFTER_YOU_S, AcceptShare, LoadBoard
from pyroxfer_core.processes.post import Post, take_post
from pyroxfer_core.processes.supervisor import LEAST_PAUSE_S, MOST_PAUSE_S, STEADY_S, Supervisor
from pyroxfer_core.processes.worker import Worker
from pyroxfer_core.transport.side import SideStream


class FakeChild:
    """A worker that serves, ends and gets signals as the test says."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.signals: list[int] = []
        self.serves = False
        self.settled = trio.Event()
        self.ended = trio.Event()
        self.code = 0

    async def ready(self) -> bool:
        await self.settled.wait()
        return self.serves

    async def wait(self) -> int:
        await self.ended.wait()
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def end(self, code: int) -> None:
        self.code = code
        self.settled.set()
        self.ended.set()


class Fakes:
    """Starts fakes, and remembers them with the time of their start."""

    def __init__(self, *, serve: bool = True) -> None:
        self.serve = serve
        self.started: list[tuple[float, FakeChild]] = []
        self.gone: list[int] = []
        self.failures = 0
        self.listening = True

    async def __call__(self, number: int) -> FakeChild:
        if not self.listening:
            raise ValueError("bad value(s) in fds_to_keep")
        if self.failures:
            self.failures -= 1
            raise OSError(12, "Cannot allocate memory")
        child = FakeChild(number)
        if self.serve:
            child.serves = True
            child.settled.set()
        self.started.append((trio.current_time(), child))
        return child

    def stop_listening(self) -> None:
        self.listening = False

    @property
    def children(self) -> list[FakeChild]:
        return [child for _, child in self.started]


@asynccontextmanager
async def supervised(fakes: Fakes, count: int) -> AsyncIterator[tuple[Supervisor, list[int]]]:
    """A supervisor that has begun; its result is put into the list at its end."""
    supervisor = Supervisor(fakes, count, fakes.gone.append, fakes.stop_listening)
    result: list[int] = []

    async def run() -> None:
        result.append(await supervisor.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await supervisor.serving.wait()
        try:
            yield supervisor, result
        except BaseException:
            for child in fakes.children:
                child.end(0)
            raise


@pytest.mark.deadline(300)  # of a clock that jumps
async def test_a_worker_that_dies_is_replaced_after_a_growing_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each death in a row doubles the pause up to its limit; one that lived long begins anew."""
    fakes = Fakes()
    async with supervised(fakes, 2) as (supervisor, result):
        assert [child.number for child in fakes.children] == [0, 1]
        pauses = []
        for turn in range(10):
            if turn == 9:
                await trio.sleep(STEADY_S)
            died = trio.current_time()
            fakes.children[-1].end(-signal.SIGKILL)
            await trio.sleep(MOST_PAUSE_S + 1)
            pauses.append(fakes.started[-1][0] - died)
            assert fakes.children[-1].number == 1
        assert pauses[:3] == pytest.approx([LEAST_PAUSE_S, 2 * LEAST_PAUSE_S, 4 * LEAST_PAUSE_S], abs=0.01)
        assert pauses[8] == pytest.approx(MOST_PAUSE_S, abs=0.01)
        assert pauses[9] == pytest.approx(LEAST_PAUSE_S, abs=0.01)
        assert fakes.gone == [1] * 10
        assert fakes.listening
        assert not fakes.children[0].signals
        supervisor.tell(signal.SIGTERM)
        for number in range(2):
            next(child for child in reversed(fakes.children) if child.number == number).end(0)
    assert result == [0]


async def test_signals_go_to_all_and_after_the_last_one_nobody_is_replaced() -> None:
    """SIGHUP is passed on and changes nothing; SIGTERM ends; the exit code is the highest."""
    fakes = Fakes()
    async with supervised(fakes, 3) as (supervisor, result):
        supervisor.tell(signal.SIGHUP)
        assert fakes.listening
        supervisor.tell(signal.SIGTERM)
        assert not fakes.listening
        assert [child.signals for child in fakes.children] == [[signal.SIGHUP, signal.SIGTERM]] * 3
        supervisor.tell(signal.SIGTERM)
        assert fakes.children[1].signals[-2:] == [signal.SIGTERM] * 2
        for child, code in zip(fakes.children, (0, -signal.SIGTERM, 3), strict=True):
            child.end(code)
    assert result == [128 + signal.SIGTERM]
    assert len(fakes.children) == 3


async def test_a_worker_that_does_not_serve_yet_is_told_to_reload_when_it_does() -> None:
    """SIGHUP would end a program that has not begun to listen to it, and with the first worker the whole command."""
    fakes = Fakes(serve=False)
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(fakes, 1)
        nursery.start_soon(supervisor.run)
        await until(lambda: bool(fakes.children))
        [child] = fakes.children
        supervisor.tell(signal.SIGHUP)
        supervisor.tell(signal.SIGHUP)
        assert child.signals == []
        child.serves = True
        child.settled.set()
        await supervisor.serving.wait()
        assert child.signals == [signal.SIGHUP]
        supervisor.tell(signal.SIGHUP)
        supervisor.tell(signal.SIGTERM)
        assert child.signals == [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]
        child.end(0)


async def test_one_that_ends_by_itself_ends_all() -> None:
    """Exit code 0 without being told: the service is over."""
    fakes = Fakes()
    async with supervised(fakes, 2) as (_, result):
        fakes.children[1].end(0)
        while not fakes.children[0].signals:
            await trio.lowlevel.checkpoint()
        assert fakes.children[0].signals == [signal.SIGTERM]
        fakes.children[0].end(0)
    assert result == [0]


async def test_what_keeps_the_first_from_serving_is_not_tried_again() -> None:
    """A wrong option ends the command, once and with its own exit code."""
    fakes = Fakes(serve=False)
    async with trio.open_nursery() as nursery:

        async def fail() -> None:
            while not fakes.children:
                await trio.lowlevel.checkpoint()
            fakes.children[0].end(4)

        nursery.start_soon(fail)
        assert await Supervisor(fakes, 3).run() == 4
    assert len(fakes.children) == 1


async def test_a_system_without_room_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """A worker that cannot be started counts as one that died."""
    fakes = Fakes()
    async with supervised(fakes, 1) as (supervisor, _):
        fakes.failures = 2
        fakes.children[0].end(1)
        await trio.sleep(5)
        assert len(fakes.children) == 2
        supervisor.tell(signal.SIGTERM)
        fakes.children[1].end(0)


async def test_a_worker_that_is_awaited_while_all_are_told_to_end_is_told_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """SIGTERM ends the pause; one that has not begun to serve may die of it."""
    fakes = Fakes()
    async with supervised(fakes, 3) as (supervisor, result):
        first, second, third = sorted(fakes.children, key=lambda child: child.number)
        fakes.serve = False
        second.end(1)
        await trio.sleep(1)
        third.end(1)
        await trio.sleep(0.01)
        supervisor.tell(signal.SIGTERM)
        assert fakes.children[3].number == second.number
        fakes.children[3].end(-signal.SIGTERM)
        first.end(0)
    assert result == [0]
    assert len(fakes.children) == 4


async def test_nobody_is_started_any_more_when_all_were_told_to_end() -> None:
    """Not even those that would have begun as soon as the first one served: what they accept on is closed."""
    fakes = Fakes(serve=False)
    supervisor = Supervisor(fakes, 3, fakes.gone.append, fakes.stop_listening)
    result: list[int] = []

    async def run() -> None:
        result.append(await supervisor.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: fakes.children)
        (first,) = fakes.children
        first.serves = True
        supervisor.tell(signal.SIGTERM)
        first.end(0)
    assert (result, fakes.gone) == ([0], [0])


async def test_cancelling_the_parent_waits_for_the_workers() -> None:
    """Whatever ends the parent early, its workers are told to end, and have."""
    fakes = Fakes()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(fakes, 2)
        nursery.start_soon(supervisor.run)
        await supervisor.serving.wait()

        async def end_when_told(child: FakeChild) -> None:
            with trio.CancelScope(shield=True):
                while not child.signals:
                    await trio.lowlevel.checkpoint()
                child.end(0)

        for child in fakes.children:
            nursery.start_soon(end_when_told, child)
        nursery.cancel_scope.cancel()
    assert [child.signals for child in fakes.children] == [[signal.SIGTERM]] * 2


# --- sharing


async def test_who_has_more_connections_lets_others_go_first(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """The worker with the fewest never waits; one with more does, unless the others accept nothing."""
    one, two = (AcceptShare(LoadBoard(tmp_path / "loads", 2), number) for number in range(2))

    async def wait_of(share: AcceptShare) -> float:
        began = trio.current_time()
        await share.turn()
        return trio.current_time() - began

    one.entered()
    assert await wait_of(one) == 0, "the other has not come yet"
    assert await wait_of(two) == 0
    assert await wait_of(one) == pytest.approx(AFTER_YOU_S)
    two.entered()
    assert await wait_of(one) == 0
    two.left()
    two.over()
    two.left()
    assert await wait_of(one) == 0, "the other accepts nothing"


# --- places


def test_a_place_is_told_in_the_environment_and_only_once() -> None:
    """What the parent writes comes back the same, and is not left for programs that a worker starts."""
    post = Post(1, 4, "/tmp/x", 7, (3, 4), replaces=True)
    environment = {"PYROXFER_WORKER": post.to_text()}
    assert take_post(environment) == post
    assert take_post(environment) is None


@pytest.mark.parametrize("text", ["", "1", "{}", "[]", '{"number": "x"}'])
def test_a_place_that_nobody_gave_is_one_line(text: str) -> None:
    """A variable set by hand is refused with a word about it."""
    with pytest.raises(PyroError, match="unset it"):
        take_post({"PYROXFER_WORKER": text})


# --- keys


def test_a_key_is_claimed_by_one_worker(tmp_path: Path) -> None:
    """The second is told so until the first gives it up."""
    one, two = Claims(tmp_path, 0, 60.0), Claims(tmp_path, 1, 60.0)
    assert one.take("k")
    assert not two.take("k")
    assert not one.take("k"), "whoever asks twice has forgotten it: it may have run"
    one.give_up("k")
    assert two.take("k")


def test_claims_of_the_dead_stay_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker in the place of one that died has its claims removed when one would have forgotten them."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    dead, other = Claims(tmp_path, 0, 60.0), Claims(tmp_path, 1, 60.0)
    assert dead.take("dead")
    assert other.take("other")
    monkeypatch.setattr("os.getpid", lambda: 2)
    successor = Claims(tmp_path, 0, 60.0)
    assert successor.take("own")
    successor.sweep(1000.0)
    successor.sweep(1059.0)
    assert not other.take("dead")
    successor.sweep(1060.0)
    assert other.take("dead")
    assert not other.take("own")
    assert not successor.take("other")


# --- handing over


def connected() -> tuple[SideStream, SideStream]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return SideStream(ends[0]), SideStream(ends[1])


async def test_a_stream_goes_on_in_the_worker_that_it_was_handed_to(tmp_path: Path) -> None:
    """Token and early bytes go with it, and the sender's copy of the descriptor holds nothing open."""
    taken: list[SideStream] = []
    arrived = trio.Event()

    async def keep(stream: SideStream) -> None:
        taken.append(stream)
        arrived.set()
        assert await stream.receive_exactly(5) == b"early"
        await stream.send_all(b"answer")

    client, accepted = connected()
    accepted.token = b"t" * 90
    accepted._received = b"early"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Mailbox(tmp_path, 3).serve, keep)
        async with client:
            assert await hand_over(accepted, tmp_path, 3)
            await accepted.aclose()
            assert await client.receive_exactly(6) == b"answer"
            assert await client.receive_some() == b""
        nursery.cancel_scope.cancel()
    assert bytes(taken[0].token).rstrip(b"\0") == b"t" * 90


async def test_nobody_takes_a_stream_for_a_worker_that_is_gone(tmp_path: Path) -> None:
    """It is told, and nothing waits."""
    client, accepted = connected()
    async with client, accepted:
        assert not await hand_over(accepted, tmp_path, 1)


# --- a daemon that is one of several workers


@expose
@behavior(stateless=True)
class Adder:
    """Counts how often it ran."""

    def __init__(self) -> None:
        self.ran = 0

    async def add(self, value: int) -> int:
        self.ran += 1
        return value + 1


@expose
class Plain:
    """An ordinary class: an object for each connection."""

    async def hello(self) -> str:
        return "hello"


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def test_a_key_that_another_worker_had_is_unknown_and_runs_nothing(tmp_path: Path) -> None:
    """Whoever repeats a call at another worker is told that it may have run; where it ran, the answer is repeated."""
    adders = [Adder(), Adder()]
    async with AsyncExitStack() as stack:
        proxies = []
        for number, adder in enumerate(adders):
            worker = Worker(number, 2, tmp_path, [listening()])
            daemon = await stack.enter_async_context(Daemon(worker=worker))
            proxies.append(await stack.enter_async_context(Proxy(daemon.register(adder, "adder"))))
        key = b"a key of sixteen bytes"
        assert await proxies[0].add.options(key=key)(1) == 2
        with pytest.raises(CommunicationError, match="came to another worker") as caught:
            await proxies[1].add.options(key=key)(1)
        assert caught.value.outcome is Outcome.UNKNOWN
        assert await proxies[0].add.options(key=key)(1) == 2
        assert await proxies[1].add.options(key=b"another of sixteen bytes")(1) == 2
    assert [adder.ran for adder in adders] == [1, 1]


async def test_an_object_that_there_is_only_one_of_is_refused(tmp_path: Path) -> None:
    """Every worker would have its own; classes with sessions are fine, and what says that it does not matter."""
    async with Daemon(worker=Worker(0, 2, tmp_path, [listening()])) as daemon:
        daemon.register(Plain, "plain")
        daemon.register(Adder(), "adder")
        with pytest.raises(DaemonError, match="stateless=True"):
            daemon.register(Plain(), "one")


# --- as processes


@contextmanager
def echoing(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``pyroxfer echo`` with workers, and where it serves."""
    command = (sys.executable, "-c", "from pyroxfer_core.cli.echo import echo; echo()", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = [line.strip() for line in iter(process.stdout.readline, "echoserver running.\n") if line]
        yield process, lines[-1].removeprefix("echo uri: ")
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return sorted(int(pid) for found in lists for pid in found.read_text().split())


def replaces(pid: int) -> bool | None:
    """Whether its parent has told a worker that it takes the place of another; None before its program runs."""
    environment = dict(word.partition("=")[::2] for word in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    post = take_post(environment)
    return None if post is None else post.replaces


def connections_of(pid: int, port: int) -> int:
    """Established connections at this end of a port."""
    wanted = f"0100007F:{port:04X}"
    held = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == wanted and row[3] == "01" and f"socket:[{row[9]}]" in held for row in rows)


async def test_idle_connections_spread_and_a_killed_worker_is_replaced() -> None:
    """Each of two workers has about half; the connections of one that is killed end, and others go on."""
    with echoing("--workers", "2") as (process, uri):
        port = int(uri.rpartition(":")[2])
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(Proxy(uri)) for _ in range(20)]
            for number, proxy in enumerate(proxies):
                assert await proxy.echo(number) == number
            first, second = (connections_of(pid, port) for pid in workers_of(process))
            assert first + second == 20
            assert abs(first - second) <= 4
            victim, other = workers_of(process)
            os.kill(victim, signal.SIGKILL)
            await until(lambda: len(workers_of(process)) == 2 and victim not in workers_of(process))
            (fresh,) = {*workers_of(process)} - {other}
            await until(lambda: replaces(fresh) is not None)
            assert [replaces(pid) for pid in (other, fresh)] == [False, True]
            for number, proxy in enumerate(proxies):
                assert await proxy.echo(number) == number
        process.terminate()
        assert process.wait(60) == 0


async def test_workers_end_when_their_parent_is_killed() -> None:
    """Nobody serves on behind the back of who started them."""
    with echoing("--workers", "2") as (process, uri):
        pids = workers_of(process)
        process.kill()
        process.wait(60)
        await until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in pids))
        with pytest.raises(CommunicationError):
            async with Proxy(uri) as proxy:
                await proxy.echo(1)


async def test_an_object_that_ends_its_server_ends_all_workers() -> None:
    """A worker that ends well by itself is the end of the service."""
    with echoing("--workers", "2") as (process, uri):
        async with Proxy(uri) as proxy:
            await proxy.shutdown()
        await trio.to_thread.run_sync(process.wait, 60)
        assert process.returncode == 0


@pytest.mark.parametrize("text", ["0", "-1", "many", "257"])
def test_a_wrong_number_of_workers_is_a_usage_error(text: str) -> None:
    """One line, and exit code 2."""
    result = CliRunner().invoke(echo, ["--workers", text])
    assert result.exit_code == 2
    assert "neither 'auto' nor a number" in result.output


# --- the facade

PROGRAM = """
import sys
from pyroxfer_core import blocking as pyro

@pyro.expose
@pyro.behavior("percall")
class Adder:
    def add(self, one, two):
        return one + two

def main():
    pyro.serve({Adder: "adder"}, use_ns=False, workers=2)
    print("over", flush=True)

main()
"""


@contextmanager
def pyro_program() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


async def test_a_pyro_program_serves_in_workers() -> None:
    """`serve` of the facade with ``workers``; a worker that is killed is replaced; SIGTERM ends all, and what stands
    behind `serve` runs once."""
    with pyro_program() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Object adder:\n"
        uri = process.stdout.readline().strip().removeprefix("uri = ")
        assert process.stdout.readline() == "Pyro daemon running.\n"
        async with AsyncExitStack() as stack:
            for number in range(6):
                assert await (await stack.enter_async_context(Proxy(uri))).add(1, number) == number + 1
            victim = workers_of(process)[1]
            os.kill(victim, signal.SIGKILL)
            await until(lambda: len(workers_of(process)) == 2 and victim not in workers_of(process))
        process.terminate()
        rest = await trio.to_thread.run_sync(process.stdout.read)
        assert await trio.to_thread.run_sync(process.wait, 60) == 0
        assert rest == "over\n"


def test_what_workers_cannot_serve_is_told_at_once() -> None:
    """An object there is only one of, and one without a name, before any process is started."""
    with pytest.raises(DaemonError, match="stateless=True"):
        pyro.serve({Plain(): "plain"}, use_ns=False, workers=2)
    with pytest.raises(ValueError, match="give it a name"):
        pyro.serve({Plain: None}, use_ns=False, workers=2)
    with pytest.raises(ValueError, match="neither 'auto'"):
        pyro.serve({Plain: "plain"}, use_ns=False, workers="many")
