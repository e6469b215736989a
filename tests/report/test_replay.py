from __future__ import annotations

import random

import pytest

from thinkfast.errors import InputError
from thinkfast.judge.allocate import Promising
from thinkfast.judge.deciding import Posterior, never
from thinkfast.judge.tally import StopRule
from thinkfast.report.replay import Recording, Setting, StepTimes, record, replay
from thinkfast.report.samples import Row

TIMES = StepTimes(((1, 0.002), (8, 0.009), (64, 0.06)), 0.0001)


def made(problems: int = 30, n: int = 24, seed: int = 0) -> Recording:
    """Problems of every kind: easy ones, contested ones that a vote gets right, hopeless ones."""
    rng = random.Random(seed)
    rows = []
    for p in range(problems):
        skill = (0.97, 0.42, 0.02)[p % 3]
        for sample in range(n):
            right = rng.random() < skill
            key = "0" if right else str(rng.randint(1, 3) if p % 3 == 1 else rng.randint(1, 40))
            rows.append(
                Row("s", f"p{p}", sample, rng.randint(40, 160), "", key, key, right, "stop", -9.0, 0.0, rng.random())
            )
    names = [f"p{p}" for p in range(problems)]
    return record(rows, "s", names, dict.fromkeys(names, 30), TIMES, 64)


def test_a_replay_is_the_vote_when_there_is_time_for_all() -> None:
    log = made()
    answers = replay(log, 1e6, Setting(stop_rule=never))
    assert [answer.begun for answer in answers] == [24] * 30
    for answer, rows in zip(answers, log.rows, strict=True):
        assert answer.tokens == sum(row.tokens for row in rows)
        keys = [row.key for row in rows]
        leader = answer.solution.votes[0]
        assert leader.count == max(keys.count(key) for key in keys)
        assert answer.right == (leader.key == "0")


@pytest.mark.parametrize("rule", [never, Posterior(0.9)])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 4.0, 9.0])
def test_the_deadline_holds_and_the_same_order_gives_the_same(seconds: float, rule: StopRule) -> None:
    log = made()
    one, other = (replay(log, seconds, Setting(stop_rule=rule), order=3) for _ in range(2))
    assert one == other
    assert all(answer.solution.seconds <= seconds + 4 * TIMES.step(64) for answer in one)
    finished = [ballot for answer in one for ballot in answer.solution.chains if ballot.finished]
    assert all(ballot.seconds <= seconds + 4 * TIMES.step(64) for ballot in finished)
    assert replay(log, seconds, Setting(stop_rule=rule), order=4) != one or seconds < 0.1


def test_more_seconds_more_chains_and_stopping_saves() -> None:
    log = made()
    chains = [sum(a.begun for a in replay(log, t, Setting(stop_rule=never))) for t in (2.0, 6.0, 20.0)]
    assert chains == sorted(set(chains))
    early = replay(log, 1e6, Setting(stop_rule=Posterior(0.95)))
    assert sum(a.begun for a in early[::3]) < 0.5 * 24 * 10  # easy problems are decided soon
    assert sum(a.begun for a in early) < 0.85 * 24 * 30


def test_reallocation_wins_where_votes_are_contested() -> None:
    """Seconds saved on easy problems and not spent on hopeless ones go where they change answers."""
    log = made(problems=90)
    seconds = 60.0
    settings = (
        Setting(stop_rule=never),
        Setting(stop_rule=Posterior(0.95), allocator=Promising()),
    )
    scores = [
        sum(answer.right for order in range(4) for answer in replay(log, seconds, setting, order)) / 360
        for setting in settings
    ]
    assert scores[1] > scores[0] + 0.02


def test_one_problem_alone_and_mistakes() -> None:
    log = made()
    (alone,) = replay(log, 3.0, only=[4])
    assert alone.problem == "p4"
    assert replay(log, 1e6, Setting(n=5, stop_rule=never))[0].begun == 5
    with pytest.raises(InputError, match="n is 25 and the log has 24"):
        replay(log, 1.0, Setting(n=25))
    with pytest.raises(InputError, match="no sample of 'p1' by 's'"):
        record(list(log.rows[0]), "s", ["p0", "p1"], {"p0": 1, "p1": 1}, TIMES, 8)
