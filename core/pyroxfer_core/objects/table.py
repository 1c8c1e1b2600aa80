"""The objects a daemon serves, by id, and how a registered class becomes instances."""

from __future__ import annotations

import inspect
import threading
import uuid
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import DaemonError
from .expose import Exposed, exposed, reset_exposed

DAEMON_ID: Final = "Pyro.Daemon"
"""Every daemon serves itself under this id."""

Session = MutableMapping[type, Any]
"""The session objects of one connection, by class."""


@dataclass(slots=True, eq=False)
class Entry:
    """One registered object or class."""

    object_id: str
    target: Any
    is_class: bool
    exposed: Exposed
    mode: str
    """``instance`` for an object; ``session``, ``single`` or ``percall`` for a class."""
    creator: Callable[[type], Any] | None
    concurrent: bool
    """Calls of one connection may run at once."""
    weak: bool = False
    """Stands for one object that is not kept alive: ``creator`` finds it."""
    fixed: Any = None
    """The object that every call goes to, once it is known; None when there is none such."""
    keeps_order: bool = True
    """Some of its calls on one connection must not run at once."""


class ObjectTable:
    """Ids and objects of one daemon. ``owner`` is what objects get as ``_pyroDaemon``."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._entries: dict[str, Entry] = {}
        self._singles: dict[type, Any] = {}
        self._lock = threading.RLock()
        """Held while a single is made, by the user's code."""
        self._registering = threading.RLock()
        """Held while ids are given and taken."""

    def register(self, thing: Any, object_id: str | None = None, force: bool = False, *, weak: bool = False) -> str:
        """Serve an object, or a class whose instances are made when they are called; returns the id.

        With ``weak`` the object is not kept alive by it, and the entry goes with the object.

        Raises:
            TypeError: the id is not text; a class, or an object without weak references, with ``weak``.
            DaemonError: the id cannot stand in a URI, it is taken or the object is registered here already (``force``
                overrides), or the object cannot carry Pyro's marks.
        """
        if object_id is not None and not isinstance(object_id, str):
            raise TypeError("an object id is text")
        object_id = object_id or f"obj_{uuid.uuid4().hex}"
        if "@" in object_id or any(character.isspace() for character in object_id):
            raise DaemonError(f"an object id has no blanks and no '@': {object_id!r}")
        with self._registering:
            if not force:
                self._check_free(thing, object_id)
            entry = _make_weak_entry(object_id, thing) if weak else _make_entry(object_id, thing)
            try:
                thing._pyroId = object_id
                thing._pyroDaemon = self._owner
            except (AttributeError, TypeError) as exc:
                raise DaemonError(f"{type(thing).__qualname__} cannot be registered: {exc}") from exc
            self._entries[object_id] = entry
        if weak:
            weakref.finalize(thing, self._forget, object_id, entry).atexit = False
        return object_id

    def _check_free(self, thing: Any, object_id: str) -> None:
        known = self._entries.get(getattr(thing, "_pyroId", None) or "")
        if known is not None and (
            known.weak or known.target is thing
        ):  # else the id is that of its class, or of a base
            raise DaemonError("object or class already has a Pyro id")
        if object_id in self._entries:
            raise DaemonError(f"an object or class is already registered with the id {object_id!r}")

    def _forget(self, object_id: str, entry: Entry) -> None:
        if self._entries.get(object_id) is entry:
            del self._entries[object_id]

    def unregister(self, thing: Any) -> None:
        """Stop serving an object, a class or an id. An unknown id, and the daemon itself, are left in peace.

        Raises:
            ValueError: ``thing`` is None.
            DaemonError: the object is not registered.
        """
        if thing is None:
            raise ValueError("an object or an object id is needed")
        object_id = thing if isinstance(thing, str) else getattr(thing, "_pyroId", None)
        if object_id is None:
            raise DaemonError("object is not registered")
        if object_id == DAEMON_ID:
            return
        with self._registering:
            self._unregister(thing, object_id)

    def _unregister(self, thing: Any, object_id: str) -> None:
        entry = self._entries.get(object_id)
        if entry is not None and entry.weak:
            del self._entries[object_id]
            _unmark(thing if not isinstance(thing, str) else entry.creator and entry.creator(entry.target))
        elif entry is not None and (isinstance(thing, str) or thing is entry.target):
            del self._entries[object_id]
            if entry.is_class:
                self._drop_single(entry.target)
            _unmark(entry.target)
        elif not isinstance(thing, str):
            _unmark(thing)  # another object took its id

    def _drop_single(self, clazz: type) -> None:
        """The next call on any entry of a class makes a new object."""
        self._singles.pop(clazz, None)
        for entry in list(self._entries.values()):  # an object that is collected takes its own away
            if entry.target is clazz:
                entry.fixed = None

    def get(self, object_id: str) -> Entry:
        """The entry of an id.

        Raises:
            DaemonError: there is none.
        """
        try:
            return self._entries[object_id]
        except KeyError:
            raise DaemonError("unknown object") from None

    def ids(self) -> list[str]:
        """All ids, in order of registration."""
        return list(self._entries)

    def id_of(self, thing: Any) -> str | None:
        """The id of a served object or class, or of an instance of a served class; None for anything else."""
        object_id = getattr(thing, "_pyroId", None)
        entry = self._entries.get(object_id) if isinstance(object_id, str) else None
        if entry is None:
            return None
        is_ours = thing is entry.target or (entry.is_class and isinstance(thing, entry.target))
        return object_id if is_ours else None

    def id_given_to(self, thing: Any) -> str | None:
        """The id that an object or class was registered under here, while anything is; by force it may be another."""
        marks = vars(thing) if inspect.isclass(thing) else None  # those of a base class are not its own
        object_id = getattr(thing, "_pyroId", None) if marks is None else marks.get("_pyroId")
        is_ours = getattr(thing, "_pyroDaemon", None) is self._owner
        return object_id if is_ours and object_id in self._entries else None

    def look_anew(self, thing: Any) -> None:
        """Serve the members that a class, or the class of an object, has by now."""
        reset_exposed(thing)
        now = exposed(thing)
        clazz = thing if inspect.isclass(thing) else type(thing)
        for entry in list(self._entries.values()):  # an object that is collected takes its own away
            if clazz is entry.target or clazz is type(entry.target):
                entry.exposed = now

    def known_instance(self, entry: Entry, session: Session) -> Any:
        """The object that a call on ``entry`` goes to if it exists already; None when it must be made.

        Making one runs the user's code, which may block, so it belongs into a thread; this does not.
        """
        if entry.mode == "instance":
            return entry.target
        if entry.mode == "session":
            return session.get(entry.target)
        return self._singles.get(entry.target) if entry.mode == "single" else None

    def instance(self, entry: Entry, session: Session) -> Any:
        """The object that a call on ``entry`` goes to; made now if there is none yet.

        Raises:
            TypeError: the instance creator returned something else than an instance of the class.
        """
        if entry.mode == "instance":
            return entry.target
        clazz = entry.target
        if entry.mode == "session":
            if clazz not in session:
                return session.setdefault(clazz, _create(entry))
            return session[clazz]
        if entry.mode == "percall":
            return _create(entry)
        with self._lock:
            if clazz not in self._singles:
                self._singles[clazz] = _create(entry)
            entry.fixed = self._singles[clazz]
            return entry.fixed


def refuse_to_share(thing: Any) -> None:
    """Check that it does not matter which of several processes a call comes to.

    Raises:
        DaemonError: it is one object for all clients, and not said to be stateless.
    """
    clazz = thing if inspect.isclass(thing) else type(thing)
    mode = getattr(thing, "_pyroInstancing", ("session", None))[0] if inspect.isclass(thing) else "single"
    if mode == "single" and not getattr(clazz, "_pyroStateless", False):
        raise DaemonError(
            f"every worker would have a {clazz.__qualname__} of its own: register a class with sessions or percall, "
            "or declare it @behavior(stateless=True)"
        )


def _make_entry(object_id: str, thing: Any) -> Entry:
    is_class = inspect.isclass(thing)
    mode, creator = getattr(thing, "_pyroInstancing", ("session", None)) if is_class else ("instance", None)
    concurrent = mode != "session" or bool(getattr(thing, "_pyroConcurrent", False))
    fixed = None if is_class else thing
    keeps_order = not concurrent or object_id == DAEMON_ID
    return Entry(object_id, thing, is_class, exposed(thing), mode, creator, concurrent, False, fixed, keeps_order)


def _make_weak_entry(object_id: str, thing: Any) -> Entry:
    """An entry whose "new instance for each call" is the one object, while it exists."""
    if inspect.isclass(thing):
        raise TypeError("a class cannot be registered weakly")
    reference = weakref.ref(thing)

    def find(_: type) -> Any:
        found = reference()
        if found is None:
            raise DaemonError("unknown object")
        return found

    return Entry(object_id, type(thing), True, exposed(thing), "percall", find, True, weak=True, keeps_order=False)


def _unmark(thing: Any) -> None:
    for mark in ("_pyroId", "_pyroDaemon"):
        try:
            delattr(thing, mark)
        except AttributeError:
            pass  # the mark is that of a registered class


def _create(entry: Entry) -> Any:
    clazz = entry.target
    if entry.creator is None:
        return clazz()
    instance = entry.creator(clazz)
    if not isinstance(instance, clazz):
        raise TypeError(f"the instance creator of {clazz.__qualname__} returned a {type(instance).__qualname__}")
    return instance
