"""The states of several workers as the state of one dispatcher. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

Answer = dict[str, Any]

_BY_LIFE: Final = ("draining", "up", "disabled", "drained", "ejected", "leaving", "down")
"""Which state of a backend counts, where workers see it in different ones."""


def joined(statuses: Sequence[Answer]) -> Answer:
    """Services of all workers, what is counted added up."""
    return {
        "clients": sum(status["clients"] for status in statuses),
        "cut": sum(status["cut"] for status in statuses),
        "services": _by_name(
            (service for status in statuses for service in status["services"]),
            lambda service: service["name"],
            _join_services,
        ),
    }


def join_backends(seen: Sequence[Answer]) -> Answer:
    """One backend, as several workers see it."""
    first, limits = seen[0], [backend["max_in_flight"] for backend in seen]
    states = {backend["state"] for backend in seen}
    return {
        **first,
        "state": next((state for state in _BY_LIFE if state in states), first["state"]),
        "reason": next((backend["reason"] for backend in seen if backend["reason"]), ""),
        "max_in_flight": None if None in limits else sum(limits),
        **_sums(seen, "in_flight", "clients", "calls", "busy_s", "ejections"),
        **{name: _largest(seen, name) for name in ("p50_s", "p99_s", "ejected_s")},
    }


def _join_services(seen: Sequence[Answer]) -> Answer:
    calls: Counter[str] = Counter()
    for service in seen:
        calls.update(service["calls"])
    return {
        **seen[0],
        **_sums(seen, "running", "waiting", "busy_s", "done"),
        "calls": dict(calls),
        "retries": _sums([service["retries"] for service in seen], "used", "denied"),
        "backends": _by_name(
            (backend for service in seen for backend in service["backends"]),
            lambda backend: (backend["name"], backend["uri"]),
            join_backends,
        ),
    }


def _sums(seen: Sequence[Answer], *names: str) -> Answer:
    return {name: round(sum(one[name] for one in seen), 6) for name in names}


def _largest(seen: Sequence[Answer], name: str) -> float | None:
    """Of those that know: how long calls take at the slowest worker, for example."""
    return max((one[name] for one in seen if one[name] is not None), default=None)


def _by_name(
    things: Iterable[Answer], key: Callable[[Answer], object], join: Callable[[Sequence[Answer]], Answer]
) -> list[Answer]:
    found: dict[object, list[Answer]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return [join(same) for same in found.values()]
