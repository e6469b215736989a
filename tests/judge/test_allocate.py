from __future__ import annotations

import pytest

from thinkfast.engine.request import Chain, SamplingParams
from thinkfast.errors import InputError
from thinkfast.judge.allocate import UNIFORM, Learned, Promising, find_allocator
from thinkfast.judge.confidence import Calibration
from thinkfast.judge.deciding import never
from thinkfast.judge.gains import Gains
from thinkfast.judge.poll import Poll
from thinkfast.judge.tally import Ballot


def poll(number: int, answers: str, n: int = 40, begun: int | None = None, tokens: int = 100) -> Poll:
    """A problem whose chains have answered these letters."""
    found = Poll(number, (1, 2), SamplingParams(n), never, read=lambda c, s: Ballot(c, c.text, c.text, s))
    for index, answer in enumerate(answers):
        found.count(Chain(str(number), index, (0,) * tokens, answer, -1.0, None, "stop", 0.1, 2), 0.1)
    found.begun = len(answers) if begun is None else begun
    return found


def test_uniform_deals_to_whoever_has_begun_the_fewest() -> None:
    polls = [poll(0, ""), poll(1, ""), poll(2, "")]
    assert UNIFORM.share(polls, 5) == [2, 2, 1]
    assert UNIFORM.share([poll(0, "", begun=2), poll(1, ""), poll(2, "", begun=1)], 3) == [0, 2, 1]
    assert UNIFORM.share([poll(0, "", n=1), poll(1, "", n=2)], 9) == [1, 2]
    later = UNIFORM.share([poll(i, "", begun=8) for i in range(4)], 8)
    assert sorted(later) == [0, 0, 4, 4]  # together, for each request prefills its prompt again


def test_a_contested_vote_gets_more_than_a_settled_or_a_hopeless_one() -> None:
    settled, contested, hopeless = poll(0, "aaaaaaaa"), poll(1, "aaabbbca"), poll(2, "abcdefgh")
    promising = Promising()
    worth = [promising.worth(each) for each in (settled, contested, hopeless)]
    assert worth[1] > worth[2] > worth[0]
    shares = promising.share([settled, contested, hopeless], 12)
    assert sum(shares) == 12
    assert shares[1] == max(shares)
    assert shares[0] == 0


def test_long_chains_are_worth_less_and_chains_in_flight_count() -> None:
    promising = Promising()
    assert promising.worth(poll(0, "aab", tokens=50)) == pytest.approx(2 * promising.worth(poll(0, "aab", tokens=100)))
    idle, busy = poll(0, "aab"), poll(1, "aab", begun=20)
    assert promising.share([idle, busy], 4)[0] == 4


def test_every_problem_is_opened_first() -> None:
    shares = Promising(opening=2).share([poll(0, "ab"), poll(1, ""), poll(2, "")], 4)
    assert shares == [0, 2, 2]
    assert Promising().share([poll(0, "ab", n=2)], 5) == [0]


def test_learned_gains_go_where_another_chain_helped() -> None:
    learned = Learned(Gains({(2, 1, 1): 0.04, (2, 2, 0): 0.001, (3, 2, 1): 0.01}))
    shares = learned.share([poll(0, "aa"), poll(1, "ab"), poll(2, "aab")], 12)
    assert sum(shares) == 12
    assert shares[1] > shares[2] > shares[0]
    assert learned.share([poll(0, "ab"), poll(1, "a"), poll(2, "")], 3) == [0, 1, 2]  # every problem has two first
    assert learned.share([poll(0, "ab", tokens=10), poll(1, "ab", tokens=1000)], 3) == [3, 0]


def test_names() -> None:
    assert find_allocator("uniform") is UNIFORM
    assert isinstance(find_allocator("posterior"), Promising)
    assert find_allocator(UNIFORM) is UNIFORM
    with pytest.raises(InputError, match="no allocator 'x'"):
        find_allocator("x")
    learned = Calibration({}, "tiny_val", 1, 1, Gains({(1, 1, 0): 0.1}))
    assert find_allocator("learned", learned).name == "learned"
    for nothing in (None, Calibration({}, "tiny_val", 1, 1)):
        with pytest.raises(InputError, match="nothing to go by"):
            find_allocator("learned", nothing)
