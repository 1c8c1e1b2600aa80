"""One thing sent and brought back over one channel by the command line, then compared file by file."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import Appliance
from sources import Digests, digests
from table import Row


@dataclass(frozen=True)
class Outcome:
    """What the command said."""

    exit_code: int
    seconds: float
    receipts: list[dict[str, Any]]


class Transfers:
    """Moves sources to the file service and back."""

    def __init__(self, appliance: Appliance, work: Path) -> None:
        self._appliance = appliance
        self._back = work / "back"
        self._known: dict[Path, Digests] = {}

    def there_and_back(self, source: Path, channel: str) -> Iterator[Row]:
        """Two rows: sent, and brought back. Both copies are compared with the source and removed."""
        there = self._appliance.served / channel
        here = self._back / channel
        there.mkdir(parents=True)
        here.mkdir(parents=True)
        address = f"{self._appliance.files}/{channel}"
        sent = transfer("send", [str(source), f"{address}/"], channel)
        yield self._row("send", source, there / source.name, channel, sent)
        got = transfer("get", [f"{address}/{source.name}", f"{here}/"], channel)
        yield self._row("get", source, here / source.name, channel, got)
        shutil.rmtree(there)
        shutil.rmtree(here)

    def _row(self, verb: str, source: Path, copy: Path, asked: str, outcome: Outcome) -> Row:
        if source not in self._known:
            self._known[source] = digests(source)
        wanted = self._known[source]
        equal = copy.exists() and digests(copy) == wanted
        used = sorted({receipt["channel"] for receipt in outcome.receipts})
        committed = f"{len(outcome.receipts):,} of {len(wanted):,}"
        channel = asked if used == [asked] else f"{asked}: {'+'.join(used)}"
        size = sum(size for size, _ in wanted.values())
        complete = outcome.exit_code == 0 and len(outcome.receipts) == len(wanted)
        return Row(f"{verb} {source.name}", channel, size, outcome.seconds, committed, equal and complete)


def transfer(verb: str, arguments: Sequence[str], channel: str) -> Outcome:
    """Run the command; its progress bars go to the terminal, its events come here."""
    command = ["pyroxfer", verb, "--channel", channel, "--json", *arguments]
    begin = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    events = [json.loads(line) for line in done.stdout.splitlines() if line]
    return Outcome(done.returncode, seconds, [event for event in events if event["event"] == "commit"])
