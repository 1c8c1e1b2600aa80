"""The interface of a serializer, and what it knows about the connection it writes for."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..errors import PyroError, SecurityError, SerializeError
from ..wire.features import Feature, Grant
from ..wire.message import Body
from .classes import CLASS_MARK, ClassCodec
from .exceptions import exception_to_dict
from .registry import DEFAULT_REGISTRY, ClassRegistry
from .vocabulary import ProxyState, vocabulary_for

Arguments = Sequence[Any]
Call = tuple[str, str, Arguments, dict[str, Any] | None]
"""Object id, method, arguments, keyword arguments (None for attribute access and batches)."""


@dataclass(frozen=True, slots=True)
class SerializerContext:
    """The connection a serializer works for: the peer's kind, and the hooks of the floor above."""

    version: int
    """Protocol 48 or 502."""
    own: bool = False
    """The peer is one of ours: every value keeps its type, and our own error classes travel."""
    out_of_band: bool = False
    """Large bytes and arrays travel behind the body."""
    streams: bool = False
    """Iterators may be arguments."""
    stream_writer: Callable[[Any], int] | None = None
    """Gives a number to an iterator that is an argument; without it one is a StreamArgumentError."""
    stream_reader: Callable[[int], Any] | None = None
    """Makes what a handler gets for it."""
    unsafe: frozenset[str] = frozenset()
    """Those of the pickle family that may be used with this peer."""
    registry: ClassRegistry = field(default=DEFAULT_REGISTRY)
    proxy_factory: Callable[[ProxyState], Any] | None = None
    """Makes a proxy of a received state; without it the state itself is handed out."""
    proxy_state_of: Callable[[Any], ProxyState | None] | None = None
    """The state of a value that is a proxy, None for any other value."""
    autoproxy: Callable[[Any], ProxyState | None] | None = None
    """The proxy that stands for an object served by this process, None for any other value."""

    def granted(
        self,
        grant: Grant,
        *,
        autoproxy: Callable[[Any], ProxyState | None] | None = None,
        stream_reader: Callable[[int], Any] | None = None,
        proxy_factory: Callable[[ProxyState], Any] | None = None,
        unsafe: frozenset[str] | None = None,
    ) -> SerializerContext:
        """The same context with what was agreed with the peer, and what else is given."""
        own = grant.bits & Feature.TYPED != 0
        return SerializerContext(  # `dataclasses.replace` takes longer than a whole call
            version=self.version,
            own=own,
            out_of_band=own and grant.bits & Feature.OUT_OF_BAND != 0,
            streams=own and grant.bits & Feature.UPLOAD != 0,
            stream_writer=self.stream_writer,
            stream_reader=stream_reader or self.stream_reader,
            unsafe=self.unsafe if unsafe is None else unsafe,
            registry=self.registry,
            proxy_factory=proxy_factory or self.proxy_factory,
            proxy_state_of=self.proxy_state_of,
            autoproxy=autoproxy or self.autoproxy,
        )


class StreamArgumentError(SerializeError):
    """A value is an iterator, which this serializer was not told how to send."""


class Serializer(ABC):
    """Writes and reads bodies for one connection. Instances may be shared by threads.

    Every method raises SerializeError when a value cannot be written or a body cannot be read, and SecurityError when
    a body names a class that must not be built.
    """

    name: ClassVar[str]

    def __init__(self, context: SerializerContext) -> None:
        self.context = context
        self._classes = ClassCodec(context, serpent=self.name == "serpent")
        self._for_anybody: Serializer | None = None

    def for_anybody(self) -> Serializer:
        """This serializer as towards a stock peer, for what is passed on to readers that are not known."""
        if not self.context.own:
            return self
        if self._for_anybody is None:
            context = replace(self.context, own=False, out_of_band=False, streams=False)
            self._for_anybody = type(self)(context)
        return self._for_anybody

    def dumps_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        """The body of a call. ``kwargs`` is None for attribute access and batches.

        Bytes of 16 KiB and more may not be changed before the body was sent.
        """
        try:
            return self._write_call(object_id, method, args, kwargs)
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:  # libraries and converters fail in their own ways
            raise self._cannot("write", exc) from exc

    def dumps(self, value: Any) -> Body:
        """The body of one value, of which it keeps nothing that can still change."""
        try:
            return self._write(value)
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("write", exc) from exc

    def loads_call(self, body: Body) -> Call:
        """The call of a body; its four parts have the right types."""
        try:
            return check_call(self._read_call(body))
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("read", exc) from exc

    def dumps_blob(self, object_id: str, method: str, data: Any) -> Body:
        """The body of a call with a blob: a list or tuple of arguments, or any other value in their place."""
        if isinstance(data, (list, tuple)):
            return self.dumps_call(object_id, method, data, {})
        try:
            return self._write(self._bare_call(object_id, method, data))
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("write", exc) from exc

    def loads_blob(self, body: Body) -> Any:
        """The data of a blob, from the body of its call: whatever stands where the arguments are."""
        try:
            object_id, method, data, kwargs = self._read_call(body)
            check_call((object_id, method, (), kwargs))
            return data
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("read", exc) from exc

    def loads(self, body: Body) -> Any:
        """The value of a body."""
        try:
            return self._read(body)
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("read", exc) from exc

    def dumps_exception(self, exc: BaseException, traceback_lines: list[str] | None = None) -> Body:
        """The body of an exception answer; an exception that cannot be written is described in a PyroError."""
        vocabulary = vocabulary_for(self.context.version, self.context.own)
        try:
            registered = self.context.registry.to_dict(exc, serpent=self.name == "serpent")
            return self.dumps(registered or exception_to_dict(exc, vocabulary, traceback_lines))
        except Exception as why:
            text = f"Error serializing exception: {text_of(why)}. Original exception: {type(exc)}: {text_of(exc)}"
            lines = None if traceback_lines is None else [_writable(line) for line in traceback_lines]
            return self.dumps(exception_to_dict(PyroError(_writable(text)), vocabulary, lines))

    def _revived(self, value: Any) -> Any:
        """`loads`, where ``value`` was read already and may hold dicts that stand for objects."""
        try:
            return self._classes.revive(value)
        except (SerializeError, SecurityError):
            raise
        except Exception as exc:
            raise self._cannot("read", exc) from exc

    @abstractmethod
    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body: ...

    @abstractmethod
    def _write(self, value: Any) -> Body: ...

    @abstractmethod
    def _read_call(self, body: Body) -> Any: ...

    @abstractmethod
    def _read(self, body: Body) -> Any: ...

    def _bare_call(self, object_id: str, method: str, data: Any) -> Any:
        """A call whose arguments are one value that is no list."""
        return object_id, method, data, {}

    def _revive(self, body: Body, value: Any) -> Any:
        """Objects of the dicts in ``value``; ``body`` tells cheaply that there are none."""
        data = bytes(body) if isinstance(body, memoryview) else body
        return self._classes.revive(value) if data.find(CLASS_MARK) >= 0 else value

    def _cannot(self, verb: str, exc: Exception) -> SerializeError:
        if isinstance(exc, RecursionError):
            reason = "nested too deeply"
        else:
            reason = f"{type(exc).__name__}: {str(exc)[:300]}"
        return SerializeError(f"{self.name} cannot {verb} this value: {reason}")


def check_call(parts: Any) -> Call:
    """The four parts of a call, if they are one.

    Raises:
        SerializeError: not four parts, or parts of other types than a call has.
    """
    if not isinstance(parts, (list, tuple)) or len(parts) != 4:
        raise SerializeError("malformed call: four parts were expected")
    object_id, method, args, kwargs = parts
    if type(object_id) is not str or type(method) is not str:
        raise SerializeError("malformed call: object and method are texts")
    if not isinstance(args, (list, tuple)):
        raise SerializeError("malformed call: the arguments are not a list")
    if kwargs is None:
        return object_id, method, args, None
    if type(kwargs) is not dict or (kwargs and not all(type(key) is str for key in kwargs)):
        raise SerializeError("malformed call: keyword arguments are a dict with text keys")
    return object_id, method, args, kwargs


def traceback_lines(exc: BaseException) -> list[str]:
    """The traceback of an exception as it travels: lines, each with its newline."""
    return traceback.format_exception(type(exc), exc, exc.__traceback__)


def text_of(exc: BaseException) -> str:
    """The text of an exception, whose class may be anybody's."""
    try:
        return str(exc)
    except Exception:
        return "(its text cannot be made)"


def _writable(text: str) -> str:
    """The text with lone surrogates escaped: json and msgpack refuse them."""
    return text.encode("utf-8", "backslashreplace").decode()
