from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.engine.request import Chain, Finish
from thinkfast.judge.tally import Ballot, Tally, read, unbeatable
from thinkfast.judge.vote import majority


def chain(text: str, finish: Finish = "stop", index: int = 0) -> Chain:
    return Chain("0", index, (5, 6), text, -1.0, None, finish, 0.5, 3)


def tally_of(keys: list[str | None]) -> Tally:
    tally = Tally()
    for index, key in enumerate(keys):
        tally.add(Ballot(chain("", index=index), key, key, 0.0))
    return tally


KEYS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=7)


@given(KEYS)
def test_a_tally_stands_as_the_majority_vote_says(keys: list[str | None]) -> None:
    standings, vote = tally_of(keys).standings(), majority(keys)
    first, second = [*standings, None, None][:2]
    assert (first.key if first else None, first.share if first else 0.0) == (vote.key, vote.share)
    assert (second.key if second else None) == vote.runner_up
    assert sum(s.count for s in standings) == sum(key is not None for key in keys)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["1", "1.0", "2", "3", None])), max_size=30), st.data())
def test_counting_on_says_what_counting_anew_says(steps: list[tuple[int, str | None]], data: st.DataObject) -> None:
    """Also where a ballot takes an earlier one's place and where keys turn out to mean the same."""
    merged: dict[str, str] = {}
    tally = Tally(same=lambda key: merged.get(key, key))
    for index, key in steps:
        tally.add(Ballot(chain("", index=index), key, key, 0.0))
        if data.draw(st.integers(0, 5)) == 0:
            merged["3"] = "2"
            tally.recount()
        anew = Tally(same=lambda key: merged.get(key, key))
        for ballot in tally.ballots:
            anew.add(ballot)
        anew.recount()
        assert tally.standings() == anew.standings()


@given(KEYS, st.integers(0, 3))
def test_unbeatable_means_that_no_continuation_changes_the_winner(keys: list[str | None], remaining: int) -> None:
    now = majority(keys).key
    ends = {majority([*keys, *more]).key for more in itertools.product(["a", "b", "c", "new", None], repeat=remaining)}
    assert unbeatable(tally_of(keys), remaining) == (now is not None and ends == {now})


def test_the_most_common_form_of_an_answer_is_shown() -> None:
    tally = Tally()
    for index, text in enumerate(("so \\boxed{0.5}", "thus \\boxed{1/2}", "hence \\boxed{1/2}", "or \\boxed{3}")):
        tally.add(read(chain(text, index=index), 1.0))
    assert [(s.answer, s.count, s.share) for s in tally.standings()] == [("1/2", 3, 0.75), ("3", 1, 0.25)]


@pytest.mark.parametrize(
    ("text", "finish", "answer"),
    [
        ("so \\boxed{25}.", "stop", "25"),
        ("that makes 25", "stop", "25"),
        ("that makes 25", "length", None),
        ("The answer is 25. That is", "length", "25"),
        ("so \\boxed{25}", "deadline", "25"),
        ("so \\boxed{25}. Let me check: 3 * 4", "deadline", "25"),
        ("so \\boxed{25", "deadline", None),
        ("so \\boxed{\\frac{1}{25", "deadline", None),
        ("so \\boxed{25}, or rather \\boxed{26", "deadline", "25"),
        ("#### 25\n", "deadline", "25"),
        ("#### 25", "deadline", None),
        ("The answer is the number of coins.\nThere are 3 coins.", "deadline", None),
        ("The answer is 25. That", "deadline", None),
        ("", "deadline", None),
        ("so \\boxed{25}", "cancelled", None),
        ("so \\boxed{25}", "error", None),
    ],
)
def test_what_a_chain_votes_for(text: str, finish: Finish, answer: str | None) -> None:
    ballot = read(chain(text, finish), 2.0)
    assert ballot.answer == answer
    assert (ballot.key is None) == (answer is None)
    assert ballot.finished == (finish in ("stop", "length", "error"))
    assert ballot.seconds == 2.0
