"""A contender that fails is reported, and no other contender loses its figures."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "comparison.py").exists():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)

sys.path.append(str(ROOT))
try:
    from benchmarks import docs, report, results, runner
    from benchmarks.comparison import (
        Comparison,
        Contender,
        ContenderFailed,
        Figures,
        Goal,
        Measured,
        check_equal,
        evaluate_goal,
        failure_text,
        measure,
    )
finally:
    sys.path.remove(str(ROOT))


class FakeDriver:
    async def execute(self, statement: str) -> None: ...


class FakeConnections:
    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.recoveries = 0

    async def recover(self) -> None:
        self.recoveries += 1


class FakeComparison(Comparison):
    name: ClassVar[str] = "fake"
    description = "sleep {size} times"
    unit = "sleeps"
    max_seconds = 0.2
    runs: ClassVar[Mapping[str, Callable[[], Awaitable[Any]]]] = {}
    wrong: ClassVar[frozenset[str]] = frozenset()

    async def set_up(self) -> None: ...

    def contenders(self) -> Sequence[Contender]:
        return [Contender(name, "howdah", run, 10) for name, run in self.runs.items()]

    def goals(self) -> Sequence[Goal]:
        names = list(self.runs)
        return [Goal(names[0], "times as fast", 0.5, other) for other in names[1:]]

    async def reset(self, contender: Contender) -> None: ...

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("answer", contender.name in self.wrong, False)


def comparison(
    runs: Mapping[str, Callable[[], Awaitable[Any]]], *, wrong: frozenset[str] = frozenset()
) -> type[FakeComparison]:
    return type("Fake", (FakeComparison,), {"runs": runs, "wrong": wrong})


async def good() -> Measured:
    return Measured(0.5, latency=(0.1, 0.2))


async def raises() -> None:
    raise ValueError("no such column\nsecond line")


async def never_answers() -> None:
    await asyncio.Event().wait()


async def measures_zero() -> Measured:
    return Measured(0.0)


async def measured_figures(kind: type[FakeComparison], rounds: int = 2) -> tuple[dict[str, Figures], FakeConnections]:
    connections = FakeConnections()
    return await measure(kind(connections, 100_000), rounds=rounds), connections  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "failure"),
    [
        (raises, "ValueError: no such column"),
        (never_answers, "not finished in 0.2 s"),
        (measures_zero, "nothing measured: 10 units in 0 s"),
    ],
)
async def test_a_failing_contender_does_not_end_the_comparison(run: Callable[[], Awaitable[Any]], failure: str) -> None:
    figures, connections = await measured_figures(comparison({"good": good, "bad": run, "other": good}))

    assert figures["bad"].failure == failure
    assert figures["bad"].seconds == []
    assert figures["good"].seconds == figures["other"].seconds == [0.5, 0.5]
    assert connections.recoveries == 1  # it doesn't run again after the warm-up


async def test_a_contender_with_a_wrong_result_has_no_figures() -> None:
    figures, _ = await measured_figures(comparison({"good": good, "bad": good}, wrong=frozenset({"bad"})))

    assert figures["bad"].failure == "wrong result: answer: True instead of False"
    assert figures["bad"].median is None
    assert figures["good"].median == 0.5


async def test_rounds_before_a_failure_are_kept_but_decide_no_goal() -> None:
    calls = iter([good, good, raises])  # the warm-up, the first round, the second round

    async def bad() -> Any:
        return await next(calls)()

    kind = comparison({"good": good, "bad": bad})
    figures, _ = await measured_figures(kind, rounds=4)

    assert figures["bad"].seconds == [0.5]
    (result,) = [evaluate_goal(goal, figures) for goal in kind(FakeConnections(), 1).goals()]  # type: ignore[arg-type]
    assert result.median is None
    assert result.is_met is None
    assert result.failure == "bad: ValueError: no such column"


def test_a_goal_is_not_measured_if_either_contender_failed() -> None:
    works = Figures("howdah", 1, seconds=[1.0], latencies=[(1.0, 1.0)])
    failed = Figures("peer", 1, failure="no answer")
    goals = [Goal("a", "times as fast", 1, "b"), Goal("b", "of the p50", 1, "a"), Goal("b", "MB", 1)]

    found = [evaluate_goal(goal, {"a": works, "b": failed}) for goal in goals]

    assert [(each.is_met, each.failure) for each in found] == [(None, "b: no answer")] * 3


def test_a_goal_is_not_measured_without_figures() -> None:
    result = evaluate_goal(Goal("a", "MB", 1), {"a": Figures("howdah", 1, seconds=[1.0])})

    assert (result.is_met, result.failure) == (None, "no figures")
    assert evaluate_goal(Goal("a", "MB", 1), {}).failure == "a did not run"


def test_a_failure_is_one_short_line() -> None:
    group = ExceptionGroup("several", [ContenderFailed("x" * 1000), ValueError("other")])

    assert failure_text(group) == "x" * 199 + "…"
    assert failure_text(KeyError("id")) == "KeyError: 'id'"
    assert failure_text(TimeoutError()) == "TimeoutError"


class FakeDisplay:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.comparisons: list[Mapping[str, Any]] = []

    def print_line(self, text: str) -> None:
        self.lines.append(text)

    def print_comparison(self, comparison: Mapping[str, Any]) -> None:
        self.comparisons.append(comparison)

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[[str], None]]:
        yield lambda _text: None


class BrokenSetUp(FakeComparison):
    name = "broken"
    runs: ClassVar = {"good": good, "other": good}

    async def set_up(self) -> None:
        raise ContenderFailed("the server ended")

    async def tear_down(self) -> None:
        raise RuntimeError("nothing to stop")


async def run(kinds: Sequence[type[Comparison]], **options: Any) -> tuple[bool, FakeDisplay]:
    display = FakeDisplay()
    environment = results.Environment("18.0", {"fsync": "on"})
    chosen = runner.Options(**{"rounds": 1, **options})
    connections: Any = FakeConnections()
    return await runner.run_comparisons(connections, environment, kinds, chosen, display), display


async def test_a_failing_comparison_does_not_end_the_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    is_complete, display = await run([BrokenSetUp, comparison({"good": good, "bad": raises, "other": good})], file=file)

    assert not is_complete
    broken, fake = json.loads(file.read_text())["comparisons"]
    assert broken["failure"] == "the server ended"
    assert [goal["is_met"] for goal in broken["goals"]] == [None]
    assert [each["failure"] for each in fake["contenders"]] == [None, "ValueError: no such column", None]
    assert [goal["is_met"] for goal in fake["goals"]] == [None, True]
    assert [each["name"] for each in display.comparisons] == ["broken", "fake"]
    assert "\n1 of 3 goals met, 2 not measured" in display.lines
    assert "  broken: the server ended" in display.lines
    assert "  fake: bad: ValueError: no such column" in display.lines


async def test_a_missed_goal_does_not_fail_the_run() -> None:
    async def fast() -> Measured:
        return Measured(0.1)

    is_complete, display = await run([comparison({"good": good, "fast": fast})])

    assert is_complete
    assert display.comparisons[0]["goals"][0]["is_met"] is False


async def test_the_tables_and_the_pages_show_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    await run([BrokenSetUp, comparison({"good": good, "bad": raises})], file=file)
    figures = results.read_publishable(file)

    failed = report.contenders_table(figures["comparisons"][1])
    assert failed.headings[-1] == "failure"
    assert [row[-1] for row in failed.rows] == ["", "ValueError: no such column"]
    assert report.goals_table(figures["comparisons"][1]).rows[0][1:] == (
        "bad: ValueError: no such column",
        "≥ 0.5 × the speed of bad",
        "not measured",
    )
    page = docs.all_figures(figures)
    assert "| bad | howdah |  |  | 0 | 10 |  |  |  | ValueError: no such column |" in page
    assert "| good | howdah | 0.500 s | 0.500 s - 0.500 s | 1 | 10 | 20.00 | 0.100 s | 0.200 s |  |" in page
    assert "Failed: the server ended." in page

    monkeypatch.setattr(docs, "HEADLINES", [("fake", "good", "bad")])
    headline = "| fake | good: not measured (bad: ValueError: no such column) | ≥ 0.5 | not measured |"
    assert headline in docs.headline_figures(figures)


async def test_the_tables_show_the_cpu_time_of_each_part_and_its_share_of_a_core(tmp_path: Path) -> None:
    async def with_parts() -> Measured:
        return Measured(0.0005, cpu={"service": 0.0004, "wrk": 0.00005}, batch_size=17.6)

    file = tmp_path / "figures.json"
    await run([comparison({"good": good, "parts": with_parts})], file=file)
    (figures,) = results.read(file)["comparisons"]

    table = report.contenders_table(figures)

    assert list(table.headings)[-3:] == ["service CPU", "wrk CPU", "batch"]
    assert [row[-3:] for row in table.rows] == [["", "", ""], ["40 µs (80%)", "5 µs (10%)", "17.6"]]


async def test_the_terminal_prints_a_failed_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="only the dependency group of the benchmarks has rich")
    from benchmarks.terminal import Terminal

    _, display = await run([BrokenSetUp, comparison({"good": good, "bad": raises})])
    terminal = Terminal()
    for each in display.comparisons:
        terminal.print_comparison(each)

    printed = capsys.readouterr().out
    assert "failed: the server ended" in printed
    assert "ValueError: no such column" in printed


async def test_figures_of_a_quick_run_cannot_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "quick.json"
    await run([comparison({"good": good, "other": good})], file=file, is_quick=True)
    quick = results.read(file)

    assert quick["is_quick"]
    assert quick["comparisons"][0]["size"] == FakeComparison.quick_size
    with pytest.raises(results.NotPublishable, match="measure again without it"):
        results.read_publishable(file)
    with pytest.raises(results.NotPublishable, match="can't be merged"):
        results.merge(docs.FIGURES, quick)
    with pytest.raises(results.NotPublishable, match="choose a file outside of benchmarks/results"):
        results.check_quick_file(docs.FIGURES)
    monkeypatch.setattr(sys, "argv", ["benchmarks.docs", "--figures", str(file)])
    with pytest.raises(SystemExit, match="2"):
        docs.main()
    assert "was measured with --quick" in capsys.readouterr().err


async def test_a_run_is_merged_with_the_comparisons_that_it_does_not_contain(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    await run([BrokenSetUp, comparison({"good": good, "other": good})], file=old)
    await run([comparison({"good": good, "bad": raises})], file=new, merge_with=old)

    broken, fake = results.read(new)["comparisons"]
    assert broken["name"] == "broken"
    assert [each["name"] for each in fake["contenders"]] == ["good", "bad"]


async def test_figures_of_another_machine_are_rejected_before_the_run(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    await run([BrokenSetUp], file=old)
    figures = results.read(old)
    figures["environment"]["cores"] = 1000
    results.write(old, figures)

    with pytest.raises(results.NotPublishable, match="another machine"):
        await run([BrokenSetUp], merge_with=old)


def test_the_published_figures_match_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    figures = results.read_publishable(docs.FIGURES)

    assert docs.all_figures(figures)
    assert docs.headline_figures(figures)
