"""Running one request: from a decoded call to the message that answers it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import CommunicationError, Outcome, ProtocolError, PyroError, RefusedError, SerializeError
from ..objects.context import CallContext, current_context_var
from ..objects.expose import MethodKind
from ..objects.invoke import BATCH_METHOD, batch_calls, prepare, reply_for_exception
from ..objects.table import Entry
from ..serializers.base import Call, Serializer, text_of, traceback_lines
from ..serializers.blob import SerializedBlob
from ..serializers.exceptions import ExceptionWrapper
from ..serializers.outofband import has_parts
from ..transport.faults import part
from ..wire.blobinfo import read_blob_info
from ..wire.features import CALL_KEY, CHAIN_KEY, DEADLINE_KEY, HOP_KEYS, OUTCOME_KEY, PUSHED_KEY, Feature
from ..wire.inflate import deflate_for, inflate
from ..wire.message import Body, Flags, Message, MessageType
from ..wire.scattered import joined
from .streams import PLAIN, EndOfStream, is_stream
from .workers import PoolBusyError, ThreadEndedError

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger(__name__)

BLOB_KEY: Final = "BLBI"
STREAM_KEY: Final = "STRM"
_ONEWAY, _BATCH, _KEEPSERIALIZED, _COMPRESSED = Flags.ONEWAY, Flags.BATCH, Flags.KEEPSERIALIZED, Flags.COMPRESSED
_RESULT: Final = MessageType.RESULT
SLOW_BYTES: Final = 64 * 1024
"""Text formats take some 100 ns a byte and more, and a compressed body inflates to a thousand times its size."""
SLOW_MSGPACK_BYTES: Final = 4 * 1024 * 1024
Read = Callable[[], Call]
"""Gives, or raises, what `read_call` did when it ran already."""
_Hop = tuple[float | None, bytes | None, bytes | None]
"""Deadline, key and chain of a call."""
_NO_HOP: Final[_Hop] = (None, None, None)
SPECIAL: Final = ("_", "<", "")
"""First letters of methods that are more than a method of the object."""
_OUTCOME_LETTERS: Final = {Outcome.NOT_SENT: b"N", Outcome.UNKNOWN: b"U"}


class Job(CallContext):
    """One request, decoded: what it calls, and its context."""

    __slots__ = ("args", "entry", "kwargs", "lane", "method", "serializer")

    def __init__(
        self,
        peer: Peer,
        message: Message,
        serializer: Serializer,
        entry: Entry,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any] | None,
        deadline: float | None,
    ) -> None:
        self.client = peer
        self.message = message
        self._correlation = message.correlation_id
        self._response_annotations = None
        self.serializer = serializer
        self.entry = entry
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.deadline = deadline
        self.lane: Any = None

    @property
    def oneway(self) -> bool:
        """Whether nobody waits for an answer."""
        return self.message.flags & _ONEWAY != 0


class KeyedJob(Job):
    """A request with a key: it runs at most once."""

    __slots__ = ("in_thread", "key")

    key: bytes
    in_thread: bool
    """A thread works on it: such a function runs on when the call is cut short."""


def is_slow_to_read(message: Message) -> bool:
    """Whether reading a request takes so long that other connections must not wait for it."""
    size = len(message.body)
    if size <= SLOW_BYTES or message.flags & _KEEPSERIALIZED:
        return False
    if message.serializer == "msgpack" and has_parts(message.body):
        return False  # they are taken as they are
    return message.serializer != "msgpack" or size > SLOW_MSGPACK_BYTES or message.flags & _COMPRESSED != 0


def read_call(message: Message, serializer: Serializer, limit: int) -> Call:
    """Object, method and arguments of a request; may run in a thread.

    Raises:
        SerializeError, SecurityError, ProtocolError: it cannot be read.
    """
    body = message.body
    if message.flags & _COMPRESSED:
        body = inflate(body, limit)
    return serializer.loads_call(body)


def decode(peer: Peer, message: Message, serializer: Serializer, read: Read | None = None) -> Job:
    """Read a request.

    Raises:
        SerializeError, SecurityError, ProtocolError, DaemonError: it cannot be read, or names no object.
    """
    kwargs: dict[str, Any] | None
    annotations = message.annotations
    deadline, key, chain = _take_hop_annotations(peer, annotations) if annotations else _NO_HOP
    if message.flags & _KEEPSERIALIZED:
        object_id, method, args, kwargs = _decode_blob(peer, message, serializer)
    elif read is not None:
        object_id, method, args, kwargs = read()
    elif not message.flags & _COMPRESSED:
        object_id, method, args, kwargs = serializer.loads_call(message.body)
    else:
        object_id, method, args, kwargs = read_call(message, serializer, peer.settings.max_message_bytes)
    entry = peer.table.get(object_id)
    if key is None:
        job = Job(peer, message, serializer, entry, method, args, kwargs, deadline)
        if chain is not None:
            job.chain = chain
        return job
    if entry.mode == "session":
        text = f"a key needs an object that outlives the connection, and {object_id!r} is made anew for each"
        raise ProtocolError(text)
    keyed = KeyedJob(peer, message, serializer, entry, method, args, kwargs, deadline)
    keyed.key, keyed.in_thread = key, False
    if chain is not None:
        keyed.chain = chain
    return keyed


def _take_hop_annotations(peer: Peer, annotations: dict[str, Body]) -> _Hop:
    """Hide what belongs to the connection, or to another one, from the handler."""
    grant = peer.session.grant
    milliseconds = grant.read_deadline(annotations.get(DEADLINE_KEY))
    key = grant.read_key(annotations.get(CALL_KEY))
    chain = grant.read_chain(annotations.get(CHAIN_KEY))
    for name in HOP_KEYS:
        annotations.pop(name, None)
    return None if milliseconds is None else trio.current_time() + milliseconds / 1000, key, chain


def _decode_blob(
    peer: Peer, message: Message, serializer: Serializer
) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
    annotation = message.annotations.get(BLOB_KEY)
    if annotation is None:
        raise SerializeError("a serialized blob without its routing annotation")
    info = read_blob_info(annotation)
    body = message.body
    if message.flags & _COMPRESSED:
        body = inflate(body, peer.settings.max_message_bytes)
    blob = SerializedBlob.from_message(info.info, message, body, serializer)
    return info.object_id, info.method, (blob,), {}


async def execute(peer: Peer, job: Job) -> Message | None:
    """Run a job; never raises but when cancelled.

    Returns:
        The answer; None for a one-way call.
    """
    current_context_var.set(job)
    try:
        entry = job.entry
        instance = entry.fixed
        if instance is None:
            instance = peer.known_instance(entry)
            if instance is None:
                instance = await peer.make_instance(entry, runner(peer, job))
        if job.method[:1] in SPECIAL or job.message.flags & _BATCH or job.kwargs is None:
            value = await _run_special(peer, job, instance)
        else:
            function, kind = entry.exposed.find(instance, job.method)
            if kind.is_async:
                value = await function(*job.args, **job.kwargs)
            else:
                value = await _run_plain(peer, job, kind, function, job.args, job.kwargs)
        return result(peer, job, value)
    except BaseException as error:
        return failed(peer, job, error)


def failed(peer: Peer, job: Job, error: BaseException) -> Message | None:
    """The answer to a job that raised; raises on what is not the method's own, as being cancelled is."""
    if isinstance(error, PoolBusyError):
        return failure(peer, job.message, job.serializer, RefusedError(*error.args), dispatched=False)
    if isinstance(error, ThreadEndedError):
        hang_up(peer, error)
        return None
    if isinstance(error, Exception):
        callback = job.entry.exposed.is_callback(job.method)
        return failure(peer, job.message, job.serializer, _own(error), dispatched=True, callback=callback)
    travelling, rest = part(error)  # a method's wish to end the process, for instance; Pyro hangs up on one, too
    if travelling is None:
        hang_up(peer, error)
        return None
    if rest is not None:
        log.warning("a call of %s failed while it was cut short", peer.connection.peer, exc_info=rest)
    raise travelling from None


def _own(error: Exception) -> Exception:
    """What the method raised: no StopIteration leaves a coroutine as it is."""
    cause = error.__cause__
    if type(error) is RuntimeError and isinstance(cause, StopIteration) and str(error).startswith("coroutine raised"):
        return cause
    return error


def hang_up(peer: Peer, error: BaseException) -> None:
    """End a connection because of what a method of it did."""
    log.error("a call of %s failed such that its connection is closed", peer.connection.peer, exc_info=error)
    peer.close()


async def _run_special(peer: Peer, job: Job, instance: Any) -> Any:
    """Attribute access, batches, dunder methods."""
    if job.message.flags & _BATCH or job.method == BATCH_METHOD:
        return await _run_batch(peer, job, instance)
    call = prepare(job.entry.exposed, instance, job.method, job.args, job.kwargs)
    if call.kind.is_async:
        return await call.function(*call.args, **call.kwargs)
    return await _run_plain(peer, job, call.kind, call.function, call.args, call.kwargs)


def runner(peer: Peer, job: Job) -> Callable[..., Awaitable[Any]]:
    """What runs functions in threads for this call.

    Raises:
        PoolBusyError: it would wait for ever.
    """
    pool = peer.pool
    if job.message.flags & _ONEWAY:
        run = pool.run_patiently
    elif pool.full and _is_nested(peer, job):
        if pool.exhausted and _count_kin(peer, job) >= pool.threads:
            raise PoolBusyError("busy: all worker threads wait for what this call is a part of, so none gets free")
        run = pool.run_nested
    else:
        run = pool.run
    return partial(run, _noted, job) if isinstance(job, KeyedJob) else run


def _noted(job: KeyedJob, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function in a thread such that the key is not forgotten before it ends."""
    job.in_thread = True
    try:
        return function(*args, **kwargs)
    finally:
        job.in_thread = False


def _is_nested(peer: Peer, job: Job) -> bool:
    """Whether a call is made while working on another one here: ours tell, of stock peers the correlation id does."""
    if job.known_chain is not None:
        return True
    mine = job.known_correlation
    return mine is not None and any(
        other is not job and other.known_correlation == mine
        for neighbour in peer.daemon.peers
        for other in neighbour.running()
    )


def _count_kin(peer: Peer, job: Job) -> int:
    """How many running calls here belong to the same chain of calls."""
    chain, correlation = job.known_chain, job.known_correlation
    others = (other for neighbour in (*peer.daemon.peers, *peer.daemon.callees) for other in neighbour.running())
    return sum(
        other is not job
        and (
            (chain is not None and other.known_chain == chain)
            or (correlation is not None and other.known_correlation == correlation)
        )
        for other in others
    )


async def _run_plain(
    peer: Peer, job: Job, kind: MethodKind, function: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    if kind.is_inline or kind.is_stream:
        return function(*args, **kwargs)
    value = await runner(peer, job)(function, *args, **kwargs)
    if hasattr(value, "__await__"):  # a plain function that hands out a coroutine, as decorators do
        return await value
    return value


async def _run_batch(peer: Peer, job: Job, instance: Any) -> list[Any]:
    """The results in order, up to and including the first failure."""
    results: list[Any] = []
    find, found = job.entry.exposed.find, dict[str, tuple[Callable[..., Any], MethodKind]]()
    for method, args, kwargs in batch_calls(job.args):
        known = found.get(method)
        if known is None:  # most batches call the same method again and again
            known = found[method] = find(instance, method)
        function, kind = known
        try:
            if kind.is_async:
                value = await function(*args, **kwargs)
            else:
                value = await _run_plain(peer, job, kind, function, args, kwargs)
            if type(value) not in PLAIN and is_stream(value):
                raise SerializeError("an iterator cannot be the result of a call in a batch")
        except ThreadEndedError:
            raise
        except Exception as raised:
            error = _own(raised)
            error._pyroTraceback = _lines_of(peer, error)  # type: ignore[attr-defined]  # where Pyro's clients look
            results.append(ExceptionWrapper(error))
            break
        results.append(value)
    return results


def _lines_of(peer: Peer, error: BaseException) -> list[str]:
    """The traceback of an error as this peer may see it."""
    return traceback_lines(error) if peer.sends_tracebacks else [f"{type(error).__name__}: {text_of(error)}\n"]


def result(peer: Peer, job: Job, value: Any) -> Message | None:
    """The answer to a job that returned a value; None for a one-way call."""
    if job.message.flags & _ONEWAY:
        return None
    if type(value) not in PLAIN and is_stream(value):
        return _stream_result(peer, job, value)
    message = job.message
    answer = Message(
        _RESULT,
        message.seq,
        message.serializer,
        message.flags & _BATCH,
        job.serializer.dumps(value),
        _response_annotations(peer, job) if peer.annotates else job._response_annotations or {},
        message.correlation_id,
    )
    if peer.settings.compression:
        _deflate(peer, answer)
    return answer


def _response_annotations(peer: Peer, job: Job) -> dict[str, Body]:
    if peer.annotates:
        return {**peer.daemon.annotations(), **job.response_annotations}
    return job._response_annotations or {}


def _hook_annotations(peer: Peer) -> dict[str, Body]:
    """What the daemon adds to the answer of a call that failed. The error is answered also when this fails."""
    if not peer.annotates:
        return {}
    try:
        return dict(peer.daemon.annotations())
    except Exception:
        log.exception("annotations() of the daemon failed")
        return {}


def _stream_result(peer: Peer, job: Job, value: Any) -> Message:
    """The announcement of an item stream: flags, its id, and the placeholder exception that stock peers expect."""
    message = job.message
    stream_id = peer.streams.add(value, peer)
    annotations = {**_response_annotations(peer, job), STREAM_KEY: stream_id.encode("ascii")}
    if Feature.PUSH in peer.session.grant:
        number = peer.pushed.offer(stream_id, job)
        if number is not None:
            annotations[PUSHED_KEY] = peer.session.grant.stream(number)
    return Message(
        MessageType.RESULT,
        message.seq,
        message.serializer,
        Flags.EXCEPTION | Flags.ITEMSTREAM,
        job.serializer.dumps_exception(PyroError("result of call is an iterator")),
        annotations,
        message.correlation_id,
    )


def _deflate(peer: Peer, answer: Message) -> None:
    smaller = deflate_for(peer.version, joined(answer.body), message_type=answer.type, flags=answer.flags)
    if smaller is not None:
        answer.body = smaller
        answer.flags |= Flags.COMPRESSED


def failure(
    peer: Peer,
    request: Message,
    serializer: Serializer | None,
    error: Exception,
    *,
    dispatched: bool,
    callback: bool = False,
) -> Message | None:
    """The exception answer to a request; None for a one-way call. Marks the connection when it must end after it."""
    own = peer.session.grant.bits & Feature.TYPED != 0
    verdict = reply_for_exception(error, own=own, dispatched=dispatched, callback=callback)
    if verdict.log:
        log.warning("a request of %s failed", peer.connection.peer, exc_info=error)
    if verdict.close:
        peer.finishing = True
    if request.flags & _ONEWAY or verdict.exception is None:
        if request.flags & _ONEWAY:
            log.info("a one-way call of %s failed: %r", peer.connection.peer, error)
        return None
    exception = StopIteration(*error.args) if isinstance(error, EndOfStream) else verdict.exception
    lines = _lines_of(peer, error)
    body = (serializer or peer.serializer("marshal")).dumps_exception(exception, lines)
    annotations = _hook_annotations(peer)
    if not dispatched and isinstance(error, CommunicationError) and peer.is_own and error.outcome in _OUTCOME_LETTERS:
        annotations[OUTCOME_KEY] = peer.session.grant.outcome(_OUTCOME_LETTERS[error.outcome])
    answer = Message(
        MessageType.RESULT,
        request.seq,
        request.serializer if serializer is not None else "marshal",
        Flags.EXCEPTION,
        body,
        annotations,
        request.correlation_id,
    )
    if peer.settings.compression:
        _deflate(peer, answer)
    return answer
