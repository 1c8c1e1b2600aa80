"""What was found, and what it means for the exit code."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from .._run import ExitCode


class Verdict(enum.StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    """It works from here, and may not from elsewhere."""
    PROBLEM = "problem"
    """What was asked for does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at, in a word or two; the same for the same check."""
    verdict: Verdict
    text: str
    """What was found."""
    advice: str = ""
    """What to change; every warning and every problem has one."""
    code: ExitCode = ExitCode.OTHER
    """The exit code that a problem of this kind is."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {key: value for key, value in asdict(self).items() if key != "code"}


class Report:
    """Findings in the order in which they were made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def ok(self, check: str, text: str) -> None:
        """Something is as it should be."""
        self.findings.append(Finding(check, Verdict.OK, text))

    def warn(self, check: str, text: str, advice: str) -> None:
        """Something works from here, and may not from elsewhere."""
        self.findings.append(Finding(check, Verdict.WARNING, text, advice))

    def problem(self, check: str, text: str, advice: str, code: ExitCode) -> None:
        """Something does not work."""
        self.findings.append(Finding(check, Verdict.PROBLEM, text, advice, code))

    @property
    def exit_code(self) -> ExitCode:
        """That of the first problem; warnings are no problem."""
        return next((found.code for found in self.findings if found.verdict is Verdict.PROBLEM), ExitCode.OK)
