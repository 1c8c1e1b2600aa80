"""The exposed members of a class for people and for generated documents: texts and parameters, as plain data."""

from __future__ import annotations

import inspect
from typing import Any, Final

from .expose import exposed, kind_of

MAX_TEXT: Final = 4_000
"""Characters of one documentation text; the rest is cut off."""
MAX_SHORT: Final = 200
"""Characters of an annotation or a default."""
_PLAIN: Final = (type(None), bool, int, float, str)
_EMPTY: Final = inspect.Parameter.empty


def describe_members(clazz: type) -> dict[str, Any]:
    """What `Daemon.describe` answers; its form stands in docs/protocol.md."""
    metadata = exposed(clazz).metadata
    return {
        "doc": _doc(clazz),
        "methods": {name: _method(getattr(clazz, name, None)) for name in sorted(metadata.methods)},
        "attributes": {name: _attribute(getattr(clazz, name, None)) for name in sorted(metadata.attrs)},
    }


def _method(member: Any) -> dict[str, Any]:
    kind = kind_of(member)
    described: dict[str, Any] = {"doc": _doc(member), "oneway": kind.is_oneway, "stream": kind.is_stream}
    try:
        signature = inspect.signature(kind.function)
    except (TypeError, ValueError):  # written in C, or with a signature that is none
        return described
    parameters = list(signature.parameters.values())[1:]  # without self
    described["parameters"] = [_parameter(parameter) for parameter in parameters]
    if signature.return_annotation is not _EMPTY:
        described["returns"] = _annotation(signature.return_annotation)
    return described


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name.lower()}
    if parameter.annotation is not _EMPTY:
        described["type"] = _annotation(parameter.annotation)
    if parameter.default is not _EMPTY:
        default = parameter.default
        described["default"] = repr(default)[:MAX_SHORT] if isinstance(default, _PLAIN) else "…"
    return described


def _attribute(member: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"doc": _doc(member), "writable": getattr(member, "fset", None) is not None}
    getter = getattr(member, "fget", None)
    returns = getattr(getter, "__annotations__", {}).get("return")
    if returns is not None:
        described["type"] = _annotation(returns)
    return described


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text[:MAX_SHORT]


def _doc(member: Any) -> str:
    return (inspect.getdoc(member) or "")[:MAX_TEXT]
