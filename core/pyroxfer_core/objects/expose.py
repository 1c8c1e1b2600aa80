"""What an object shows to remote callers: Pyro's decorators, its rules for names, and lookup by name."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

# fmt: off
_LANGUAGE_HOOKS: Final = (
    "init", "init_subclass", "class", "module", "weakref", "call", "new", "del", "repr", "str", "format", "nonzero",
    "bool", "coerce", "cmp", "eq", "ne", "hash", "ge", "gt", "le", "lt", "dir", "enter", "exit", "copy", "deepcopy",
    "sizeof", "getattr", "setattr", "hasattr", "getattribute", "delattr", "instancecheck", "subclasscheck",
    "getinitargs", "getnewargs", "getstate", "setstate", "reduce", "reduce_ex", "subclasshook", "unicode",
    "getstate_for_dict", "setstate_from_dict",
)
# fmt: on
_PRIVATE_DUNDERS: Final = frozenset(f"__{name}__" for name in _LANGUAGE_HOOKS)
INSTANCE_MODES: Final = ("session", "single", "percall")


def is_private(name: str) -> bool:
    """Whether a member is never remotely visible, whatever is exposed: ``_name``, and dunders the language needs."""
    if name in _PRIVATE_DUNDERS:
        return True
    is_dunder = len(name) > 4 and name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not is_dunder


@overload
def expose(method_or_class: T) -> T: ...
@overload
def expose(*, inline: bool) -> Callable[[T], T]: ...
def expose(method_or_class: Any = None, *, inline: bool = False) -> Any:
    """Let remote callers use a method, a property, or every public member defined in a class itself.

    ``@expose(inline=True)`` also declares that a plain function never blocks, so that it is run without a thread.

    Raises:
        AttributeError: the name is private, or the decorator stands above ``@classmethod`` or ``@staticmethod``.
    """
    if method_or_class is None:
        return functools.partial(_expose, inline=inline)
    return _expose(method_or_class, inline=inline)


def _expose(member: Any, *, inline: bool) -> Any:
    if isinstance(member, (classmethod, staticmethod)):
        name = member.__func__.__name__
        raise AttributeError(f"@expose must stand below @classmethod and @staticmethod, nearer to the method: {name}")
    if inspect.isdatadescriptor(member) and not inspect.isclass(member):
        function = _accessor(member)
        if function is None:
            raise AttributeError(f"@expose cannot tell what this is: {member!r}")
        _refuse_private(function.__name__)
        _mark(function, inline)
        return member
    own_name = getattr(member, "__name__", None)
    if not isinstance(own_name, str):
        raise AttributeError(f"@expose cannot tell what this is: {member!r}")
    _refuse_private(own_name)
    if inspect.isclass(member):
        _expose_members(member, inline)
        member._pyroExposed = True  # type: ignore[attr-defined]  # Pyro's mark
    else:
        _mark(member, inline)
    return member


def _refuse_private(name: str) -> None:
    if is_private(name):
        raise AttributeError(f"exposing private names (starting with _) is not allowed: {name}")


def _expose_members(clazz: type, inline: bool) -> None:
    for name in list(vars(clazz)):
        if is_private(name):
            continue
        member = getattr(clazz, name)
        if inspect.isfunction(member) or inspect.ismethoddescriptor(member):
            _mark(member, inline)
        elif inspect.ismethod(member):
            _mark(member.__func__, inline)
        elif inspect.isdatadescriptor(member):
            for accessor in ("fget", "fset", "fdel"):
                function = getattr(member, accessor, None)
                if function is not None:
                    _mark(function, inline)


def _mark(function: Any, inline: bool) -> None:
    function._pyroExposed = True
    if inline:
        function._pyroInline = True


def _accessor(descriptor: Any) -> Any:
    """The function that carries the marks of a property: its first accessor."""
    names = ("fget", "fset", "fdel")
    return next((function for name in names if (function := getattr(descriptor, name, None)) is not None), None)


def oneway(method: T) -> T:
    """Tell proxies not to wait for an answer to this method."""
    method._pyroOneway = True  # type: ignore[attr-defined]  # Pyro's mark
    return method


def idempotent(method: T) -> T:
    """Running this method twice does no more than running it once: a proxy of ours may send a call of it again when
    the connection was lost before the answer came. Stock proxies take no notice."""
    method._pyroIdempotent = True  # type: ignore[attr-defined]  # our own mark
    return method


def callback(method: T) -> T:
    """Errors of this method are logged at this side too, not only answered."""
    method._pyroCallback = True  # type: ignore[attr-defined]  # Pyro's mark
    return method


def behavior(
    instance_mode: str = "session",
    instance_creator: Callable[[type], Any] | None = None,
    *,
    concurrent: bool = False,
    stateless: bool = False,
) -> Callable[[T], T]:
    """How a registered class is turned into objects.

    Args:
        instance_mode: ``session``, one object for each connection; ``single``, one for the daemon; ``percall``, one
            for each call.
        instance_creator: called with the class, returns the instance; the class itself by default.
        concurrent: calls of one connection on a session object may run at once.
        stateless: it does not matter which of several objects a call goes to, though there is one for the daemon: so
            each worker process may have its own.

    Raises:
        SyntaxError: used without parentheses.
        ValueError: unknown mode.
        TypeError: the creator cannot be called, or what is decorated is not a class.
    """
    if not isinstance(instance_mode, str):
        raise SyntaxError("the behavior decorator takes arguments in parentheses")
    if instance_mode not in INSTANCE_MODES:
        raise ValueError(f"invalid instance mode: {instance_mode}")
    if instance_creator is not None and not callable(instance_creator):
        raise TypeError("instance_creator must be callable")

    def decorate(clazz: T) -> T:
        if not inspect.isclass(clazz):
            raise TypeError("the behavior decorator is for classes")
        clazz._pyroInstancing = (instance_mode, instance_creator)  # type: ignore[attr-defined]  # Pyro's mark
        clazz._pyroConcurrent = concurrent  # type: ignore[attr-defined]  # our own
        clazz._pyroStateless = stateless  # type: ignore[attr-defined]  # our own
        return clazz

    return decorate


@dataclass(frozen=True, slots=True)
class Metadata:
    """The remotely visible members of a class."""

    methods: frozenset[str]
    oneway: frozenset[str]
    attrs: frozenset[str]
    idempotent: frozenset[str] = frozenset()
    """Methods that may be run again when it is not known whether they ran; told between two ends of this library."""
    session: bool = False
    """The object lives as long as the connection; told between two ends of this library."""


@dataclass(frozen=True, slots=True)
class MethodKind:
    """What a caller must know of a method before running it."""

    function: Any
    """The function behind the bound method; whatever else is found under the name is looked at anew."""
    is_async: bool = False
    is_stream: bool = False
    """A generator function, plain or async: calling it runs nothing yet."""
    is_inline: bool = False
    is_oneway: bool = False
    is_callback: bool = False


def kind_of(member: Any) -> MethodKind:
    """The kind of a function, method, or object that can be called."""
    function = getattr(member, "__func__", member)
    code = function if inspect.isroutine(function) else vars(type(function)).get("__call__", function)
    return MethodKind(
        function=function,
        is_async=inspect.iscoroutinefunction(code),
        is_stream=inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code),
        is_inline=bool(getattr(function, "_pyroInline", False)),
        is_oneway=bool(getattr(function, "_pyroOneway", False)),
        is_callback=bool(getattr(function, "_pyroCallback", False)),
    )


class Exposed:
    """The exposed members of one class, looked at once."""

    def __init__(self, clazz: type) -> None:
        self._kinds: dict[str, MethodKind] = {}
        attrs = set()
        for name in dir(clazz):
            if is_private(name):
                continue
            member = getattr(clazz, name, None)
            if inspect.ismethod(member) or inspect.isfunction(member) or inspect.ismethoddescriptor(member):
                if getattr(member, "_pyroExposed", False):
                    self._kinds[name] = kind_of(member)
            elif inspect.isdatadescriptor(member) and getattr(_accessor(member), "_pyroExposed", False):
                attrs.add(name)
        self.metadata = Metadata(
            methods=frozenset(self._kinds),
            oneway=frozenset(name for name, kind in self._kinds.items() if kind.is_oneway),
            attrs=frozenset(attrs),
            idempotent=frozenset(
                name for name in self._kinds if getattr(getattr(clazz, name), "_pyroIdempotent", False)
            ),
        )

    def is_callback(self, name: str) -> bool:
        """Whether the method ``name`` is marked ``@callback``."""
        kind = self._kinds.get(name)
        return kind is not None and kind.is_callback

    def find(self, instance: Any, name: str) -> tuple[Callable[..., Any], MethodKind]:
        """The bound method ``name`` of an instance of the class.

        Raises:
            AttributeError: the name is private, missing or not exposed.
        """
        kind = self._kinds.get(name)
        if kind is not None:
            method = getattr(instance, name)
            if getattr(method, "__func__", method) is kind.function:
                return method, kind
        if is_private(name):
            raise AttributeError(f"attempt to access private attribute '{name}'")
        member = getattr(instance, name)
        if not getattr(member, "_pyroExposed", False):
            raise AttributeError(f"attempt to access unexposed attribute '{name}'")
        return member, kind_of(member)


_exposed_classes: weakref.WeakKeyDictionary[type, Exposed] = weakref.WeakKeyDictionary()


def exposed(thing: Any) -> Exposed:
    """The exposed members of a class, or of an instance's class; looked at once for each class."""
    clazz = thing if inspect.isclass(thing) else type(thing)
    try:
        return _exposed_classes[clazz]
    except KeyError:
        found = _exposed_classes[clazz] = Exposed(clazz)
        return found


def reset_exposed(thing: Any) -> None:
    """Look at the class anew next time, after its members were changed."""
    _exposed_classes.pop(thing if inspect.isclass(thing) else type(thing), None)


def describe(thing: Any) -> Metadata:
    """The remotely visible members of a class, or of an instance's class."""
    return exposed(thing).metadata


def resolve_method(instance: Any, name: str) -> Callable[..., Any]:
    """The exposed method ``name``, bound; AttributeError when it is private, missing or not exposed."""
    return exposed(instance).find(instance, name)[0]


def get_attribute(instance: Any, name: str) -> Any:
    """The value of an exposed property.

    Raises:
        AttributeError: the name is private, or no property with an exposed getter.
    """
    getter = getattr(_property(instance, name), "fget", None)
    if getter is None or not getattr(getter, "_pyroExposed", False):
        raise _unknown_attribute(name)
    return getter(instance)


def set_attribute(instance: Any, name: str, value: Any) -> None:
    """Set an exposed property.

    Raises:
        AttributeError: the name is private, or no exposed property with a setter.
    """
    found = _property(instance, name)
    setter = getattr(found, "fset", None)
    if setter is None or not getattr(_accessor(found), "_pyroExposed", False):
        raise _unknown_attribute(name)
    setter(instance, value)


def _property(instance: Any, name: str) -> Any:
    if not isinstance(name, str):
        raise AttributeError("an attribute's name is text")
    if is_private(name):
        raise AttributeError(f"attempt to access private attribute '{name}'")
    found = getattr(type(instance), name, None)
    if not inspect.isdatadescriptor(found):
        raise _unknown_attribute(name)
    return found


def _unknown_attribute(name: str) -> AttributeError:
    return AttributeError(f"attempt to access unexposed or unknown remote attribute '{name}'")
