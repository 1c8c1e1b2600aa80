"""Calls with a key run at most once: the first of a key is reserved here before it runs, others share its answer.

A call that runs under a key belongs to no connection. It ends early only when its deadline passes, the last caller
that waits for it says that it does not want the answer, or the daemon stops; then nobody knows how far it came, and
that is what every later caller is told.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from ..errors import CommunicationError, Outcome, ProtocolError, RefusedError, SerializeError
from ..settings import Settings
from ..wire.features import OUTCOME_KEY
from ..wire.message import Flags, Message
from ..wire.scattered import buffers_of
from .execute import Job, KeyedJob, execute, failure

if TYPE_CHECKING:
    from ..processes.claims import Claims
    from .peer import Peer

_Scope = tuple[object, str, str, bytes]
"""Whose key, of which object and method."""
_NEVER: Final = float("inf")


class _Execution:
    """One key: the call that runs, or ran, under it."""

    __slots__ = ("answer", "digest", "done", "expires", "job", "letter", "scope", "waiters", "where")

    def __init__(self, where: _Scope, digest: bytes, job: KeyedJob) -> None:
        self.where = where
        self.digest = digest
        """Of the arguments as they came."""
        self.job: KeyedJob | None = job
        """Until it has ended, and nothing of it runs on in a thread."""
        self.scope = trio.CancelScope(deadline=_NEVER if job.deadline is None else job.deadline)
        self.done = trio.Event()
        self.waiters = 0
        self.answer: Message | None = None
        """None: it was cut short, or its answer is kept no longer."""
        self.letter: str | None = None
        """What is certain when the answer is not the method's own: ``N`` or ``U``."""
        self.expires = _NEVER


class KeyTable:
    """The keys of one daemon.

    Args:
        settings: ``key_lifetime_s``, ``max_keys`` and ``max_key_result_bytes`` bound what is remembered.
        claims: what keeps a key from running in another worker, too; asked before one is reserved here.
    """

    def __init__(self, settings: Settings, claims: Claims | None = None) -> None:
        self._settings = settings
        self._claims = claims
        self._known: dict[_Scope, _Execution] = {}
        self._ended: deque[_Execution] = deque()
        """In the order in which they expire."""
        self._kept: deque[_Execution] = deque()
        """Those whose answers are kept, oldest first."""
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def enter(self, peer: Peer, job: KeyedJob) -> _Execution:
        """The execution that a call takes part in; reserved, and started, if there is none yet.

        Raises:
            ProtocolError: the key belongs to a call with other arguments.
            RefusedError: too many keys are remembered, or it cannot be made sure that no other worker has this one.
            CommunicationError: another worker has or had it, so it may have run (outcome Unknown).
        """
        where = (peer.identity, job.entry.object_id, job.method, job.key)
        digest = _digest(job.message)
        known = self._known.get(where)
        if known is not None and known.expires <= trio.current_time():
            self.sweep()
            known = self._known.get(where)
        if known is not None:
            if known.digest != digest:
                raise ProtocolError("the key of this call was used with other arguments before")
            _extend(known, job.deadline)
            return known
        self.sweep()
        if len(self._known) >= self._settings.max_keys:
            raise RefusedError(f"busy: {len(self._known)} keys are remembered already; try again later")
        self._claim(where)
        execution = self._known[where] = _Execution(where, digest, job)
        peer.daemon.run_detached(lambda: self._run(execution, peer, job))
        return execution

    def _claim(self, where: _Scope) -> None:
        if self._claims is None:
            return
        try:
            taken = self._claims.take(_name(where))
        except OSError as error:
            raise RefusedError(f"the key cannot be kept from other workers: {error.strerror}; try again") from error
        if not taken:
            text = "a call with this key came to another worker before, which alone knows what became of it"
            raise CommunicationError(text, outcome=Outcome.UNKNOWN)

    def _forget(self, where: _Scope) -> None:
        del self._known[where]
        if self._claims is not None:
            self._claims.give_up(_name(where))

    async def _run(self, execution: _Execution, peer: Peer, job: KeyedJob) -> None:
        try:
            with execution.scope:
                answer = await execute(peer, job)
                if answer is not None and answer.flags & Flags.ITEMSTREAM:
                    answer = await _without_stream(peer, job, answer)
                self._take_answer(execution, peer, answer)
        finally:
            self._finish(execution)

    @staticmethod
    def _take_answer(execution: _Execution, peer: Peer, answer: Message | None) -> None:
        execution.answer = answer
        if answer is not None:
            execution.letter = peer.session.grant.read_outcome(answer.annotations.pop(OUTCOME_KEY, None))

    def _finish(self, execution: _Execution) -> None:
        """Remember how it ended, unless it was refused before it began: then the key is as good as new."""
        if execution.job is not None and not execution.job.in_thread:
            execution.job = None
        execution.done.set()
        if execution.letter == "N":
            self._forget(execution.where)
            return
        execution.expires = trio.current_time() + self._settings.key_lifetime_s
        self._ended.append(execution)
        if execution.answer is not None:
            self._kept.append(execution)
            self._kept_bytes += _size(execution.answer)
            while self._kept_bytes > self._settings.max_key_result_bytes:
                self._drop_answer(self._kept.popleft())

    def _drop_answer(self, execution: _Execution) -> None:
        answer, execution.answer = execution.answer, None
        if answer is not None:
            execution.letter = "E"
            self._kept_bytes -= _size(answer)

    def running(self) -> list[Job]:
        """The calls that run, whether or not somebody waits for them."""
        return [execution.job for execution in self._known.values() if execution.job is not None]

    def sweep(self) -> None:
        """Forget what expired."""
        now = trio.current_time()
        ended = self._ended
        while ended and ended[0].expires <= now:
            execution = ended.popleft()
            if execution.job is not None and execution.job.in_thread:
                execution.expires = now + self._settings.key_lifetime_s
                ended.append(execution)
                continue
            execution.job = None
            self._drop_answer(execution)
            if self._known.get(execution.where) is execution:
                self._forget(execution.where)
        if self._claims is not None:
            self._claims.sweep(now)
        while self._kept and self._kept[0].answer is None:
            self._kept.popleft()


def _digest(message: Message) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for buffer in buffers_of(message.body):
        digest.update(buffer)
    digest.update(f"{message.serializer} {message.flags & ~Flags.ONEWAY}".encode())
    return digest.digest()


def _name(where: _Scope) -> str:
    """The same for the same key in every worker."""
    identity, object_id, method, key = where
    return hashlib.blake2b(repr((identity, object_id, method, key)).encode(), digest_size=32).hexdigest()


def _size(answer: Message) -> int:
    return len(answer.body) + sum(map(len, answer.annotations.values()))


def _extend(execution: _Execution, deadline: float | None) -> None:
    """Another caller waits: the handler may run as long as the most patient one allows."""
    if execution.job is None:
        return
    latest = max(execution.scope.deadline, _NEVER if deadline is None else deadline)
    execution.scope.deadline = latest
    execution.job.deadline = None if latest == _NEVER else latest


async def _without_stream(peer: Peer, job: KeyedJob, answer: Message) -> Message | None:
    """An item stream belongs to one connection, and cannot be handed to everybody who asks again."""
    await peer.streams.close(bytes(answer.annotations["STRM"]).decode("ascii"))
    error = SerializeError("the call ran, but an item stream cannot be the result of a call with a key")
    return failure(peer, job.message, job.serializer, error, dispatched=True)


async def run_keyed(peer: Peer, job: Job) -> Message | None:
    """Run a call with a key, or wait for the one that runs, or answer from what is remembered.

    Returns:
        The answer; None for a one-way call.

    When cancelled, the call goes on without this caller, unless nobody else waits and this one gave it up.
    """
    assert isinstance(job, KeyedJob), "other calls do not come here"
    try:
        execution = peer.daemon.keys.enter(peer, job)
    except CommunicationError as error:
        if error.outcome is not Outcome.UNKNOWN:
            error.outcome = Outcome.NOT_SENT
        return failure(peer, job.message, job.serializer, error, dispatched=False)
    execution.waiters += 1
    try:
        await execution.done.wait()
    except trio.Cancelled:
        if execution.waiters == 1 and peer.gave_up(job):
            execution.scope.cancel()
        raise
    finally:
        execution.waiters -= 1
    return None if job.oneway else _answer_to(peer, job, execution)


def _answer_to(peer: Peer, job: Job, execution: _Execution) -> Message | None:
    answer, letter = execution.answer, execution.letter
    if answer is not None:
        message = job.message
        annotations = dict(answer.annotations)
        if letter is not None:
            annotations[OUTCOME_KEY] = peer.session.grant.outcome(letter.encode())
        seq, correlation = message.seq, message.correlation_id
        return Message(answer.type, seq, answer.serializer, answer.flags, answer.body, annotations, correlation)
    if letter == "E":
        ran = SerializeError("the call ran, but its result is kept no longer")
        return failure(peer, job.message, job.serializer, ran, dispatched=True)
    cut = CommunicationError("the call was cut short while it was running", outcome=Outcome.UNKNOWN)
    return failure(peer, job.message, job.serializer, cut, dispatched=False)
