"""Every figure of a document is one that was measured: none is made up, none is older than its data."""

from __future__ import annotations

import shutil
from typing import Any

import bench_arguments
import pytest
import quotes
import report
import tools
from measure import Comparison, Effort, Growth, Sample, Samples, exponent, ratio

KNOWN: dict[str, Any] = {
    "rpc": {
        "tables": {
            "Calls": {
                "ratios": [{"text": "proxy", "ratio": 2.357}],
                "rows": {"proxy": {"median": 23570.4, "CPU µs a call": 41.26}, "peer": {"median": 10000.0}},
            }
        }
    }
}


def test_the_page_is_what_the_data_say() -> None:
    """Nobody edits it."""
    assert report.PAGE.read_text() == "\n".join(report.page(report.load())) + "\n"


@pytest.mark.parametrize("page", report.DOCUMENTS, ids=lambda page: page.stem)
def test_documents_quote_what_was_measured(page: Any) -> None:
    text = page.read_text()
    assert quotes.refreshed(text, report.load()) == text
    assert quotes.unproven(text) == []


def test_a_quoted_figure_is_replaced_by_the_measured_one() -> None:
    """A ratio, a median and a column, each to the decimals that the text has."""
    text = (
        "9.9 times<!-- rpc / Calls / proxy --> and 1<!-- rpc / Calls / peer --> calls, "
        "1.0 µs<!-- rpc / Calls / proxy / CPU µs a call --> each"
    )
    assert quotes.refreshed(text, KNOWN) == (
        "2.4 times<!-- rpc / Calls / proxy --> and 10,000<!-- rpc / Calls / peer --> calls, "
        "41.3 µs<!-- rpc / Calls / proxy / CPU µs a call --> each"
    )


@pytest.mark.parametrize("place", ["rpc / Calls / nobody", "no / such / table", "rpc / Calls / peer / CPU µs a call"])
def test_what_was_never_measured_cannot_be_quoted(place: str) -> None:
    with pytest.raises(LookupError, match="nothing was measured"):
        quotes.refreshed(f"3 times<!-- {place} -->", KNOWN)


@pytest.mark.parametrize("claim", ["3 times the calls of Pyro5", "moves 900 MB/s", "is 2.5 × faster", "in 40 µs"])
def test_a_speed_without_a_source_is_found(claim: str) -> None:
    assert quotes.unproven(f"It {claim}.") == [f"It {claim}."]
    assert quotes.unproven("It is 3 times<!-- rpc / Calls / proxy --> as fast, in 2 places.") == []


def samples(**rows: list[float]) -> Samples:
    return Samples({name: [Sample(value) for value in values] for name, values in rows.items()})


def test_a_ratio_compares_what_was_taken_together() -> None:
    """Turn by turn against the better peer: a slow turn slows both sides of one ratio."""
    taken = samples(ours=[20.0, 10.0, 22.0], slow=[1.0, 1.0, 1.0], best=[10.0, 5.0, 10.0])
    assert ratio(Comparison("", "ours", ["slow", "best"]), taken) == (2.0, "best")
    assert ratio(Comparison("", "ours", ["slow", "best"], lower_is_better=True), taken) == (1 / 20, "slow")
    assert ratio(Comparison("", "ours", ["absent"]), taken) is None


@pytest.mark.parametrize(("power", "rates"), [(0.0, [5.0, 5.0, 5.0]), (1.0, [100.0, 10.0, 1.0])])
def test_growth_is_the_power_that_the_cost_follows(power: float, rates: list[float]) -> None:
    taken = samples(a=rates[:1], b=rates[1:2], c=rates[2:])
    assert exponent(Growth("", {1: "a", 10: "b", 100: "c"}), taken) == pytest.approx(power)


def test_a_fixed_cost_does_not_hide_what_grows() -> None:
    """Ten times as many cost twice as much at first and ten times as much in the end: the page says both."""
    rows = {"a": [Sample(1.0, {"µs": 1.0})], "b": [Sample(1.0, {"µs": 2.0})], "c": [Sample(1.0, {"µs": 20.0})]}
    growth = Growth("A call", {1: "a", 10: "b", 100: "c", 1000: "not measured"}, "µs")
    table = report.section("calls/s", Samples(rows), [], [growth])
    (line,) = report.growth(table["growth"])
    assert line == "\nA call, 1 to 100: exponent 0.65, 1.00 from 10 to 100 (0 is flat)."


def test_growth_leaves_out_what_cost_nothing() -> None:
    """The start of a command is subtracted from what it took, and may come out as all of it."""
    rows = {name: [Sample(1.0, {"µs": cost})] for name, cost in (("a", -0.5), ("b", 3.0), ("c", 30.0))}
    assert exponent(Growth("", {1: "a", 10: "b", 100: "c"}, "µs"), Samples(rows)) == pytest.approx(1.0)
    assert exponent(Growth("", {1: "a", 10: "b"}, "µs"), Samples(rows)) is None


@pytest.mark.parametrize("options", [[], ["--quick"], ["--repetitions", "3", "--seconds", "0.3"]])
def test_a_run_that_was_ended_says_what_is_left_to_do(options: list[str]) -> None:
    chosen = bench_arguments.parser().parse_args([*options, "all"])
    program, *words = bench_arguments.words(chosen, ["files", "ns"]).split()
    assert program == "./scripts/bench"
    chosen.suites = ["files", "ns"]
    assert bench_arguments.parser().parse_args(words) == chosen


def test_every_peer_is_compared_with_and_the_best_counts() -> None:
    """The best one's ratio is the row's; the page says those of the others, too."""
    compared = Comparison("ours, against both", "ours", ["fast", "slow", "not measured"], 1.0)
    table = report.section("calls/s", samples(ours=[40.0, 40.0], fast=[20.0, 20.0], slow=[10.0, 10.0]), [compared])
    (row,) = table["ratios"]
    assert (row["ratio"], row["against"], row["others"]) == (2.0, "fast", {"slow": 4.0})
    assert list(report.ratios([row]))[-1] == "| ours, against both | 2.00 | 1 | fast; 4.00 × slow |"


def test_the_page_says_what_was_not_there_to_compare_with() -> None:
    facts: dict[str, Any] = {"command": "./scripts/bench", "when": "today", "commit": "abc", "machine": {"cores": 2}}
    facts |= {"versions": {"Python": "3"}, "peer versions": {"Pyro5": "5"}}
    assert not any("left out" in line for line in report.about(facts | {"absent": []}))
    assert any("left out: nginx and curl." in line for line in report.about(facts | {"absent": ["nginx and curl"]}))


def test_servers_are_found_where_only_the_path_of_root_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table looks for them in the same way: what the page calls absent is absent, and nothing else."""
    searched: list[str] = []
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(shutil, "which", lambda program, path: searched.append(path))
    assert not tools.present("HAProxy")
    assert tools.found("nginx") is None
    assert searched == ["/usr/bin:/usr/sbin"] * 2


def test_a_look_takes_fewer_amounts_and_not_the_largest() -> None:
    assert list(Effort(5, 3.0).some((1, 10, 100, 1000))) == [1, 10, 100, 1000]
    assert list(Effort(1, 0.3, quick=True).some((1, 10, 100, 1000))) == [1, 100]
