"""What a request calls, and what an exception is answered with. Where it runs is decided above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ..errors import CommunicationError, Outcome, PyroError, RefusedError, SecurityError, SerializeError
from .expose import Exposed, MethodKind, get_attribute, set_attribute

BATCH_METHOD: Final = "<batch>"
_SEQUENCES: Final = frozenset({list, tuple})
_THREE: Final = frozenset({3})
_TEXT: Final = frozenset({str})
_DICT: Final = frozenset({dict})


class Invocation(NamedTuple):
    """A call that is ready to run: ``function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    kind: MethodKind


_GET: Final = MethodKind(get_attribute)
_SET: Final = MethodKind(set_attribute)


def prepare(
    exposed: Exposed, instance: Any, method: str, args: Sequence[Any], kwargs: dict[str, Any] | None
) -> Invocation:
    """What a request calls: a method, or the reading or writing of a property.

    Raises:
        AttributeError: the name is private, missing or not exposed.
        TypeError: the arguments do not have the shape of the call.
    """
    if method == "__getattr__":
        _check_count(method, args, 1)
        return Invocation(get_attribute, (instance, *args), {}, _GET)
    if method == "__setattr__":
        _check_count(method, args, 2)
        return Invocation(set_attribute, (instance, *args), {}, _SET)
    return prepare_method(exposed, instance, method, args, kwargs)


def prepare_method(
    exposed: Exposed, instance: Any, method: str, args: Sequence[Any], kwargs: dict[str, Any] | None
) -> Invocation:
    """Like ``prepare``, for methods only: in a batch, attribute access is refused as a private name."""
    function, kind = exposed.find(instance, method)
    if kwargs is None:
        raise TypeError("the keyword arguments of a call are a dict")
    return Invocation(function, args, kwargs, kind)


def batch_calls(args: Sequence[Any]) -> Sequence[tuple[str, Sequence[Any], dict[str, Any]]]:
    """The calls of a batch: method, arguments, keyword arguments of each.

    Raises:
        TypeError: one of them has another shape.
    """
    return args if _are_usual(args) else [_batch_call(call) for call in args]


def _are_usual(calls: Sequence[Any]) -> bool:
    """Whether all have the right shape without being of unusual types; found out without a step for each of them."""
    return (
        _SEQUENCES.issuperset(map(type, calls))
        and _THREE.issuperset(map(len, calls))
        and _TEXT.issuperset(map(type, map(itemgetter(0), calls)))
        and _SEQUENCES.issuperset(map(type, map(itemgetter(1), calls)))
        and _DICT.issuperset(map(type, map(itemgetter(2), calls)))
    )


def _batch_call(call: Any) -> tuple[str, Sequence[Any], dict[str, Any]]:
    if isinstance(call, (list, tuple)) and len(call) == 3:
        method, args, kwargs = call
        if isinstance(method, str) and isinstance(args, (list, tuple)) and isinstance(kwargs, dict):
            return method, args, kwargs
    raise TypeError("a batch is a list of (method, arguments, keyword arguments)")


def _check_count(method: str, args: Sequence[Any], count: int) -> None:
    if len(args) != count:
        raise TypeError(f"{method} takes {count} arguments, {len(args)} were given")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What becomes of a request that failed."""

    exception: BaseException | None
    """To be answered; None: no answer."""
    close: bool = False
    """The connection ends after the answer."""
    log: bool = False
    """The error belongs into this side's log as well."""


def reply_for_exception(exc: BaseException, *, own: bool, dispatched: bool, callback: bool = False) -> ErrorReply:
    """How a request that failed with ``exc`` is answered.

    Args:
        exc: the failure.
        own: the peer is one of ours; it understands outcomes, and its connection carries other calls too.
        dispatched: the method was running. Whatever it failed with, the call is then executed: a nested call that was
            not sent must not make the caller send this one again.
        callback: the method is marked ``@callback``. Its error is logged, and nothing more: Pyro hangs up, too.

    A communication error is never answered with silence. A stock peer would repeat the call or drop the connection on
    one, so it gets a PyroError whose text begins with what is certain.
    """
    if not isinstance(exc, Exception):
        return ErrorReply(None, close=True, log=True)
    if isinstance(exc, (SerializeError, SecurityError)):
        return ErrorReply(exc, close=not own and not dispatched, log=callback)
    if isinstance(exc, CommunicationError):
        answer = _for_own(exc, dispatched) if own else PyroError(_certain_text(exc, dispatched))
        return ErrorReply(answer, log=callback)
    return ErrorReply(exc, log=callback)


def _for_own(exc: CommunicationError, dispatched: bool) -> CommunicationError:
    if dispatched:
        exc.outcome = Outcome.EXECUTED
    return exc


def _certain_text(exc: CommunicationError, dispatched: bool) -> str:
    outcome = exc.outcome or (Outcome.NOT_SENT if isinstance(exc, RefusedError) else None)
    if outcome is None or (dispatched and outcome is not Outcome.UNKNOWN):
        return f"{type(exc).__name__}: {exc}"
    return f"{outcome.value}: {exc}"
