"""Plays of calls that their client gives up, and of answers that can be taken back."""

from __future__ import annotations

import pytest
from doubles_dispatch import PARTY
from doubles_plays import Play, Stage, called, forwarded, reply, request, stream_reply, with_service

from pyroxfer_core.errors import Outcome
from pyroxfer_core.wire import BodyPart, End
from pyroxfer_dispatcher.admission import Limits
from pyroxfer_dispatcher.calls import Phase
from pyroxfer_dispatcher.commands import (
    CancelCall,
    CloseBackend,
    CloseClient,
    Fail,
    Forward,
    KeepBackend,
    OpenBackend,
    ReleaseBackend,
    Reply,
    ReplyPart,
    StopOpening,
    UseKeptBackend,
)
from pyroxfer_dispatcher.dialects import BlobDialect
from pyroxfer_dispatcher.events import (
    BackendLeaves,
    BackendLost,
    BackendOpened,
    BlobArrived,
    CallDropped,
    CannotCancel,
    ReplyArrived,
    ReplyEnded,
    ReplyPartArrived,
)
from pyroxfer_dispatcher.forwarding import Forwarding


@pytest.fixture
def stage() -> Stage:
    """Whose client takes answers back."""
    stage = Stage()
    stage.forwarding = Forwarding(BlobDialect(stage.directory), 502, PARTY, takes_back=True)
    return stage


def given_up(outcome: Outcome, text: str) -> Fail:
    return Fail(request(), outcome, text, was_wanted=False)


def test_while_its_connection_is_being_made(stage: Stage) -> None:
    text = "it was cancelled before it was sent"
    stage.perform(
        [
            (BlobArrived(request()), [OpenBackend(stage.a, 502)]),
            (CallDropped(), [StopOpening(), given_up(Outcome.NOT_SENT, text)]),
        ]
    )


def test_while_it_is_being_sent(stage: Stage) -> None:
    stage.perform(
        [
            *called(stage, request(), stage.a)[:-1],
            (CallDropped(), [CloseBackend(), given_up(Outcome.NOT_SENT, "it was cancelled while it was being sent")]),
        ]
    )


def test_while_its_body_comes(stage: Stage) -> None:
    """It does not wait for the rest."""
    asked = request()
    stage.perform(
        [
            (BlobArrived(asked, 9), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"), 9)]),
            (CallDropped(), [CloseBackend(), given_up(Outcome.NOT_SENT, "it was cancelled while it was being sent")]),
        ]
    )
    assert stage.forwarding.phase is Phase.IDLE


def test_while_it_runs(stage: Stage) -> None:
    """It is answered, and its backend has no fault."""
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (CallDropped(), [CancelCall()]),
            (CallDropped(), []),
            (ReplyArrived(reply(1)), [ReleaseBackend(), Reply(reply(7))]),
        ]
    )
    assert stage.directory.services["orders"].tally == {"calls": 1, "cancelled": 1}


def test_while_it_runs_where_nobody_can_be_told(stage: Stage) -> None:
    text = "it was cancelled before it was answered"
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (CallDropped(), [CancelCall()]),
            (CannotCancel(), [CloseBackend(), given_up(Outcome.UNKNOWN, text)]),
        ]
    )


def test_within_its_answer(stage: Stage) -> None:
    text = "it was cancelled within its answer"
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (ReplyArrived(reply(1), 9), [Reply(reply(7), 9)]),
            (ReplyPartArrived(b"x"), [ReplyPart(b"x")]),
            (CallDropped(), [CloseBackend(), given_up(Outcome.EXECUTED, text)]),
        ]
    )


def test_a_refused_call_whose_body_will_not_come(stage: Stage) -> None:
    """The refusal does not wait for it, and stands."""
    asked = request("nobody")
    told = Fail(asked, Outcome.NOT_SENT, "no route for topic 'nobody'")
    stage.perform([(BlobArrived(asked, 9), []), (BodyPart(b"x"), []), (CallDropped(), [told])])


def test_while_it_waits() -> None:
    stage = Stage()
    service = with_service(stage, limits=Limits(max_in_flight=1, max_queue=1))
    other = Forwarding(BlobDialect(stage.directory), 502, PARTY)
    stage.perform([(BlobArrived(request()), [OpenBackend(stage.a, 502)])])
    waiting = Forwarding(stage.forwarding._dialect, 502, PARTY)
    assert waiting.handle(BlobArrived(request()), 0.0) == []
    text = "it was cancelled while it waited for a backend"
    assert waiting.handle(CallDropped(), 0.0) == [given_up(Outcome.NOT_SENT, text)]
    assert (service.admission.waiting, service.admission.running, other.phase) == (0, 1, Phase.IDLE)


@pytest.mark.parametrize(
    ("event", "outcome", "text"),
    [
        (BackendLeaves(has_begun=False), Outcome.NOT_SENT, "the backend is going away"),
        (BackendLost("reset"), Outcome.UNKNOWN, "backend lost before it answered: reset"),
    ],
    ids=["leaves", "lost"],
)
def test_what_nobody_wants_is_not_sent_again(event: BackendLeaves | BackendLost, outcome: Outcome, text: str) -> None:
    stage = Stage()
    service = with_service(stage, idempotent=frozenset({"*"}))
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (CallDropped(), [CancelCall()]),
            (event, [CloseBackend(), given_up(outcome, text)]),
        ]
    )
    assert service.retries.used == 0


def test_a_cancelled_item_does_not_cost_the_stream(stage: Stage) -> None:
    """Where the backend understands it."""
    asked = request()
    answer = stream_reply(1, b"id")
    play: Play = [
        *called(stage, asked, stage.a),
        (ReplyArrived(answer), [KeepBackend(), Reply(stream_reply(7, b"id"))]),
        (BlobArrived(request(seq=8)), [UseKeptBackend()]),
        (BackendOpened(2, "obj", 502), [Forward(forwarded(request(seq=8), 2, "obj"))]),
    ]
    stage.perform(play)


def test_an_answer_that_breaks_off_is_taken_back(stage: Stage) -> None:
    """The client's other calls go on."""
    text = "backend lost within its answer: reset"
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (ReplyArrived(reply(1), 9), [Reply(reply(7), 9)]),
            (BackendLost("reset"), [CloseBackend(), Fail(request(), Outcome.EXECUTED, text)]),
            *called(stage, request(), stage.b),
        ]
    )
    assert not isinstance(stage.forwarding.handle(ReplyArrived(reply(1)), 0.0)[-1], CloseClient)
    assert stage.in_flight == [0, 0, 0]


def test_the_next_call_goes_its_own_way(stage: Stage) -> None:
    """Nothing of the call that was given up is left."""
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (CallDropped(), [CancelCall()]),
            (CannotCancel(), [CloseBackend(), given_up(Outcome.UNKNOWN, "it was cancelled before it was answered")]),
            *called(stage, request(), stage.b),
            (ReplyArrived(reply(1), 9), [Reply(reply(7), 9)]),
            (ReplyEnded(), [ReleaseBackend()]),
        ]
    )
    assert stage.forwarding.handle(BlobArrived(request(), 9), 0.0) == [OpenBackend(stage.a, 502)]
    assert stage.forwarding.handle(BackendOpened(1, "obj", 502), 0.0) == [Forward(forwarded(request(), 1, "obj"), 9)]
    assert stage.forwarding.handle(End(), 0.0) == []
    assert stage.in_flight == [1, 0, 0]
