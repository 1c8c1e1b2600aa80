"""What the state of everything looks like from outside: plain values, the same for every way to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .backends import Backend
from .routes import Directory, Service


def services_of(directory: Directory) -> Iterator[Service]:
    """Every service; topics that somebody listens to are services of their own."""
    for service in directory.services.values():
        yield service
        if service.listeners is not None:
            yield from service.listeners.topics()


def describe_service(service: Service, now: float) -> dict[str, Any]:
    """One service with its backends. Seconds are since it began to run; counts only grow."""
    admission = service.admission
    return {
        "name": admission.name,
        "running": admission.running,
        "waiting": admission.waiting,
        "calls": dict(service.tally),
        "busy_s": round(admission.busy_s, 6),
        "done": admission.done,
        "retries": {"used": service.retries.used, "denied": service.retries.denied},
        "backends": [describe_backend(backend, now) for backend in service.group.backends],
    }


def describe_backend(backend: Backend, now: float) -> dict[str, Any]:
    """One backend."""
    return {
        "name": backend.name,
        "uri": str(backend.uri),
        "origin": backend.origin,
        "state": state_of(backend, now),
        "reason": _reason_of(backend),
        "weight": backend.weight,
        "tags": sorted(backend.tags),
        "in_flight": backend.in_flight,
        "max_in_flight": backend.max_in_flight,
        "clients": backend.clients,
        "calls": backend.calls,
        "busy_s": round(backend.busy_s, 6),
        "p50_s": _rounded(backend.times.quantile(0.5, now)),
        "p99_s": _rounded(backend.times.quantile(0.99, now)),
        "ejections": backend.ejections,
        "ejected_s": None if backend.ejected_until is None else round(max(0.0, backend.ejected_until - now), 3),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _reason_of(backend: Backend) -> str:
    if backend.failures:
        return backend.reason
    return "" if backend.ejected_until is None else backend.eject_reason


def state_of(backend: Backend, now: float) -> str:
    """``up``, ``down``, ``leaving``, ``ejected``, ``draining`` (something is left), ``drained`` or ``disabled``."""
    if backend.disabled:
        return "disabled"
    if backend.draining:
        return "draining" if backend.in_flight or backend.clients else "drained"
    if backend.failures:
        return "leaving" if backend.leaving else "down"
    return "up" if backend.ejected_until is None else "ejected"
