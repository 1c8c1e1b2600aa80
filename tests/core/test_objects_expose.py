"""What an object shows: decorators, names, metadata, lookup."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pyroxfer_core.objects.expose import (
    behavior,
    callback,
    describe,
    expose,
    exposed,
    get_attribute,
    is_private,
    oneway,
    reset_exposed,
    resolve_method,
    set_attribute,
)


class Base:
    @expose
    def from_base(self) -> str:
        return "base"

    def hidden_in_base(self) -> None: ...


@expose
class Service(Base):
    plain = 5

    def __init__(self) -> None:
        self._level = 1
        self.instance_attribute = 2

    def method(self, number: int = 0) -> int:
        return number + 1

    async def coroutine(self) -> int:
        return 1

    def stream(self) -> Iterator[int]:
        yield 1

    async def astream(self) -> AsyncIterator[int]:
        yield 1

    @oneway
    def fire(self) -> None: ...

    @callback
    def called_back(self) -> None: ...

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    @staticmethod
    def static() -> str:
        return "static"

    @property
    def level(self) -> int:
        return self._level

    @level.setter
    def level(self, value: int) -> None:
        self._level = value

    @property
    def fixed(self) -> int:
        return 7

    def __len__(self) -> int:
        return 0

    def __dunder__(self) -> str:
        return "dunder"

    def _private(self) -> None: ...


METHODS = {"method", "coroutine", "stream", "astream", "fire", "called_back", "of_class", "static", "from_base",
           "__len__", "__dunder__"}  # fmt: skip


def test_metadata() -> None:
    metadata = describe(Service)
    assert metadata.methods == METHODS
    assert metadata.oneway == {"fire"}
    assert metadata.attrs == {"level", "fixed"}
    assert describe(Service()) is metadata


@pytest.mark.parametrize(
    ("name", "private"),
    [
        ("method", False),
        ("_x", True),
        ("__x", True),
        ("__x_", True),
        ("____", True),
        ("__a__", False),
        ("__len__", False),
        ("__dunder__", False),
        ("__init__", True),
        ("__call__", True),
        ("__getattr__", True),
        ("__reduce_ex__", True),
        ("__setstate_from_dict__", True),
        ("_", True),
        ("", False),
    ],
)
def test_private_names(name: str, private: bool) -> None:
    assert is_private(name) is private


@pytest.mark.parametrize(
    ("name", "result"),
    [("method", 1), ("of_class", "Service"), ("static", "static"), ("from_base", "base"), ("__len__", 0)],
)
def test_exposed_methods_are_found_bound(name: str, result: Any) -> None:
    assert resolve_method(Service(), name)() == result


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_private", "attempt to access private attribute '_private'"),
        ("__init__", "attempt to access private attribute '__init__'"),
        ("__getattr__", "attempt to access private attribute '__getattr__'"),
        ("hidden_in_base", "attempt to access unexposed attribute 'hidden_in_base'"),
        ("plain", "attempt to access unexposed attribute 'plain'"),
        ("instance_attribute", "attempt to access unexposed attribute 'instance_attribute'"),
        ("level", "attempt to access unexposed attribute 'level'"),
        ("missing", "missing"),
        ("method.__func__", "method.__func__"),
    ],
)
def test_other_names_are_refused(name: str, text: str) -> None:
    with pytest.raises(AttributeError, match=text):
        resolve_method(Service(), name)


def test_an_instance_attribute_that_hides_an_exposed_method_is_judged_itself() -> None:
    service = Service()
    service.method = lambda: "stolen"  # type: ignore[method-assign,assignment,misc]  # what the test is about
    with pytest.raises(AttributeError, match="unexposed attribute 'method'"):
        resolve_method(service, "method")


def test_an_exposed_object_in_an_attribute_can_be_called() -> None:
    @expose
    class Callable:
        async def __call__(self) -> int:
            return 3

    service = Service()
    service.helper = Callable()  # type: ignore[attr-defined]  # what the test is about
    found, kind = exposed(service).find(service, "helper")
    assert found is service.helper  # type: ignore[attr-defined]
    assert kind.is_async
    assert "helper" not in describe(service).methods


def test_kinds() -> None:
    members = exposed(Service)
    service = Service()
    kinds = {name: members.find(service, name)[1] for name in METHODS}
    assert [name for name, kind in kinds.items() if kind.is_async] == ["coroutine"]
    assert {name for name, kind in kinds.items() if kind.is_stream} == {"stream", "astream"}
    assert [name for name, kind in kinds.items() if kind.is_oneway] == ["fire"]
    assert [name for name, kind in kinds.items() if kind.is_callback] == ["called_back"]
    assert not any(kind.is_inline for kind in kinds.values())


def test_inline() -> None:
    class Quick:
        @expose(inline=True)
        def quick(self) -> int:
            return 1

        @expose
        def slow(self) -> int:
            return 2

    @expose(inline=True)
    class AllQuick:
        def quick(self) -> int:
            return 1

    quick = Quick()
    assert exposed(quick).find(quick, "quick")[1].is_inline
    assert not exposed(quick).find(quick, "slow")[1].is_inline
    assert exposed(AllQuick).find(AllQuick(), "quick")[1].is_inline


class TestProperties:
    def test_read_and_write(self) -> None:
        service = Service()
        set_attribute(service, "level", 9)
        assert get_attribute(service, "level") == 9

    @pytest.mark.parametrize("name", ["method", "plain", "instance_attribute", "missing", "hidden_in_base"])
    def test_other_names_are_refused(self, name: str) -> None:
        text = f"attempt to access unexposed or unknown remote attribute '{name}'"
        with pytest.raises(AttributeError, match=text):
            get_attribute(Service(), name)
        with pytest.raises(AttributeError, match=text):
            set_attribute(Service(), name, 1)

    def test_private_names_are_refused(self) -> None:
        for name in ("_level", "__class__", "__dict__x"):
            with pytest.raises(AttributeError, match="private attribute"):
                get_attribute(Service(), name)
            with pytest.raises(AttributeError, match="private attribute"):
                set_attribute(Service(), name, 1)

    def test_without_a_setter(self) -> None:
        with pytest.raises(AttributeError, match="unexposed or unknown remote attribute 'fixed'"):
            set_attribute(Service(), "fixed", 1)

    def test_a_name_that_is_no_text(self) -> None:
        with pytest.raises(AttributeError):
            get_attribute(Service(), 5)  # type: ignore[arg-type]  # comes from a peer

    def test_expose_above_and_below_property(self) -> None:
        class Both:
            @expose  # type: ignore[prop-decorator]  # Pyro allows it
            @property
            def above(self) -> int:
                return 1

            @property
            @expose
            def below(self) -> int:
                return 2

            @property
            def neither(self) -> int:
                return 3

        assert describe(Both).attrs == {"above", "below"}
        assert (get_attribute(Both(), "above"), get_attribute(Both(), "below")) == (1, 2)
        with pytest.raises(AttributeError):
            get_attribute(Both(), "neither")


class TestDecorators:
    def test_expose_above_classmethod_has_a_hint(self) -> None:
        def method(first: Any = None) -> None: ...

        for wrapped in (classmethod(method), staticmethod(method)):
            with pytest.raises(AttributeError, match="must stand below"):
                expose(wrapped)

    def test_expose_below_classmethod(self) -> None:
        class Right:
            @classmethod
            @expose
            def of_class(cls) -> int:
                return 1

            @staticmethod
            @expose
            def static() -> int:
                return 2

        assert describe(Right).methods == {"of_class", "static"}

    def test_private_names_cannot_be_exposed(self) -> None:
        def _private(self: Any) -> None: ...

        def __init__(self: Any) -> None: ...

        for function in (_private, __init__, property(_private)):
            with pytest.raises(AttributeError, match="private names"):
                expose(function)

    def test_what_has_no_name_cannot_be_exposed(self) -> None:
        for thing in (5, "text", property()):
            with pytest.raises(AttributeError):
                expose(thing)

    def test_behavior(self) -> None:
        @behavior("single", instance_creator=lambda clazz: clazz(), concurrent=True)
        class Single: ...

        assert Single._pyroInstancing[0] == "single"  # type: ignore[attr-defined]
        assert Single._pyroConcurrent  # type: ignore[attr-defined]

    def test_behavior_misused(self) -> None:
        with pytest.raises(SyntaxError):

            @behavior  # type: ignore[arg-type]  # what is refused
            class Bare: ...

        with pytest.raises(ValueError, match="invalid instance mode: shared"):
            behavior("shared")
        with pytest.raises(TypeError):
            behavior("single", instance_creator=5)  # type: ignore[arg-type]  # what is refused
        with pytest.raises(TypeError):
            behavior("single")(lambda: None)

    def test_pyros_own_marks_are_understood(self) -> None:
        class Foreign:
            def method(self) -> int:
                return 1

        Foreign.method._pyroExposed = True  # type: ignore[attr-defined]
        Foreign.method._pyroOneway = True  # type: ignore[attr-defined]
        assert describe(Foreign).methods == describe(Foreign).oneway == {"method"}


def test_changed_classes_are_looked_at_anew_on_request() -> None:
    class Changing:
        @expose
        def first(self) -> None: ...

    assert describe(Changing).methods == {"first"}
    Changing.second = Changing.first  # type: ignore[attr-defined]
    assert describe(Changing).methods == {"first"}
    reset_exposed(Changing)
    assert describe(Changing).methods == {"first", "second"}
