"""Numbers of bodies in pieces: each has one at a time, and who waits for one gets the next that is free."""

from __future__ import annotations

from contextlib import closing

from doubles import until

from pyroxfer_core.wire import MAX_BODIES
from pyroxfer_dispatcher.hub import Hub
from pyroxfer_dispatcher.numbering import Numbers


class Waiting:
    """An answer whose body is to leave."""

    def __init__(self) -> None:
        self.waits_for_number = True
        self.number: int | None = None

    def take_number(self, number: int) -> None:
        self.waits_for_number, self.number = False, number


async def test_who_waits_gets_the_number_that_becomes_free_unless_it_gave_up() -> None:
    with closing(Hub()) as hub:
        numbers = Numbers(hub)
        first, second, third = Waiting(), Waiting(), Waiting()
        taken = {numbers.take(Waiting()) for _ in range(MAX_BODIES)}
        assert taken == set(range(MAX_BODIES))
        assert [numbers.take(who) for who in (first, second, third)] == [None, None, None]
        first.waits_for_number = False
        numbers.give(7)
        await until(lambda: second.number == 7)
        assert (first.number, third.number) == (None, None)
        numbers.give(3)
        await until(lambda: third.number == 3)
        numbers.give(5)
        assert numbers.take(Waiting()) == 5
