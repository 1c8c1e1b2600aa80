"""What one of several workers has of a configuration: its part of the limits, and none of what their parent does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pyroxfer_core import Worker

from .config import BackendConfig, Config, ConfigError, DiscoverConfig, ServiceConfig
from .state import State

SAID: Final = "said.json"
"""File in which the parent keeps what operators said, for workers that begin later."""


Entry = TypeVar("Entry", BackendConfig, DiscoverConfig)


def control_of(folder: Path, number: int) -> str:
    """The control socket of a worker."""
    return str(folder / f"control{number}")


def said_in(folder: Path) -> State:
    """What operators said before this worker began."""
    try:
        return msgspec.json.decode((folder / SAID).read_bytes(), type=State)
    except FileNotFoundError:
        return State()


def keep_said(folder: Path, state: State) -> None:
    """Put what operators said where workers that begin later find it, see `said_in`."""
    fresh = folder / f"{SAID}.new"
    fresh.write_bytes(msgspec.json.encode(state))
    fresh.replace(folder / SAID)


def check_workers(config: Config, count: int) -> None:
    """Whether so many workers can share a configuration.

    Raises:
        ConfigError: they cannot; each reason is listed.
    """
    problems = list(_problems(config, count)) if count > 1 else []
    if problems:
        raise ConfigError(problems)


def _problems(config: Config, count: int) -> Iterator[str]:
    for index, service in enumerate(config.services):
        if service.listeners != "none":
            yield f"services[{index}].listeners: a listener would be known to one worker only; use one process"
        limits = [(f"services[{index}].max_in_flight", service.max_in_flight)]
        for place, backend in enumerate(service.backends):
            limits.append((f"services[{index}].backends[{place}].max_in_flight", backend.max_in_flight))
        for place, section in enumerate(service.discover):
            limits.append((f"services[{index}].discover[{place}].max_in_flight", section.max_in_flight))
        for name, limit in limits:
            if limit is not None and limit < count:
                yield f"{name}: {limit} calls at once cannot be shared by {count} workers; use at most {limit}"


def part_of(config: Config, worker: Worker) -> Config:
    """The configuration of one worker. Limits of calls at once, and of those that wait, are divided.

    Raises:
        ConfigError: as `check_workers`.
    """
    check_workers(config, worker.count)

    def share(limit: int) -> int:
        return limit // worker.count + (worker.number < limit % worker.count)

    def less(entry: Entry) -> Entry:
        limit = entry.max_in_flight
        return entry if limit is None else msgspec.structs.replace(entry, max_in_flight=share(limit))

    def part(service: ServiceConfig) -> ServiceConfig:
        return msgspec.structs.replace(
            service,
            max_in_flight=None if service.max_in_flight is None else share(service.max_in_flight),
            max_queue=share(service.max_queue),
            backends=tuple(map(less, service.backends)),
            discover=tuple(map(less, service.discover)),
        )

    return msgspec.structs.replace(
        config,
        services=tuple(map(part, config.services)),
        control=control_of(worker.folder, worker.number),
        admin=None,
        register=None,
    )
