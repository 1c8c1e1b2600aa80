"""The queue of a service, as plays: who runs, who waits, who is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import Uri
from pyroxfer_dispatcher.admission import Admission, Limits, NotAdmitted, Ticket
from pyroxfer_dispatcher.backends import Backend, BackendGroup
from pyroxfer_dispatcher.balance import Rendezvous
from pyroxfer_dispatcher.retries import AT_FIRST, MOST, RetryBudget


class Queue:
    """An admission whose put-off work is done when the test says so, and what it told whom."""

    def __init__(
        self,
        backends: int = 1,
        slots: int | None = 1,
        limits: Limits = Limits(max_queue=10),  # noqa: B008
        *,
        sticky: bool = False,
    ) -> None:
        self.backends = [Backend(f"b{n}", Uri(f"PYRO:x@h:{n}"), slots) for n in range(backends)]
        self.put_off: list[Callable[[float], None]] = []
        group = BackendGroup(self.backends, Rendezvous(), sticky=True) if sticky else BackendGroup(self.backends)
        self.admission = Admission("work", group, limits, self.put_off.append)
        self.told: list[tuple[Hashable, str]] = []
        self.running: list[tuple[Ticket, Backend]] = []

    def ticket(self, client: Hashable = "c", deadline: float = inf, only: Backend | None = None) -> Ticket:
        def wake(verdict: Backend | str) -> None:
            if isinstance(verdict, str):
                self.told.append((client, verdict))
            else:
                self.told.append((client, verdict.name))
                self.running.append((ticket, verdict))

        ticket = Ticket(client, wake, str(client), only, {}, deadline)
        return ticket

    def ask(
        self, client: Hashable = "c", now: float = 0.0, deadline: float = inf, only: Backend | None = None
    ) -> str:
        """What becomes of a new call at once."""
        ticket = self.ticket(client, deadline, only)
        try:
            backend = self.admission.ask(ticket, now)
        except NotAdmitted as refusal:
            return str(refusal)
        if backend is None:
            return "waits"
        self.running.append((ticket, backend))
        return backend.name

    def end(self, now: float = 0.0) -> None:
        """The call that runs longest ends."""
        ticket, backend = self.running.pop(0)
        self.admission.release(ticket, backend, now)
        self.settle(now)

    def settle(self, now: float = 0.0) -> None:
        while self.put_off:
            self.put_off.pop(0)(now)


def test_a_call_waits_while_all_are_busy_and_runs_in_its_turn() -> None:
    queue = Queue()
    assert [queue.ask("a"), queue.ask("b"), queue.ask("c")] == ["b0", "waits", "waits"]
    queue.end()
    assert queue.told == [("b", "b0")]
    queue.end()
    assert queue.told == [("b", "b0"), ("c", "b0")]


def test_nothing_is_given_out_within_a_release() -> None:
    """Whoever releases is not done yet: its link is not back in the pool."""
    queue = Queue()
    queue.ask()
    queue.ask("b")
    queue.admission.release(*queue.running.pop(), 0.0)
    assert queue.told == []
    queue.settle()
    assert queue.told == [("b", "b0")]


def test_a_stuck_call_holds_nobody_up() -> None:
    """One backend never answers: everybody who waits runs on the other one."""
    queue = Queue(backends=2)
    queue.ask("stuck")
    for number in range(6):
        queue.ask(number)
    for _ in range(5):
        queue.running.append(queue.running.pop(0))  # the stuck one is not the one that ends
        ticket, backend = next((t, b) for t, b in queue.running if b.name == "b1")
        queue.running.remove((ticket, backend))
        queue.admission.release(ticket, backend, 0.0)
        queue.settle()
    assert queue.told == [(number, "b1") for number in range(1, 6)]


def test_a_full_queue_refuses_at_once_with_a_hint() -> None:
    queue = Queue(limits=Limits(max_queue=2))
    queue.ask("a")
    queue.end(now=2.0)  # a call takes two seconds
    assert [queue.ask("a"), queue.ask("a"), queue.ask("a")] == ["b0", "waits", "waits"]
    assert queue.ask("a") == "service 'work' is overloaded: 2 calls wait, its limit; try again in 6.00 s"


def test_clients_take_turns() -> None:
    """A greedy client waits behind itself, not before the others."""
    queue = Queue(limits=Limits(max_queue=100))
    queue.ask("greedy")
    for _ in range(50):
        queue.ask("greedy")
    queue.ask("modest")
    for _ in range(4):
        queue.end()
    assert [client for client, _ in queue.told] == ["greedy", "modest", "greedy", "greedy"]


def test_a_full_queue_makes_room_for_those_who_have_less_in_it() -> None:
    queue = Queue(limits=Limits(max_queue=5))
    for _ in range(6):
        queue.ask("greedy")
    assert queue.ask("modest") == "waits"
    queue.settle()
    [(client, text)] = queue.told
    assert client == "greedy"
    assert "overloaded" in text
    assert queue.admission.waiting == 5


def test_a_call_that_leaves_before_it_is_told_is_told_nothing() -> None:
    """Whoever had it may have another one by then."""
    queue = Queue(limits=Limits(max_queue=2))
    queue.ask("greedy")
    victims = [queue.ticket("greedy") for _ in range(2)]
    for victim in victims:
        assert queue.admission.ask(victim, 0.0) is None
    assert queue.ask("modest") == "waits"
    for victim in victims:
        queue.admission.leave(victim)
    queue.settle()
    assert queue.told == []
    assert queue.admission.waiting == 1


def test_a_call_whose_deadline_passes_is_dropped_unsent() -> None:
    queue = Queue()
    queue.ask("a")
    queue.ask("b", deadline=1.0)
    queue.ask("c")
    queue.admission.look(0.9)
    assert queue.told == []
    queue.admission.look(1.0)
    assert [client for client, _ in queue.told] == ["b"]
    assert "deadline" in queue.told[0][1]
    queue.end(now=2.0)
    assert queue.told[1:] == [("c", "b0")]


def test_a_call_that_cannot_make_it_is_refused_at_once() -> None:
    """Behind three calls of two seconds, one that must be done in four has no chance."""
    queue = Queue()
    queue.ask()
    queue.end(now=2.0)
    for _ in range(4):
        queue.ask("a", now=2.0)
    assert "its deadline would pass" in queue.ask("b", now=2.0, deadline=6.0)
    assert queue.ask("b", now=2.0, deadline=60.0) == "waits"


def test_waiting_has_an_end() -> None:
    queue = Queue(limits=Limits(max_queue=5, queue_timeout_s=3.0))
    queue.ask("a")
    queue.ask("b", now=1.0)
    queue.admission.look(3.9)
    assert queue.told == []
    queue.admission.look(4.0)
    assert "it waited 3 s for a backend" in queue.told[0][1]


def test_no_live_backend_is_said_at_once_and_to_those_who_wait() -> None:
    queue = Queue()
    queue.ask("a")
    queue.ask("b")
    queue.admission.group.failed(queue.backends[0], 0.0, "refused")
    queue.admission.changed()
    queue.settle()
    [(client, text)] = queue.told
    assert client == "b"
    assert text.startswith("no live backend of service 'work': b0 is down (refused)")
    assert queue.ask("c").startswith("no live backend")


def test_the_service_and_each_client_have_limits() -> None:
    queue = Queue(slots=None, limits=Limits(max_in_flight=3, client_max_in_flight=2, max_queue=10))
    assert [queue.ask("a"), queue.ask("a"), queue.ask("a"), queue.ask("b"), queue.ask("c")] == [
        "b0",
        "b0",
        "waits",
        "b0",
        "waits",
    ]
    queue.end()
    assert queue.told == [("a", "b0")], "it was first, and has room again"
    queue.end()
    assert queue.told[1:] == [("c", "b0")]


def test_a_call_of_one_backend_waits_for_that_one_only() -> None:
    """Another backend's slot is no use to it, and it holds up nobody who could use it."""
    queue = Queue(backends=2)
    first, _ = queue.backends
    assert queue.ask("a", only=first) == "b0"
    assert queue.ask("b", only=first) == "waits"
    assert queue.ask("c") == "b1"
    assert queue.ask("d") == "waits"
    queue.running.reverse()
    queue.end()
    assert queue.told == [("d", "b1")]


def test_who_leaves_the_queue_gets_nothing() -> None:
    queue = Queue()
    queue.ask("a")
    ticket = queue.ticket("b")
    assert queue.admission.ask(ticket, 0.0) is None
    queue.admission.leave(ticket)
    queue.admission.leave(ticket)
    queue.end()
    assert queue.told == []
    assert queue.admission.waiting == 0


def picks_of_an_end(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a backend is looked for when the call that runs longest ends."""
    seen: list[object] = []
    pick = queue.admission.group.pick

    def counted(*args: object, **more: object) -> Backend | None:
        seen.append(args)
        return pick(*args, **more)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(queue.admission.group, "pick", counted)
    queue.end()
    monkeypatch.undo()
    return len(seen)


@pytest.mark.parametrize("sticky", [False, True])
def test_a_call_that_ends_costs_the_same_however_many_wait(sticky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place is free: the first who can have it runs, and the others are not all tried again."""
    queue = Queue(backends=3, limits=Limits(max_queue=500), sticky=sticky)
    for number in range(300):
        queue.ask(number)
    queue.end()  # from here on it is known for whom each waits
    told = len(queue.told)
    assert picks_of_an_end(queue, monkeypatch) <= 2
    assert len(queue.told) == told + 1


def test_a_key_that_waits_moves_on_when_its_backend_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(backends=2, sticky=True)
    first = queue.ask("k")
    assert queue.ask("k") == "waits"
    queue.admission.look(0.0)
    assert queue.told == []
    gone = next(backend for backend in queue.backends if backend.name == first)
    queue.admission.group.failed(gone, 0.0, "refused")
    queue.admission.changed()
    queue.settle()
    assert [verdict for _, verdict in queue.told] == [name for name in ("b0", "b1") if name != first]


STEPS = st.tuples(st.sampled_from(["ask", "ask for one", "end", "look", "fail"]), st.integers(0, 3))


@given(st.lists(STEPS, max_size=80), st.integers(1, 3), st.integers(0, 4), st.booleans())
def test_no_story_loses_a_call_or_a_slot(steps: list[tuple[str, int]], slots: int, room: int, sticky: bool) -> None:
    """Whatever happens: limits hold, every call is told exactly once, nobody who could run waits, and nothing is left
    at the end."""
    limits = Limits(max_in_flight=4, client_max_in_flight=2, max_queue=room, queue_timeout_s=5.0)
    queue = Queue(backends=2, slots=slots, limits=limits, sticky=sticky)
    now, waiting = 0.0, 0
    for step, number in steps:
        now += 0.3
        if step == "ask":
            waiting += queue.ask(number, now) == "waits"
        elif step == "ask for one":
            waiting += queue.ask(number, now, only=queue.backends[number % 2]) == "waits"
        elif step == "end" and queue.running:
            queue.end(now)
        elif step == "look":
            queue.admission.look(now)
        elif step == "fail":
            queue.admission.group.failed(queue.backends[number % 2], now, "x")
            queue.admission.changed()
        queue.settle(now)
        told = len(queue.told)
        queue.admission.grant(now)
        assert step == "ask for one" or len(queue.told) == told or queue.told[-1][1] not in ("b0", "b1")
        assert queue.admission.waiting <= room
        assert queue.admission.running == len(queue.running) <= 4
        assert all(backend.in_flight <= slots for backend in queue.backends)
        assert sum(backend.in_flight for backend in queue.backends) == len(queue.running)
        assert max(Counter(ticket.client for ticket, _ in queue.running).values(), default=0) <= 2
    while queue.running:
        queue.end(now)
    queue.admission.look(now + 1000)
    while queue.running:
        queue.end(now + 1000)
    queue.settle(now + 1000)
    assert queue.admission.waiting == 0
    assert len(queue.told) == waiting


def test_retries_are_a_tenth_of_the_calls_in_the_long_run() -> None:
    budget = RetryBudget()
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert spent == pytest.approx(AT_FIRST + 100, abs=1)
    assert (budget.used, budget.denied) == (spent, 1000 - spent)
    for _ in range(100_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == pytest.approx(MOST, abs=1)
