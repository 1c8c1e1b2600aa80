"""A request taken apart: path, headers, parameters. Whatever is wrong with one ends here with its status."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import trio

from .options import GatewayOptions
from .values import arguments_from_json

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

MAX_NAME: Final = 500
"""Characters of an object's name, as in the name server."""
MAX_MEMBER: Final = 200
"""Characters of a method's name."""
BODY_TIMEOUT_S: Final = 30.0
"""How long a request body may take to arrive."""
FORM: Final = "application/x-www-form-urlencoded"


class BadRequest(Exception):
    """The request is answered with this status and text, and goes no further."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(slots=True)
class Request:
    """What a handler needs to know."""

    method: str
    segments: list[bytes]
    """The path below the mount point, between its slashes, still encoded."""
    query: bytes
    headers: dict[bytes, bytes]
    """Lower-case names; of repeated headers the last."""
    client: str | None
    """Address of the caller; None on a unix socket."""
    root_path: str
    trusted: bool = False
    """On loopback, or with the right key: may see tracebacks and addresses."""
    correlation_id: uuid.UUID | None = None
    """Of a call; passed on and back."""

    def header(self, name: bytes) -> str:
        """The value as text, or ``""``."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def path(self) -> str:
        """The encoded path below the mount point."""
        return "/" + b"/".join(self.segments).decode("latin-1")


def read_request(scope: Scope) -> Request:
    """The request of an ASGI scope."""
    root = scope.get("root_path", "").rstrip("/")
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    segments = raw.partition(b"?")[0].split(b"/")[1:]
    if root and scope["path"].startswith(root):
        del segments[: root.count("/")]
    client = scope.get("client")
    headers = dict(scope["headers"])
    host = client[0] if client else None
    return Request(scope["method"], segments, scope.get("query_string", b""), headers, host, root)


def target(segments: list[bytes]) -> tuple[str, str] | None:
    """Object and member that ``object/member`` names; None when there are not two parts.

    Slashes that are written out belong to the object, encoded ones to the part they stand in, so that nothing moves
    from one part to the other by decoding.

    Raises:
        BadRequest: not UTF-8, too long, or with control characters.
    """
    if len(segments) < 2 or not segments[-1] or not any(segments[:-1]):
        return None
    name = _decoded(b"/".join(segments[:-1]), MAX_NAME)
    return name, _decoded(segments[-1], MAX_MEMBER)


def _decoded(raw: bytes, limit: int) -> str:
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadRequest(400, "the path is not UTF-8") from None
    if len(text) > limit:
        raise BadRequest(414, f"a name in the path is longer than {limit} characters")
    if not text.isprintable():
        raise BadRequest(400, "control characters in the path")
    return text


def correlation_id(request: Request) -> uuid.UUID:
    """The id of the request, or a fresh one.

    Raises:
        BadRequest: it is not a UUID.
    """
    given = request.headers.get(b"x-pyro-correlation-id")
    if not given:
        return uuid.uuid4()
    try:
        return uuid.UUID(given.decode("ascii")[:64])
    except (ValueError, UnicodeDecodeError):
        raise BadRequest(400, "X-Pyro-Correlation-Id is not a UUID") from None


@dataclass(slots=True)
class Arguments:
    """What a call is made with."""

    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    """The ``$key`` among the parameters."""

    def __bool__(self) -> bool:
        return bool(self.positional or self.named)


async def read_arguments(request: Request, receive: Receive, options: GatewayOptions) -> Arguments:
    """The parameters of query and body. Texts from query and form; a parameter given twice is a list.

    Raises:
        BadRequest: 400 malformed, 408 too slow, 413 too large, 415 neither a form nor JSON.
    """
    fields = _pairs(request.query, options.max_parameters) if request.query else []
    arguments = Arguments()
    if request.method == "POST":
        body = await read_body(request, receive, options.max_body_bytes)
        kind = request.header(b"content-type").partition(";")[0].strip().lower()
        if body and request.header(b"content-encoding").strip().lower() not in ("", "identity"):
            raise BadRequest(415, "a request body is sent as it is, without Content-Encoding")
        if body and kind == "application/json":
            _take_json(body, arguments)
        elif body and kind == FORM:
            fields += _pairs(body, options.max_parameters - len(fields))
        elif body:
            raise BadRequest(415, f"a request body is application/json or {FORM}, not {kind[:100] or 'untyped'}")
    if fields:
        named = _collected(fields)
        arguments.key = _text(named.pop("$key", arguments.key))
        arguments.named = {**named, **arguments.named}
    return arguments


def _take_json(body: bytes, arguments: Arguments) -> None:
    try:
        value = arguments_from_json(body.decode())
    except UnicodeDecodeError:
        raise BadRequest(400, "the body is not UTF-8") from None
    except ValueError as error:
        raise BadRequest(400, f"the body is not usable JSON: {error}") from None
    if isinstance(value, list):
        arguments.positional = value
    elif isinstance(value, dict):
        arguments.key = _text(value.pop("$key", ""))
        arguments.named = value
    else:
        raise BadRequest(400, "the body is a JSON object (named arguments) or array (arguments in order)")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _pairs(data: bytes, limit: int) -> list[tuple[str, str]]:
    try:
        text = data.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=max(1, limit))
    except UnicodeDecodeError:
        raise BadRequest(400, "parameters are not percent-encoded UTF-8") from None
    except ValueError as error:
        raise BadRequest(400, f"parameters: {error}") from None


def _collected(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """One value for each name, a list where there are several."""
    named: dict[str, Any] = {}
    for name, value in fields:
        if name not in named:
            named[name] = value
        elif isinstance(named[name], list):
            named[name].append(value)
        else:
            named[name] = [named[name], value]
    return named


async def read_body(request: Request, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        BadRequest: 408 when it takes longer than BODY_TIMEOUT_S, 413 when it is longer than ``limit`` bytes, 400 when
            the caller goes away in the middle.
    """
    announced = request.headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise BadRequest(413, f"the body is larger than {limit} bytes")
    parts: list[bytes] = []
    size = 0
    with trio.move_on_after(BODY_TIMEOUT_S):
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise BadRequest(400, "the body ended too early")
            part = event.get("body", b"")
            size += len(part)
            if size > limit:
                raise BadRequest(413, f"the body is larger than {limit} bytes")
            parts.append(part)
            if not event.get("more_body"):
                return b"".join(parts)
    raise BadRequest(408, f"the body took longer than {BODY_TIMEOUT_S:g} s")
