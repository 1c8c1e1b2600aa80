"""An OpenAPI document of the objects that are there now, made of their live metadata."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from .describe import Attribute, Description, Method, Parameter

Document = dict[str, Any]

_TYPES: Final[Mapping[str, str]] = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "frozenset": "array",
    "dict": "object",
}
_HEADERS: Final = [
    {"$ref": "#/components/parameters/Options"},
    {"$ref": "#/components/parameters/CorrelationId"},
]
_ERRORS: Final = {
    "403": "The key is wrong, the object is not exposed, or the request comes from the page of another site.",
    "404": "No such object, or it has no such member.",
    "500": "The object raised an exception.",
    "502": "The object was lost before it answered, or its answer cannot be read: the call may have run.",
    "503": "The call did not run; it may be tried again after Retry-After seconds.",
    "504": "There was no answer in time.",
}


def document(objects: Mapping[str, Description], *, server: str, needs_key: bool) -> Document:
    """The document, as plain data.

    Args:
        objects: by name.
        server: URL below which the paths are.
    """
    paths: Document = {}
    for name, description in objects.items():
        for method in description.methods:
            paths[_path(name, method.name)] = _method_item(name, method)
        for attribute in description.attributes:
            paths[_path(name, attribute.name)] = _attribute_item(name, attribute)
    found: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "pyroxfer HTTP gateway",
            "version": importlib.metadata.version("pyroxfer"),
            "description": "Pyro objects over HTTP. Made of what the objects show at the moment.",
        },
        "servers": [{"url": server}],
        "tags": [{"name": name, "description": about.doc} for name, about in objects.items()],
        "paths": paths,
        "components": {"schemas": _schemas(), "parameters": _parameters(), "responses": _responses()},
    }
    if needs_key:
        scheme = {"type": "apiKey", "in": "header", "name": "X-Pyro-Gateway-Key"}
        found["components"]["securitySchemes"] = {"key": scheme}
        found["security"] = [{"key": []}]
    return found


def _path(name: str, member: str) -> str:
    """Braces would be template expressions; they are encoded with the rest."""
    return f"/pyro/{quote(name)}/{quote(member, safe='')}"


def _operation_id(name: str, member: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"-{ord(match[0]):x}-", f"{name}.{member}")


def _method_item(name: str, method: Method) -> Document:
    operation: Document = {
        "operationId": _operation_id(name, method.name),
        "tags": [name],
        "summary": method.doc.partition("\n")[0][:200] or method.name,
        "description": method.doc,
        "parameters": _HEADERS,
        "requestBody": _body(method),
        "responses": {"200": _result(method), **_error_references()},
    }
    return {"post": operation}


def _attribute_item(name: str, attribute: Attribute) -> Document:
    content = {"application/json": {"schema": _schema(attribute.type)}}
    operation: Document = {
        "operationId": _operation_id(name, attribute.name),
        "tags": [name],
        "summary": attribute.doc.partition("\n")[0][:200] or attribute.name,
        "description": attribute.doc,
        "parameters": _HEADERS[1:],
        "responses": {"200": {"description": "The value.", "content": content}, **_error_references()},
    }
    return {"get": operation}


def _error_references() -> Document:
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in _ERRORS}


def _body(method: Method) -> Document:
    """Arguments as an object; where parameters are not known, or may stand in order only, an array as well."""
    if method.parameters is None:
        schema: Document = {"type": ["object", "array"]}
        return {"content": {"application/json": {"schema": schema}}}
    named = [parameter for parameter in method.parameters if _can_be_named(parameter)]
    required = [parameter.name for parameter in named if parameter.default is None]
    schema = {"type": "object", "properties": {parameter.name: _argument(parameter) for parameter in named}}
    if required:
        schema["required"] = required
    schema["additionalProperties"] = any(parameter.kind == "var_keyword" for parameter in method.parameters)
    if len(named) < len(method.parameters):
        schema = {"anyOf": [schema, {"type": "array"}]}
    return {"required": bool(required), "content": {"application/json": {"schema": schema}}}


def _can_be_named(parameter: Parameter) -> bool:
    return parameter.kind in ("positional_or_keyword", "keyword_only")


def _argument(parameter: Parameter) -> Document:
    schema = _schema(parameter.type)
    if parameter.default is not None:
        schema["description"] = f"default: {parameter.default}"
    return schema


def _schema(annotation: str | None) -> Document:
    """What an annotation says about JSON; whatever is not certain may be anything."""
    if annotation is None:
        return {}
    parts = [part.strip() for part in annotation.split("|")]
    if "None" in parts and len(parts) == 2:
        known = _TYPES.get(next((part for part in parts if part != "None"), "").partition("[")[0])
        return {"type": [known, "null"]} if known else {}
    if annotation == "bytes":
        return {"$ref": "#/components/schemas/Bytes"}
    known = _TYPES.get(annotation.partition("[")[0])
    return {"type": known} if known and "|" not in annotation else {}


def _result(method: Method) -> Document:
    if method.oneway:
        return {"description": "It was sent; there is no answer."}
    if method.stream:
        content: Document = {
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/event-stream": {"schema": {"type": "string"}},
        }
        return {"description": "The items, one JSON value a line, or as events.", "content": content}
    schema = {"type": "null"} if method.returns == "None" else _schema(method.returns)
    return {"description": "The result.", "content": {"application/json": {"schema": schema}}}


def _schemas() -> Document:
    texts = {"type": "string"}
    return {
        "Bytes": {
            "type": "object",
            "properties": {"data": texts, "encoding": {"const": "base64"}},
            "required": ["data", "encoding"],
        },
        "Exception": {
            "type": "object",
            "description": "An exception; its class, its arguments, and its text.",
            "properties": {
                "__class__": texts,
                "__exception__": {"const": True},
                "args": {"type": "array"},
                "attributes": {"type": "object"},
                "text": texts,
            },
            "required": ["__class__", "__exception__", "args", "attributes"],
        },
    }


def _parameters() -> Document:
    return {
        "Options": {
            "name": "X-Pyro-Options",
            "in": "header",
            "description": "oneway: do not wait for an answer.",
            "schema": {"type": "string"},
        },
        "CorrelationId": {
            "name": "X-Pyro-Correlation-Id",
            "in": "header",
            "description": "Passed on to the object, and back.",
            "schema": {"type": "string", "format": "uuid"},
        },
    }


def _responses() -> Document:
    exception = {"schema": {"$ref": "#/components/schemas/Exception"}}
    text = {"schema": {"type": "string"}}
    outcome = {"description": "NotSent, Unknown or Executed.", "schema": {"type": "string"}}
    return {
        f"Error{status}": {
            "description": description,
            "headers": {"X-Pyro-Outcome": outcome},
            "content": {"application/json": exception, "text/plain": text},
        }
        for status, description in _ERRORS.items()
    }
