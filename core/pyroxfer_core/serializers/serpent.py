"""serpent: Python literals as text, byte for byte as Pyro writes them."""

from __future__ import annotations

import collections
import enum
import re
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from typing import Any, Final

import serpent

from ..errors import SerializeError
from ..uri import Uri
from ..wire.message import Body
from .base import Arguments, Serializer, SerializerContext
from .classes import ClassCodec
from .literals import read_literal
from .scalars import BASES, as_builtin

_HEADER: Final = "# serpent utf-8 python3.2\n"
_VIEWS: Final = (KeysView, ValuesView, ItemsView)
_SCALARS_OF_ANY_CLASS: Final = tuple(BASES)


_PLAIN: Final = frozenset({str, int, bool, type(None)})
"""Types that are written as Python itself prints them."""
_NAMES: Final = {"None": None, "True": True, "False": False}
_SCALAR: Final = r"'[^'\\\x00-\x1f\x7f]*'|-?[0-9]{1,17}\.[0-9]{1,17}|-?(?:0|[1-9][0-9]{0,18})|None|True|False"
"""Literals that need no parser: text without escapes, plain numbers (the longer match first), three names."""
_ONE_SCALAR: Final = re.compile(rf"{_HEADER}({_SCALAR})")
_FLAT_CALL: Final = re.compile(
    rf"{_HEADER}\(('[^'\\\x00-\x1f\x7f]*'),('[^'\\\x00-\x1f\x7f]*'),"
    rf"\(((?:{_SCALAR}),|(?:{_SCALAR})(?:,(?:{_SCALAR}))+)?\),\{{\}}\)"
)
_SCALARS: Final = re.compile(_SCALAR)
_SHORT: Final = 4096
"""Bytes of a body that is tried as one of these first; a longer one is rarely."""


def _scalar(text: str) -> Any:
    if text[0] == "'":
        return text[1:-1]
    if text in _NAMES:
        return _NAMES[text]
    return float(text) if "." in text else int(text)


def _are_plain(values: Iterable[Any]) -> bool:
    return _PLAIN.issuperset(map(type, values))


class _Writer(serpent.Serializer):  # type: ignore[misc]  # the library has no type hints
    """One serialization. Objects go through the connection's rules instead of the library's global registry."""

    def __init__(self, classes: ClassCodec, bytes_repr: bool) -> None:
        super().__init__(module_in_classname=True, bytes_repr=bytes_repr)
        self._classes = classes

    def text(self, value: Any) -> str:
        # The library's own entry point copies the registry that all users of it in this process share.
        self.serialized_obj_ids: set[int] = set()
        self.special_classes_registry_copy = {object: _Writer._write_object}
        out = [_HEADER]
        self._serialize(value, out, 0)
        return "".join(out)

    @staticmethod
    def _write_object(value: Any, writer: _Writer, out: list[str], level: int) -> None:
        """Whatever is not one of the plain builtin types."""
        known = writer._classes.known_to_dict(value)
        if known is not None:
            writer._serialize(known, out, level)
        elif isinstance(value, enum.Enum):
            writer._serialize(value.value, out, level)
        elif isinstance(value, _VIEWS):
            writer._serialize(list(value), out, level)
        elif isinstance(value, collections.OrderedDict):
            items = {"__class__": "collections.OrderedDict", "items": list(value.items())}
            writer._serialize(items, out, level)
        elif isinstance(value, _SCALARS_OF_ANY_CLASS):
            writer._serialize(as_builtin(value), out, level)  # not by repr(), which they may have changed
        else:
            writer._write_by_type(value, out, level)

    def _write_by_type(self, value: Any, out: list[str], level: int) -> None:
        for kind in type(value).__mro__:
            function = self.dispatch.get(kind)
            if function is not None:
                function(self, value, out, level)
                return
        self._serialize(self._classes.state_to_dict(value), out, level)


class SerpentSerializer(Serializer):
    """Bytes are dicts of base-64 text towards stock peers, as Pyro writes them; bytes literals between our own."""

    name = "serpent"

    def __init__(self, context: SerializerContext) -> None:
        super().__init__(context)
        self._bytes_repr = context.own

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        if type(args) is tuple and type(kwargs) is dict and _are_plain((*args, *kwargs, *kwargs.values())):
            values = ",".join(map(repr, args)) + ("," if len(args) == 1 else "")
            named = ",".join([f"{key!r}:{value!r}" for key, value in kwargs.items()])
            return f"{_HEADER}({object_id!r},{method!r},({values}),{{{named}}})".encode()
        return self._write((object_id, method, args, kwargs))

    def _write(self, value: Any) -> bytes:
        if type(value) is Uri and (uri := self._classes.plain_uri(value)) is not None:
            name, state = uri["__class__"], uri["state"]
            if _are_plain(state):
                return f"{_HEADER}{{'__class__':{name!r},'state':({','.join(map(repr, state))})}}".encode()
        return _Writer(self._classes, self._bytes_repr).text(value).encode()

    def _read_call(self, body: Body) -> Any:
        if len(body) <= _SHORT and (flat := _FLAT_CALL.fullmatch(str(body, "utf-8"))) is not None:
            object_id, method, args = flat.groups("")
            return object_id[1:-1], method[1:-1], tuple(map(_scalar, _SCALARS.findall(args))), {}
        return self._read(body)

    def _read(self, body: Body) -> Any:
        if len(body) <= _SHORT and (one := _ONE_SCALAR.fullmatch(str(body, "utf-8"))) is not None:
            return _scalar(one[1])
        return self._revive(body, _parse(body))


def _parse(body: Body) -> Any:
    text = str(body, "utf-8")
    if "\0" in text:
        raise SerializeError("serpent cannot read this value: it contains NUL characters")
    return read_literal(text)
