"""The usual request from its message to its answer in one step, without a coroutine or a message of its own.

It is small, has no options, and calls a method of an object that is there already. Everything else takes the long way
of `Peer` and `execute`, and so does the rest of a call that waits for something.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from ..errors import PyroError
from ..objects.context import current_context_var
from ..objects.expose import MethodKind
from ..serializers.base import Call
from ..transport.connection import Event
from ..transport.resume import Steps, free_steps
from ..wire.message import Message, MessageType
from ..wire.scattered import JOIN_BELOW
from .execute import SPECIAL, Job, Read, failed, result
from .lending import lend
from .streams import PLAIN, is_stream

if TYPE_CHECKING:
    from .crew import Worker
    from .peer import Peer

_INVOKE: Final = MessageType.INVOKE
_RESULT: Final = MessageType.RESULT


class Unusual:
    """A request that takes the long way."""

    __slots__ = ("event", "read")

    def __init__(self, event: Event, read: Read | None = None) -> None:
        self.event = event
        self.read = read
        """What was read of it already."""


class Waiting:
    """A call that was begun, and waits for something."""

    __slots__ = ("rest",)

    def __init__(self, rest: Coroutine[Any, Any, Message | None]) -> None:
        self.rest = rest
        """To be awaited by the task that began it."""


def prepare(peer: Peer, message: Message) -> tuple[Job, Callable[..., Any], MethodKind] | Unusual:
    """What a request calls, if it is usual."""
    serializer = peer.known_serializers.get(message.serializer)
    if message.flags or message.annotations or serializer is None or not peer.calls.may_begin(message):
        return Unusual(message)
    try:
        call = object_id, method, args, kwargs = serializer.loads_call(message.body)
        entry = peer.table.get(object_id)
    except Exception:  # said on the long way
        return Unusual(message)
    instance = entry.fixed
    if instance is None or entry.keeps_order:  # a client that makes one call after another keeps order by itself
        instance = peer.known_instance(entry) if peer.is_serial else None
    if instance is None or kwargs is None or method[:1] in SPECIAL:
        return Unusual(message, partial(_same, call))
    try:
        function, kind = entry.exposed.find(instance, method)
    except Exception:
        return Unusual(message, partial(_same, call))
    if not kind.is_async and not kind.is_inline and (kind.is_stream or not peer.may_be_lent()):
        return Unusual(message, partial(_same, call))
    return Job(peer, message, serializer, entry, method, args, kwargs, None), function, kind


def run_small(peer: Peer, worker: Worker, message: Message) -> Unusual | Waiting | None:
    """Run a request and queue its answer, as far as that can be done at once. None: it is done."""
    prepared = prepare(peer, message)
    if isinstance(prepared, Unusual):
        return prepared
    job, function, kind = prepared
    worker.job = job
    peer.calls.begun(worker, message.seq)
    context = worker.context = peer.crew.context()
    if not kind.is_async and not kind.is_inline:
        return Waiting(lend(peer, worker, job, function))
    waiting = context.run(_run, peer, job, kind, function)
    if waiting is None:
        worker.job = worker.context = None
    return waiting


def _run(peer: Peer, job: Job, kind: MethodKind, function: Callable[..., Any]) -> Waiting | None:
    """In the context of the call: all that can be done at once."""
    current_context_var.set(job)
    message = job.message
    answer: Message | None = None
    body: Any = None
    try:
        value = function(*job.args, **job.kwargs) if job.kwargs else function(*job.args)
        if kind.is_async:
            running = value if type(value) is CoroutineType else _awaited(value)
            try:
                steps = free_steps.pop()
            except IndexError:
                steps = Steps()
            request = steps.begin(running)
            if type(request) is not tuple:
                return Waiting(rest_of_small(peer, job, steps, request))
            free_steps.append(steps)
            value = request[0]
        if job._response_annotations is None and (type(value) in PLAIN or not is_stream(value)):
            body = job.serializer.dumps(value)
        else:
            answer = result(peer, job, value)
    except BaseException as error:
        answer = failed(peer, job, error)
    peer.calls.done(message.seq)
    if type(body) is bytes and len(body) <= JOIN_BELOW and message.correlation_id is None:
        try:
            peer.connection.queue_small(_RESULT, message.serializer, message.seq, body)
            return None
        except PyroError:
            pass  # said on the long way
    if body is not None:
        answer = Message(_RESULT, message.seq, message.serializer, 0, body, {}, message.correlation_id)
    if answer is not None:
        peer.calls.queue(answer)
    return None


async def rest_of_small(peer: Peer, job: Job, steps: Steps, request: Any) -> Message | None:
    """What `execute` does, from where a handler waits for the first time."""
    try:
        return result(peer, job, await steps.rest(request))
    except BaseException as error:
        return failed(peer, job, error)


async def _awaited(value: Any) -> Any:
    """The result of something that can be awaited and is no coroutine."""
    return await value


def _same(call: Call) -> Call:
    return call
