"""Plays: a whole conversation as a list of (event, commands that must follow)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from doubles_dispatch import PARTY
from doubles_plays import (
    CORRELATION,
    POISON,
    Play,
    Stage,
    called,
    forwarded,
    item,
    reply,
    request,
    stream_reply,
    with_service,
)
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.errors import Outcome
from pyroxfer_core.wire import Body, BodyPart, End, Flags, Message, MessageType, read_blob_info
from pyroxfer_dispatcher.admission import Limits
from pyroxfer_dispatcher.calls import Phase
from pyroxfer_dispatcher.commands import (
    Announce,
    CloseBackend,
    CloseClient,
    Command,
    Fail,
    Forward,
    ForwardPart,
    KeepBackend,
    OpenBackend,
    ReleaseBackend,
    Reply,
    ReplyPart,
    ReplyStream,
    StopOpening,
    UseKeptBackend,
)
from pyroxfer_dispatcher.dialects import BlobDialect
from pyroxfer_dispatcher.events import (
    BackendLost,
    BackendOpened,
    BackendRefused,
    BlobArrived,
    CannotCarry,
    ClientLost,
    Event,
    ReplyArrived,
    ReplyEnded,
    ReplyPartArrived,
    RequestSent,
    SlotFree,
    SlotRefused,
)
from pyroxfer_dispatcher.forwarding import Forwarding

HOP: Mapping[str, Body] = {"PXFT": b"features", "PXDL": b"deadline"}


def test_a_call_and_its_answer_pass_under_new_heads(stage: Stage) -> None:
    """Sequence number and blob target are the hop's own; everything else is what came."""
    asked = request(seq=7, annotations={"XTRA": b"kept"})
    answer = reply(1, annotations={"YTRA": b"kept too"})
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (ReplyArrived(answer), [ReleaseBackend(), Reply(reply(7, annotations={"YTRA": b"kept too"}))]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


def test_bodies_are_handed_on_as_the_same_objects(stage: Stage) -> None:
    """A collected body is neither read nor copied, on the way there and back."""
    body, result = bytearray(POISON), bytearray(POISON)
    stage.forwarding.handle(BlobArrived(request(body=body)), 0)
    [forward] = stage.forwarding.handle(BackendOpened(1, "obj", 502), 0)
    assert isinstance(forward, Forward)
    assert forward.message.body is body
    stage.forwarding.handle(RequestSent(), 0)
    _, back = stage.forwarding.handle(ReplyArrived(reply(1, body=result)), 0)
    assert isinstance(back, Reply)
    assert back.message.body is result


@pytest.mark.parametrize(
    "flags",
    [Flags.EXCEPTION, Flags.COMPRESSED, Flags.BATCH, Flags.EXCEPTION | Flags.COMPRESSED],
)
def test_flags_pass_untouched(stage: Stage, flags: int) -> None:
    """Exceptions, compressed bodies and batches look to the dispatcher like any other."""
    asked = request(flags=Flags.KEEPSERIALIZED | (flags & ~Flags.EXCEPTION))
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (ReplyArrived(reply(1, flags)), [ReleaseBackend(), Reply(reply(7, flags))]),
        ]
    )


def test_hop_by_hop_annotations_stay_on_their_hop(stage: Stage) -> None:
    """What binds one connection is stripped in both directions."""
    asked = request(annotations=HOP)
    bare = request()
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(bare, 1, "obj"))]),
            (RequestSent(), []),
            (ReplyArrived(reply(1, annotations=HOP)), [ReleaseBackend(), Reply(reply(7))]),
        ]
    )


def test_calls_take_backends_in_turn(stage: Stage) -> None:
    stage.perform(
        [
            *called(stage, request(seq=1), stage.a),
            (ReplyArrived(reply(1)), [ReleaseBackend(), Reply(reply(1))]),
            *called(stage, request(seq=2), stage.b),
            (ReplyArrived(reply(1)), [ReleaseBackend(), Reply(reply(2))]),
            *called(stage, request(seq=3), stage.a, link_seq=2),
            (ReplyArrived(reply(2)), [ReleaseBackend(), Reply(reply(3))]),
        ]
    )


def test_a_service_may_name_the_method(stage: Stage) -> None:
    """Only object and method of the target are rewritten; the info is the sender's."""
    asked = request(("mail", 5))
    stage.forwarding.handle(BlobArrived(asked), 0)
    [forward] = stage.forwarding.handle(BackendOpened(1, "postman", 502), 0)
    assert isinstance(forward, Forward)
    target = read_blob_info(forward.message.annotations["BLBI"])
    assert (target.info, target.object_id, target.method) == (("mail", 5), "postman", "deliver")


def test_a_one_way_call_is_over_once_sent(stage: Stage) -> None:
    asked = request(flags=Flags.KEEPSERIALIZED | Flags.ONEWAY)
    play = called(stage, asked, stage.a)
    play[-1] = (RequestSent(), [ReleaseBackend()])
    stage.perform(play)
    assert stage.in_flight == [0, 0, 0]
    assert stage.forwarding.phase is Phase.IDLE


def test_a_one_way_call_that_fails_is_not_answered(stage: Stage) -> None:
    asked = request("nowhere", flags=Flags.KEEPSERIALIZED | Flags.ONEWAY)
    [fail] = stage.forwarding.handle(BlobArrived(asked), 0)
    assert isinstance(fail, Fail)
    assert not fail.wants_answer


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (request("nowhere"), "no route for topic 'nowhere'"),
        (request(5), "no route: the blob's info is neither a text nor a tuple that begins with one"),
        (request((5, "orders.new")), "no route: the blob's info is neither a text nor a tuple that begins with one"),
        (request("mail", object_id="other"), "unknown object 'other'; this is 'dispatcher'"),
        (request(flags=0), "only calls with one SerializedBlob argument can be dispatched"),
        (request("x" * 200), f"no route for topic '{'x' * 80}…'"),
    ],
    ids=["topic", "number", "tuple", "object", "no-blob", "long"],
)
def test_what_cannot_be_routed_is_refused_at_once(stage: Stage, asked: Message, text: str) -> None:
    """NotSent, and the connection lives on."""
    stage.perform([(BlobArrived(asked), [Fail(asked, Outcome.NOT_SENT, text)])])
    assert stage.forwarding.phase is Phase.IDLE


def test_a_garbled_target_is_refused(stage: Stage) -> None:
    asked = request()
    asked.annotations["BLBI"] = b"c\x00\x00"
    [fail] = stage.forwarding.handle(BlobArrived(asked), 0)
    assert isinstance(fail, Fail)
    assert fail.outcome is Outcome.NOT_SENT


def test_an_error_that_cannot_be_written_closes_the_client(stage: Stage) -> None:
    """A caller that reads pickle only gets no pickle from us."""
    [close] = stage.forwarding.handle(BlobArrived(request("nowhere", serializer="pickle")), 0)
    assert isinstance(close, CloseClient)
    assert stage.forwarding.phase is Phase.CLOSED


def test_ping_is_answered_here(stage: Stage) -> None:
    ping = Message(MessageType.PING, 0, "ping", 0, b"ping", {}, CORRELATION)
    pong = Message(MessageType.PING, 0, "ping", 0, b"pong", {}, CORRELATION)
    stage.perform([(BlobArrived(ping), [Reply(pong)])])


@pytest.mark.parametrize("kind", [MessageType.CONNECT, MessageType.RESULT, 99])
def test_a_message_out_of_place_ends_the_conversation(stage: Stage, kind: int) -> None:
    [close] = stage.forwarding.handle(BlobArrived(Message(kind, 0, "json", 0, b"")), 0)
    assert isinstance(close, CloseClient)


# -- backends that fail


def test_a_backend_that_cannot_be_reached_is_passed_over(stage: Stage) -> None:
    asked = request()
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendLost("connection refused"), [Announce(stage.a, False), OpenBackend(stage.b, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"))]),
        ]
    )
    assert stage.in_flight == [0, 1, 0]
    assert not stage.a.is_live(stage.now)


def test_no_live_backend_is_said_at_once(stage: Stage) -> None:
    """The caller reads which backends there are and why each is out; nothing is tried before its time."""
    asked = request()
    down = (
        "no live backend of service 'orders': a is down (refused), next try in 0.2 s;"
        " b is down (no answer), next try in 0.2 s"
    )
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendLost("refused"), [Announce(stage.a, False), OpenBackend(stage.b, 502)]),
            (BackendLost("no answer"), [Announce(stage.b, False), Fail(asked, Outcome.NOT_SENT, down)]),
            (BlobArrived(asked), [Fail(asked, Outcome.NOT_SENT, down)]),
        ]
    )
    stage.now = 1.0
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.b, 502)]),
            (BackendOpened(1, "obj", 502), [Announce(stage.b, True), Forward(forwarded(asked, 1, "obj"))]),
        ]
    )


def test_a_backend_that_takes_no_connection_is_passed_over_by_this_call_only(stage: Stage) -> None:
    """It may be full, and the connections it has go on: it is not down."""
    asked = request()
    text = "no live backend of service 'orders': a refused (no free workers); b is down (reset), next try in 0.2 s"
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendRefused("no free workers"), [OpenBackend(stage.b, 502)]),
            (BackendLost("reset"), [Announce(stage.b, False), Fail(asked, Outcome.NOT_SENT, text)]),
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
        ]
    )
    assert stage.in_flight == [1, 0, 0]


def test_lost_before_the_request_left_whole_goes_to_another(stage: Stage) -> None:
    asked = request()
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"))]),
            (BackendLost("reset"), [CloseBackend(), OpenBackend(stage.b, 502)]),
            (BackendOpened(4, "obj", 502), [Forward(forwarded(asked, 4, "obj"))]),
            (RequestSent(), []),
            (ReplyArrived(reply(4)), [ReleaseBackend(), Reply(reply(7))]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


def test_a_request_is_begun_three_times_at_most(stage: Stage) -> None:
    asked = request()
    text = "backend lost while sending: reset"
    scene: Play = [(BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"))])]
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            *scene,
            (BackendLost("reset"), [CloseBackend(), OpenBackend(stage.b, 502)]),
            *scene,
            (BackendLost("reset"), [CloseBackend(), OpenBackend(stage.a, 502)]),
            *scene,
            (BackendLost("reset"), [CloseBackend(), Fail(asked, Outcome.NOT_SENT, text)]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


def test_lost_after_the_request_left_is_unknown_and_never_repeated(stage: Stage) -> None:
    asked = request()
    text = "backend lost before it answered: reset"
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (BackendLost("reset"), [CloseBackend(), Fail(asked, Outcome.UNKNOWN, text)]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]
    assert stage.forwarding.phase is Phase.IDLE


def test_a_call_that_may_run_twice_is_sent_again_elsewhere(stage: Stage) -> None:
    """Declared idempotent: lost after it left, it goes to another backend, but to none that lost it."""
    with_service(stage, idempotent=frozenset({"process"}))
    asked = request()
    first, nobody = "backend lost before it answered: gone", "no live backend of service 'orders'"
    text = f"{first}; and when it was sent again: {nobody}: a refused ({first}); b is draining"
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (BackendLost("gone"), [CloseBackend(), OpenBackend(stage.b, 502)]),
        ]
    )
    stage.b.draining = True
    stage.perform([(BackendRefused("draining"), [Fail(asked, Outcome.UNKNOWN, text)])])
    assert stage.in_flight == [0, 0, 0]


def test_a_service_in_trouble_gets_no_retries(stage: Stage) -> None:
    """Its budget is spent: the call ends where it was lost."""
    service = with_service(stage, idempotent=frozenset({"*"}))
    while service.retries.spend():
        pass
    asked = request()
    text = "backend lost before it answered: gone"
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (BackendLost("gone"), [CloseBackend(), Fail(asked, Outcome.UNKNOWN, text)]),
        ]
    )


def test_a_call_waits_in_the_queue_and_goes_on_when_it_is_told(stage: Stage) -> None:
    """Or ends as NotSent, with the reason it is told."""
    stage.a.max_in_flight = stage.b.max_in_flight = 0
    service = with_service(stage, limits=Limits(max_queue=5))
    asked = request()
    stage.perform([(BlobArrived(asked), [])])
    assert stage.forwarding.phase is Phase.QUEUED
    stage.perform([(SlotRefused("too late"), [Fail(asked, Outcome.NOT_SENT, "too late")]), (BlobArrived(asked), [])])
    service.group.take(stage.b)
    stage.perform([(SlotFree(stage.b), [OpenBackend(stage.b, 502)])])


def test_a_client_that_leaves_the_queue_leaves_no_entry(stage: Stage) -> None:
    stage.a.max_in_flight = stage.b.max_in_flight = 0
    service = with_service(stage, limits=Limits(max_queue=5))
    stage.perform([(BlobArrived(request()), []), (ClientLost(), [])])
    assert service.admission.waiting == 0


@pytest.mark.parametrize("wrong", [reply(2), Message(MessageType.PING, 1, "json", 0, b"")], ids=["number", "type"])
def test_an_answer_to_something_else_is_no_answer(stage: Stage, wrong: Message) -> None:
    asked = request()
    text = "the backend answered something else than the call"
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (ReplyArrived(wrong), [CloseBackend(), Fail(asked, Outcome.UNKNOWN, text)]),
        ]
    )


def test_a_full_backend_is_passed_over_and_named(stage: Stage) -> None:
    stage.a.max_in_flight = stage.b.max_in_flight = 1
    others = [Forwarding(BlobDialect(stage.directory), 502, PARTY) for _ in range(2)]
    for other in others:
        other.handle(BlobArrived(request()), 0)
    assert stage.in_flight == [1, 1, 0]
    asked = request()
    state = "a runs 1 calls, its limit; b runs 1 calls, its limit"
    text = f"service 'orders' is overloaded: {state}; try again in 0.05 s"
    stage.perform([(BlobArrived(asked), [Fail(asked, Outcome.NOT_SENT, text)])])


# -- large messages


def test_a_large_request_passes_in_pieces(stage: Stage) -> None:
    asked = request(body=b"")
    stage.perform(
        [
            (BlobArrived(asked, 5), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"), 5)]),
            (BodyPart(b"abc"), [ForwardPart(b"abc")]),
            (BodyPart(b"de"), [ForwardPart(b"de")]),
            (End(), []),
            (ReplyArrived(reply(1)), [ReleaseBackend(), Reply(reply(7))]),
        ]
    )


def test_a_large_reply_passes_in_pieces(stage: Stage) -> None:
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (ReplyArrived(reply(1, body=b""), 5), [Reply(reply(7, body=b""), 5)]),
            (ReplyPartArrived(b"abc"), [ReplyPart(b"abc")]),
            (ReplyPartArrived(b"de"), [ReplyPart(b"de")]),
            (ReplyEnded(), [ReleaseBackend()]),
        ]
    )
    assert stage.forwarding.phase is Phase.IDLE


def test_a_refused_large_request_is_read_to_its_end_before_the_answer(stage: Stage) -> None:
    """A stock client does not look at its socket before it has sent everything."""
    asked = request("nowhere")
    stage.perform(
        [
            (BlobArrived(asked, 5), []),
            (BodyPart(b"abcde"), []),
            (End(), [Fail(asked, Outcome.NOT_SENT, "no route for topic 'nowhere'")]),
        ]
    )


def test_a_backend_lost_within_a_large_request_is_not_replaced(stage: Stage) -> None:
    """Pieces that are gone cannot be sent again."""
    asked = request(body=b"")
    stage.perform(
        [
            (BlobArrived(asked, 9), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"), 9)]),
            (BodyPart(b"abc"), [ForwardPart(b"abc")]),
            (BackendLost("reset"), [CloseBackend()]),
            (BodyPart(b"defghi"), []),
            (End(), [Fail(asked, Outcome.NOT_SENT, "backend lost while sending: reset")]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


def test_a_backend_lost_within_its_answer_ends_the_conversation(stage: Stage) -> None:
    """Half a reply cannot be taken back, and no error may follow it."""
    stage.perform(
        [
            *called(stage, request(), stage.a),
            (ReplyArrived(reply(1, body=b""), 5), [Reply(reply(7, body=b""), 5)]),
            (BackendLost("reset"), [CloseBackend(), CloseClient("backend lost within its answer: reset")]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


# -- protocols that differ


def test_a_request_that_does_not_fit_the_backends_protocol_is_refused(stage: Stage) -> None:
    asked = request()
    stage.perform(
        [
            (BlobArrived(asked), [OpenBackend(stage.a, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj"))]),
            (
                CannotCarry("annotations too large"),
                [ReleaseBackend(), Fail(asked, Outcome.NOT_SENT, "annotations too large")],
            ),
        ]
    )


@pytest.mark.parametrize("length", [None, 5])
def test_a_reply_that_does_not_fit_the_clients_protocol_was_executed(stage: Stage, length: int | None) -> None:
    asked = request()
    fail = Fail(asked, Outcome.EXECUTED, "annotations too large")
    whole = length is None
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (ReplyArrived(reply(1), length), [*([ReleaseBackend()] if whole else []), Reply(reply(7), length)]),
            (CannotCarry("annotations too large"), [fail] if whole else [CloseBackend(), fail]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


# -- item streams


def begin_stream(stage: Stage) -> Play:
    return [
        *called(stage, request(seq=1), stage.a),
        (
            ReplyArrived(stream_reply(1, b"id")),
            [KeepBackend(), Reply(stream_reply(1, b"id"))],
        ),
    ]


def test_items_are_fetched_from_the_backend_that_made_the_stream(stage: Stage) -> None:
    stage.perform(
        [
            *begin_stream(stage),
            (BlobArrived(item(2)), [UseKeptBackend()]),
            (BackendOpened(2, "obj", 502), [Forward(forwarded(item(2), 2, "obj"))]),
            (RequestSent(), []),
            (ReplyArrived(reply(2)), [KeepBackend(), Reply(reply(2))]),
            (BlobArrived(item(3, Flags.ONEWAY)), [UseKeptBackend()]),
            (BackendOpened(3, "obj", 502), [Forward(forwarded(item(3, Flags.ONEWAY), 3, "obj"))]),
            (RequestSent(), [KeepBackend()]),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


@pytest.mark.parametrize("version", [48, 502])
def test_a_stream_of_the_other_protocol_is_announced_in_the_clients_own(stage: Stage, version: int) -> None:
    """Clients decode the placeholder, and know the classes of one protocol only; results are never rewritten."""
    play = called(stage, request(seq=1), stage.a)
    opened = play[1][0]
    assert isinstance(opened, BackendOpened)
    opened.version = version
    answer = stream_reply(1, b"id")
    announced = Reply(answer) if version == 502 else ReplyStream(answer)
    stage.perform([*play, (ReplyArrived(stream_reply(1, b"id")), [KeepBackend(), announced])])


def test_a_large_announcement_of_a_stream_is_no_announcement(stage: Stage) -> None:
    asked = request()
    text = "the backend announced an item stream with a result"
    stage.perform(
        [
            *called(stage, asked, stage.a),
            (ReplyArrived(stream_reply(1, b"id"), 9), [CloseBackend(), Fail(asked, Outcome.EXECUTED, text)]),
        ]
    )


def test_further_blobs_of_the_service_stay_with_the_stream(stage: Stage) -> None:
    """So that several streams of one client are told apart by their backend, which knows their ids."""
    asked = request(seq=2)
    stage.perform(
        [
            *begin_stream(stage),
            (BlobArrived(asked), [UseKeptBackend()]),
            (BackendOpened(2, "obj", 502), [Forward(forwarded(asked, 2, "obj"))]),
            (RequestSent(), []),
            (
                ReplyArrived(stream_reply(2, b"id2")),
                [KeepBackend(), Reply(stream_reply(2, b"id2"))],
            ),
        ]
    )


def test_a_stream_of_a_second_service_is_refused(stage: Stage) -> None:
    """A request for an item does not say where its stream lives, short of reading its body."""
    asked = request("mail", seq=2)
    text = "this connection holds a stream of another backend; use a second proxy"
    stage.perform(
        [
            *begin_stream(stage),
            (BlobArrived(asked), [OpenBackend(stage.c, 502)]),
            (BackendOpened(1, "obj", 502), [Forward(forwarded(asked, 1, "obj", info="mail", method="deliver"))]),
            (RequestSent(), []),
            (
                ReplyArrived(stream_reply(1, b"x")),
                [CloseBackend(), Fail(asked, Outcome.EXECUTED, text)],
            ),
            (BlobArrived(item(3)), [UseKeptBackend()]),
        ]
    )


def test_losing_the_backend_of_a_stream_ends_the_conversation(stage: Stage) -> None:
    asked = item(2)
    text = "backend lost before it answered: reset"
    stage.perform(
        [
            *begin_stream(stage),
            (BlobArrived(asked), [UseKeptBackend()]),
            (BackendOpened(2, "obj", 502), [Forward(forwarded(asked, 2, "obj"))]),
            (RequestSent(), []),
            (
                BackendLost("reset"),
                [
                    CloseBackend(),
                    Fail(asked, Outcome.UNKNOWN, text),
                    CloseClient("the backend of its item streams is lost"),
                ],
            ),
        ]
    )
    assert stage.in_flight == [0, 0, 0]


# -- clients that leave

ASKED = request()
UNTIL: list[tuple[str, Play, list[Command]]] = [
    ("between calls", [], []),
    ("opening", [(BlobArrived(ASKED), [])], [StopOpening()]),
    (
        "sending",
        [(BlobArrived(ASKED, 9), []), (BackendOpened(1, "obj", 502), []), (BodyPart(b"abc"), [])],
        [CloseBackend()],
    ),
    (
        "waiting",
        [(BlobArrived(ASKED), []), (BackendOpened(1, "obj", 502), []), (RequestSent(), [])],
        [CloseBackend()],
    ),
    (
        "replying",
        [
            (BlobArrived(ASKED), []),
            (BackendOpened(1, "obj", 502), []),
            (RequestSent(), []),
            (ReplyArrived(reply(1), 9), []),
        ],
        [CloseBackend()],
    ),
    ("draining", [(BlobArrived(request("nowhere"), 9), [])], []),
]


@pytest.mark.parametrize(("until", "expected"), [row[1:] for row in UNTIL], ids=[row[0] for row in UNTIL])
def test_a_client_that_leaves_cancels_its_call(stage: Stage, until: Play, expected: list[Command]) -> None:
    """The connection of a call under way is closed, because its reply would answer the next call."""
    for event, _ in until:
        stage.forwarding.handle(event, 0)
    assert stage.forwarding.handle(ClientLost(), 0) == expected
    assert stage.in_flight == [0, 0, 0]
    assert stage.forwarding.phase is Phase.CLOSED


def test_an_event_out_of_place_is_a_bug_of_the_shell(stage: Stage) -> None:
    with pytest.raises(RuntimeError, match="RequestSent cannot happen while IDLE"):
        stage.forwarding.handle(RequestSent(), 0)


@given(st.data())
def test_no_story_leaks_a_slot(data: st.DataObject) -> None:
    """Whatever happens in whatever order: a slot is taken while a call is with a backend, and only then."""
    stage = Stage()
    asked = data.draw(
        st.sampled_from([request(), request("mail"), request(flags=Flags.KEEPSERIALIZED | Flags.ONEWAY)])
    )
    for _ in range(data.draw(st.integers(1, 25))):
        event = data.draw(st.sampled_from(_possible(stage.forwarding, asked)))
        stage.forwarding.handle(event, stage.now)
        stage.now += data.draw(st.sampled_from([0.0, 0.1, 20.0]))
        busy = stage.forwarding.phase in (Phase.OPENING, Phase.SENDING, Phase.WAITING, Phase.REPLYING)
        assert sum(stage.in_flight) == busy
        if stage.forwarding.phase is Phase.CLOSED:
            return


def _possible(forwarding: Forwarding, asked: Message) -> list[Event]:
    """What a shell may report in the present phase."""
    length = None if forwarding.phase is Phase.IDLE or forwarding.call.body_length is None else 5
    lost: list[Event] = [BackendLost("x"), ClientLost()]
    cases: dict[Phase, list[Event]] = {
        Phase.IDLE: [BlobArrived(asked), BlobArrived(asked, 5), BlobArrived(item(9)), ClientLost()],
        Phase.OPENING: [BackendOpened(1, "obj", 502), BackendRefused("x"), *lost],
        Phase.SENDING: [CannotCarry("x"), *([RequestSent()] if length is None else [BodyPart(b"x"), End()]), *lost],
        Phase.WAITING: [
            ReplyArrived(reply(1)),
            ReplyArrived(reply(1), 5),
            ReplyArrived(reply(2)),
            ReplyArrived(stream_reply(1, b"id")),
            *lost,
        ],
        Phase.REPLYING: [ReplyPartArrived(b"x"), ReplyEnded(), CannotCarry("x"), *lost],
        Phase.DRAINING: [BodyPart(b"x"), End(), ClientLost()],
    }
    return cases[forwarding.phase]
