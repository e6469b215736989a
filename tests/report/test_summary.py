from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from thinkfast.errors import InputError
from thinkfast.report.browser import choose
from thinkfast.report.samples import Row
from thinkfast.report.summary import Summary, summarise
from thinkfast.report.views import problem_list


def simple(rows: dict[str, list[list[tuple[str | None, float]]]], seconds: float = 10.0) -> tuple[Any, list[Row]]:
    """Results and rows of systems: per problem the (key, second) of each chain; the right key is always "r"."""
    problems = len(next(iter(rows.values())))
    records, out = [], []
    for system, mine in rows.items():
        for p, chains in enumerate(mine):
            for i, (key, at) in enumerate(chains):
                out.append(Row(system, f"p{p}", i, 10, "…", key, key, key == "r", "stop", -1.0, at))
        fewest = min(map(len, mine))
        records.append(
            {
                "name": system,
                "model": system,
                "sha": "0",
                "family": "teacher" if system == "t" else "pure",
                "parameters": 10,
                "load_seconds": 0.1,
                "wall_seconds": seconds,
                "prompt_tokens": 1,
                "generated_tokens": 10,
                "tokens_per_second": 1.0,
                "samples": sum(map(len, mine)),
                "complete_samples": fewest,
                "cut": 0,
                "ended": "n",
            }
        )
    asked = [{"id": f"p{p}", "question": "?", "answer": "r", "level": None, "subject": None} for p in range(problems)]
    return {"eval": {"systems": records, "problems": asked}}, out


def test_figures_of_a_log_small_enough_to_count_by_hand() -> None:
    results, rows = simple(
        {
            "t": [[("r", 1.0), ("r", 6.0)], [("x", 2.0), ("r", 8.0)], [("x", 3.0), (None, 9.0)]],
            "s": [[("r", 0.5), ("r", 1.0)], [("r", 1.0), ("x", 2.0)], [("x", 1.5), ("x", 2.5)]],
        }
    )
    summary = summarise(results, rows)
    teacher, student = summary.table
    assert teacher.mean is not None
    assert teacher.coverage is not None
    assert teacher.majority is not None
    assert student.coverage is not None
    assert teacher.mean.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert teacher.coverage.value == pytest.approx(2 / 3)
    assert teacher.majority.value == pytest.approx(1 / 3)  # p1 is a tie, which its first answer wins
    assert teacher.seconds == 9.0
    assert student.coverage.value == pytest.approx(2 / 3)
    cover, vote = summary.curves["coverage"]["t"], summary.curves["majority"]["t"]
    for at, seconds in enumerate(cover.seconds):
        assert cover.value[at] == pytest.approx((int(seconds >= 1) + int(seconds >= 8)) / 3)
        assert vote.value[at] == pytest.approx(int(seconds >= 1) / 3)
    assert summary.budgets[-1] == 10.0
    assert sorted(summary.budgets) == list(summary.budgets)
    last = summary.winners[-1]
    assert last["coverage"] is not None
    assert last["coverage"].lead == 0
    assert last["majority"] is not None
    assert (last["majority"].a, last["majority"].b) == ("s", "t")
    assert last["majority"].lead == pytest.approx(1 / 3)
    assert not last["majority"].clear  # one problem of three is nothing


def test_a_clear_winner_and_loser_are_named() -> None:
    good, bad = [[("r", 1.0)]] * 40, [[("x", 1.0)]] * 40
    half = [[("r", 5.0)]] * 20 + [[("x", 5.0)]] * 20
    results, rows = simple({"t": half, "good": good, "bad": bad})
    headline = summarise(results, rows).headline
    assert (
        "Within 10 s for 40 problems, good is ahead on both counts: 100 % covered, 100 % right by vote."
        in headline.title
    )
    said = {(point.system, point.metric): point for point in headline.points}
    assert said["good", "coverage"].tone == "win"
    assert "good beats t in coverage at every budget compared." == said["good", "coverage"].text
    assert said["bad", "majority"].tone == "loss"
    assert "bad loses to t in majority accuracy" in said["bad", "majority"].text
    assert "at 10 s: 0 % against 50 %, −50.0 points" in said["bad", "majority"].figures


def test_a_student_that_wins_early_and_loses_late_is_told_as_such() -> None:
    slow = [[("r", 8.0)]] * 40
    fast = [[("r", 0.5)]] * 20 + [[("x", 0.5)]] * 20
    results, rows = simple({"t": slow, "s": fast})
    point = next(p for p in summarise(results, rows).headline.points if p.metric == "coverage")
    assert point.tone == "even"
    assert point.text == "s beats t in coverage at budgets of 0.5 s to 5 s, and loses to it at 10 s."
    assert point.short == "Coverage: ahead at budgets of 0.5 s to 5 s, behind at 10 s."


def test_budgets_end_where_the_first_system_ends() -> None:
    results, rows = simple({"t": [[("r", 1.0)]] * 3, "s": [[("r", 1.0)]] * 3})
    results["eval"]["systems"][1]["wall_seconds"] = 4.0
    summary = summarise(results, rows)
    assert summary.budgets[-1] == 4.0
    assert summary.curves["coverage"]["t"].seconds[-1] == pytest.approx(10.0)


def test_estimates_over_samples_leave_out_what_the_deadline_spared() -> None:
    """Chains of the unit that the budget cut are short ones: they count for seconds, not for pass@k."""
    results, rows = simple({"t": [[("x", 1.0), ("r", 2.0)], [("x", 1.0)]]})
    summary = summarise(results, rows)
    assert summary.table[0].samples == 1
    assert summary.table[0].mean is not None
    assert summary.table[0].mean.value == 0
    assert summary.scores["coverage"]["t"].value[-1] == 0.5


def test_log_and_results_must_belong_together() -> None:
    results, rows = simple({"t": [[("r", 1.0)]]})
    with pytest.raises(InputError, match="problem 'elsewhere' by 't'"):
        summarise(results, [replace(rows[0], problem="elsewhere")])
    with pytest.raises(InputError, match="by 'u'"):
        summarise(results, [replace(rows[0], system="u")])
    with pytest.raises(InputError, match="lack 'eval'"):
        summarise({"gates": []}, rows)
    results["systems"] = {"t": {"distilled": "later"}}
    with pytest.raises(InputError, match="'t' is distilled 'later'"):
        summarise(results, rows)


def test_systems_of_one_family_get_colours_of_their_own() -> None:
    results, rows = simple({name: [[("r", 1.0)]] for name in ("t", "a", "b", "c", "d")})
    colours = [view.colour for view in summarise(results, rows).views]
    assert len(set(colours)) == 5


def browse(rows: dict[str, list[list[tuple[str | None, float]]]]) -> tuple[Summary, dict[str, str]]:
    results, log = simple(rows)
    summary = summarise(results, log)
    return summary, {shown.tag: shown.id for shown in choose(summary.views, problem_list(results))}


def test_the_browser_shows_each_kind_of_problem_once() -> None:
    def at(*keys: str | None) -> list[tuple[str | None, float]]:
        return [(key, 1.0 + i) for i, key in enumerate(keys)]

    same = [at("r", "r", "r", "r"), at("r", "r", "x", "y", "z"), at("x", "x", "r", "y"), at("x", "x", None, "y")]
    teacher, student = [*same, at("r", "r", "r", "r")], [*same, at("x", "x", "x", "x")]
    _, tags = browse({"t": teacher, "s": student})
    assert tags == {
        "every vote is right": "p0",
        "most chains are wrong, the vote is right": "p1",
        "a right chain is outvoted": "p2",
        "nobody solves it": "p3",
        "the systems differ": "p4",
    }


def test_a_ballot_counts_every_chain_and_shows_the_winning_and_a_right_one() -> None:
    keys = ["x", "x", "x", "r", "a", "b", "c", "d", None, None]
    results, log = simple({"t": [[(key, 1.0 + i) for i, key in enumerate(keys)]]})
    (ballot,) = choose(summarise(results, log).views, problem_list(results))[0].ballots
    assert sum(bar.count for bar in ballot.bars) == ballot.total == 10
    assert [(bar.answer, bar.count, bar.right) for bar in ballot.bars[:2]] == [("x", 3, False), ("r", 1, True)]
    assert not ballot.vote_right
    assert [row.key for row in ballot.chains[:2]] == ["x", "r"]


def test_a_right_answer_of_few_votes_does_not_colour_the_others() -> None:
    keys = ["u", "u", "v", "v", "w", "w", "x", "x", "y", "y", "a", "r", "b", None]
    results, log = simple({"t": [[(key, 1.0 + i) for i, key in enumerate(keys)]]})
    (ballot,) = choose(summarise(results, log).views, problem_list(results))[0].ballots
    bars = [(bar.answer, bar.count, bar.right) for bar in ballot.bars]
    assert bars[-2:] == [("r", 1, True), ("others", 3, None)]
    assert sum(bar.count for bar in ballot.bars if bar.right) == ballot.right == 1
    assert sum(bar.count for bar in ballot.bars) == ballot.total


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_rows_in_the_log_does_not_matter(order: tuple[int, ...]) -> None:
    results, rows = simple({"t": [[("r", 1.0), ("x", 2.0), ("x", 3.0)]]})
    shuffled = [rows[i] for i in order]
    one, other = summarise(results, rows), summarise(results, shuffled)
    assert one.table[0].majority == other.table[0].majority
    assert np.array_equal(one.curves["majority"]["t"].value, other.curves["majority"]["t"].value)


def test_where_one_run_ends_the_others_curve_says_what_the_table_says() -> None:
    """The student ends at 3.7 s; the teacher's third right chain comes just before, between two points of its grid."""
    results, rows = simple(
        {
            "t": [[("r", 1.0)], [("r", 2.0)], [("r", 3.699999)], [("r", 9.0)]],
            "s": [[("r", 1.0)], [("r", 1.5)], [("x", 2.0)], [("x", 3.7)]],
        }
    )
    results["eval"]["systems"][1]["wall_seconds"] = 3.7
    summary = summarise(results, rows)
    assert summary.budgets[-1] == 3.7
    for name, value in (("t", 0.75), ("s", 0.5)):
        curve = summary.curves["coverage"][name]
        assert curve.value[np.searchsorted(curve.seconds, 3.7, side="right") - 1] == value
        assert (np.diff(curve.seconds) > 0).all()


@pytest.mark.parametrize(
    ("teacher", "student", "disturbed"),
    [
        ((1.0, 0.0), (2.0, 0.0), True),  # a neighbour took one of two
        ((1.0, 0.9), (2.0, 0.0), False),  # a system that needs less leaves it idle
        ((1.9, 0.0), (2.0, 0.0), False),  # noise
        ((None, None), (2.0, 0.0), False),  # a run of an older version, a GPU, another system
        ((1.0, None), (2.0, None), False),
    ],
)
def test_a_system_that_had_less_of_the_machine_than_another_is_named(
    teacher: tuple[float | None, float | None], student: tuple[float | None, float | None], disturbed: bool
) -> None:
    results, rows = simple({"t": [[("r", 1.0)]], "s": [[("r", 0.5)]]})
    assert summarise(results, rows).headline.warning == ""
    for record, (processors, idle) in zip(results["eval"]["systems"], (teacher, student), strict=True):
        record |= {"processors": processors, "idle": idle}
    warning = summarise(results, rows).headline.warning
    assert ("had 1.0 of the processors and" in warning) is disturbed
    assert bool(warning) is disturbed


@pytest.mark.parametrize(
    ("other", "warned"),
    [
        ({"tokens_per_second": 1300.0}, True),
        ({"tokens_per_second": 1150.0}, False),
        ({"tokens_per_second": 700.0}, True),
        ({"tokens_per_second": 1300.0, "parameters": 7}, False),
        ({"tokens_per_second": 1300.0, "family": "hybrid"}, False),
        ({"tokens_per_second": 1300.0, "generated_tokens": 13}, False),  # longer chains need less prefill
        ({"tokens_per_second": 1300.0, "prompt_tokens": 2}, False),
        ({"tokens_per_second": 1300.0, "wall_seconds": 3.0}, False),
        ({"tokens_per_second": 1300.0, "ended": "n"}, False),  # the last chains of a run that ends by itself are alone
    ],
)
def test_systems_of_one_shape_that_were_not_equally_fast_are_named(other: dict[str, Any], warned: bool) -> None:
    results, rows = simple({"a": [[("r", 1.0)]], "b": [[("r", 0.5)]]})
    same = {"family": "pure", "parameters": 5, "ended": "seconds", "tokens_per_second": 1000.0}
    for record, changes in zip(results["eval"]["systems"], ({}, other), strict=True):
        record |= same | changes
    warning = summarise(results, rows).headline.warning
    assert bool(warning) is warned
    if warned:
        low, high = sorted((1000.0, other["tokens_per_second"]))
        assert f"made {high:,.0f} and {low:,.0f} tokens/s" in warning
