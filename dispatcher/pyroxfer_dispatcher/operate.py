"""The commands that operate a running dispatcher, over its control socket."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click

from .backends import IN_FILE
from .control import ask_control
from .exits import USAGE, config_option, end, load, or_exit
from .follow import LOST

Answer = dict[str, Any]
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
target_argument = click.argument("target", metavar="SERVICE/BACKEND")
_OTHERS: Final = ("missing", "refused", "passed_over")
CLEAR: Final = "\x1b[H\x1b[2J"


def _socket_of(path: Path) -> str:
    config = load(path, insecure=True)  # whoever runs it has decided that
    if config.control is None:
        end(USAGE, f'{path}: it has no control socket; add control = "PATH" and start the dispatcher again')
    return config.control


def _ask(path: Path, do: str, **more: Any) -> Iterator[Answer]:
    return ask_control(_socket_of(path), {"do": do, **more})


def _tell(path: Path, as_json: bool, do: str, **more: Any) -> None:
    """Print every answer as it comes."""

    def tell() -> None:
        for answer in _ask(path, do, **more):
            click.echo(json.dumps(answer) if as_json else _line(answer))

    or_exit(tell)


def _line(answer: Answer) -> str:
    if "restarted" in answer:
        text = f"process {answer['restarted']} serves; process {answer['was']} sees {answer['clients']} clients off"
        return f"{text}, and ends"
    if "draining" in answer:
        return f"the dispatcher is draining; {answer['clients']} clients are connected"
    text = f"{answer['service']}/{answer['name']}: {answer['state']}, weight {answer['weight']:g}"
    return f"{text}, {answer['in_flight']} calls under way, {answer['clients']} clients"


@click.command()
@config_option
@json_option
def status(path: Path, as_json: bool) -> None:
    """Show services, backends and clients, as of now."""

    def tell() -> None:
        for answer in _ask(path, "status"):
            click.echo(json.dumps(answer) if as_json else _page(answer, None))

    or_exit(tell)


@click.command()
@config_option
@json_option
@click.option("-n", "count", type=click.IntRange(1), help="End after so many looks.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
def top(path: Path, as_json: bool, count: int | None, interval: float) -> None:
    """Show the status again and again, with calls a second and how long they take."""
    or_exit(lambda: _top(path, as_json, count, interval))


def _top(path: Path, as_json: bool, count: int | None, interval: float) -> None:
    before = None
    looks = 0
    while count is None or looks < count:
        if looks:
            time.sleep(interval)
        now = next(_ask(path, "status"))
        with_rates(now, before)
        if as_json:
            click.echo(json.dumps(now))
        else:
            clear = CLEAR if sys.stdout.isatty() else ""
            click.echo(clear + _page(now, before))
        before = now
        looks += 1


def with_rates(now: Answer, before: Answer | None) -> None:
    """Add ``rate`` (calls a second) and ``mean_s`` (of those that ended) of every backend since the last look."""
    old = {} if before is None else _by_name(before)
    seconds = now["up_s"] - (0.0 if before is None else before["up_s"])
    for name, backend in _by_name(now).items():
        last = old.get(name, {"calls": 0, "busy_s": 0.0})
        calls = backend["calls"] - last["calls"]
        backend["rate"] = round(calls / seconds, 3) if seconds > 0 else 0.0
        backend["mean_s"] = round((backend["busy_s"] - last["busy_s"]) / calls, 6) if calls > 0 else None


def _by_name(seen: Answer) -> dict[tuple[str, str], Answer]:
    return {
        (service["name"], backend["name"]): backend for service in seen["services"] for backend in service["backends"]
    }


def _page(status: Answer, before: Answer | None) -> str:
    state = "draining" if status["draining"] else "up"
    lines = [
        f"{status['object']}@{status['location']}: {state} for {status['up_s']:.0f} s, {status['clients']} clients"
    ]
    lines += [
        f"worker {worker['number']}: process {worker['pid']}, up {worker['up_s']:.0f} s, {worker['clients']} clients"
        for worker in status.get("workers", ())
    ]
    for service in status["services"]:
        calls = ", ".join(f"{count} {name}" for name, count in sorted(service["calls"].items())) or "no calls yet"
        lines.append(f"{service['name']}: {service['running']} under way, {service['waiting']} waiting; {calls}")
        lines += [f"  {_backend(backend)}" for backend in service["backends"]]
        lines += [f"  {_section(section)}" for section in service["discover"]]
    return "\n".join(lines)


def _backend(backend: Answer) -> str:
    text = (
        f"{backend['name']:<16} {backend['state']:<9} weight {backend['weight']:<5g} {backend['in_flight']:>5} calls"
    )
    if "rate" in backend:
        text += f" {backend['rate']:>9.1f}/s"
    if backend.get("mean_s") is not None:
        text += f" {backend['mean_s'] * 1000:>9.2f} ms"
    if backend["p50_s"] is not None:
        text += f" p50 {backend['p50_s'] * 1000:.3g} ms p99 {backend['p99_s'] * 1000:.3g} ms"
    text += f" {backend['clients']:>5} clients  {backend['uri']}"
    text += "" if backend["origin"] == IN_FILE else f" from {backend['origin']}"
    return text + (f"  ({json.dumps(backend['reason'])})" if backend["reason"] else "")


def _section(section: Answer) -> str:
    text = f"registry {section['registry']}: {section['state']} for {section['since_s']:.0f} s"
    text += f", {section['backends']} back ends"
    if section["state"] == LOST:
        text += f" kept ({json.dumps(section['reason'])})"
    counts = [f", {section[what]} {what.replace('_', ' ')}" for what in _OTHERS if section[what]]
    return text + "".join(counts)


@click.command()
@config_option
@json_option
@click.option("--wait", is_flag=True, help="Report until nothing is left.")
@click.argument("target", metavar="[SERVICE/BACKEND]", required=False)
def drain(path: Path, as_json: bool, wait: bool, target: str | None) -> None:
    """Give a backend no new calls, and see its clients off; without one: drain and end the dispatcher."""
    _tell(path, as_json, "drain", target=target, wait=wait)


@click.command()
@config_option
@json_option
@click.option("--wait", is_flag=True, help="Report until the old process has no clients left.")
def restart(path: Path, as_json: bool, wait: bool) -> None:
    """Have a new process take over, without refusing or losing a connection."""
    _tell(path, as_json, "restart", wait=wait)


@click.command()
@config_option
@json_option
@target_argument
def undrain(path: Path, as_json: bool, target: str) -> None:
    """Take a drained or disabled backend back."""
    _tell(path, as_json, "undrain", target=target)


@click.command()
@config_option
@json_option
@target_argument
def disable(path: Path, as_json: bool, target: str) -> None:
    """Drain a backend, and cut its clients between calls without waiting."""
    _tell(path, as_json, "disable", target=target)


@click.command(name="weight")
@config_option
@json_option
@target_argument
@click.argument("weight", type=click.FloatRange(0, 1000, min_open=True))
def set_weight(path: Path, as_json: bool, target: str, weight: float) -> None:
    """Set how much a backend gets, compared with the others."""
    _tell(path, as_json, "weight", target=target, weight=weight)


@click.command()
@config_option
@json_option
@click.option("-n", "count", type=click.IntRange(1), help="End after so many calls.")
@click.argument("correlation_id", type=click.UUID, required=False)
def trace(path: Path, as_json: bool, count: int | None, correlation_id: UUID | None) -> None:
    """Follow the calls with a correlation id, or all, as they end."""
    wanted = None if correlation_id is None else str(correlation_id)

    def tell() -> None:
        for answer in islice(_ask(path, "trace", id=wanted), count):
            click.echo(json.dumps(answer) if as_json else _record(answer))

    or_exit(tell)


def _record(answer: Answer) -> str:
    steps = " ".join(f"{name[:-2]}={answer[name] * 1000:.2f}ms" for name in answer if name.endswith("_s"))
    text = (
        f"{answer['time']} {answer['correlation_id']} {answer['client']} -> {answer['service']}/{answer['backend']}"
    )
    reason = f" {json.dumps(answer['reason'])}" if answer["reason"] else ""
    return f"{text} {answer['outcome']} {answer['bytes_in']}/{answer['bytes_out']} bytes {steps}{reason}"


COMMANDS: Final = (trace, status, top, drain, undrain, restart, disable, set_weight)
