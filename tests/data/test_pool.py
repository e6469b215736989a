"""Pool: the same arrays whatever the number of workers, and saved whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thinkfast.data import pool as pool_module
from thinkfast.data.pool import Example, Pool, join
from thinkfast.data.procedural import generate
from thinkfast.errors import InputError
from thinkfast.models.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "src/thinkfast/assets/tiny"


def same(a: Pool, b: Pool) -> bool:
    return all(
        np.array_equal(x, y) for x, y in ((a.tokens, b.tokens), (a.starts, b.starts), (a.prompt_lens, b.prompt_lens))
    )


def test_procedural_example_is_prompt_solution_end() -> None:
    pool = Pool.procedural("train", 3, tokenizer_dir=TINY, first=10)
    tokenizer = Tokenizer.from_dir(TINY)
    for i in range(3):
        problem, example = generate(10 + i, "train"), pool.example(i)
        assert list(example.tokens[: example.prompt_len]) == tokenizer.chat(problem.question)
        assert tokenizer.decode(example.tokens[example.prompt_len :]) == problem.solution
        assert example.tokens[-1] in tokenizer.eos_ids
    with pytest.raises(IndexError):
        pool.example(3)


def test_workers_do_not_change_the_pool() -> None:
    count = pool_module.CHUNK + 50
    one = Pool.procedural("train", count, tokenizer_dir=TINY, difficulties=(2,), workers=1)
    assert same(one, Pool.procedural("train", count, tokenizer_dir=TINY, difficulties=(2,), workers=2))
    assert len(one) == count


def test_difficulties_take_turns() -> None:
    pool = Pool.procedural("val", 20, tokenizer_dir=TINY, difficulties=(2, 8))
    lens = np.diff(pool.starts)
    assert lens[::2].max() < lens[1::2].min()


def test_join_keeps_order() -> None:
    examples = [Example((1, 2, 3), 1), Example((4, 5), 1), Example((6, 7, 8, 9), 2)]
    assert same(join([Pool.of(examples[:1]), Pool.of(examples[1:2]), Pool.of(examples[2:])]), Pool.of(examples))
    with pytest.raises(InputError):
        join([])


def test_texts_leave_out_what_is_too_long() -> None:
    tokenizer = Tokenizer.from_dir(TINY)
    pairs = [("How many?", "The answer is 3."), ("How many?", "The answer is 3." * 20)]
    assert len(Pool.texts(pairs, tokenizer)) == 2
    assert len(Pool.texts(pairs, tokenizer, max_tokens=60)) == 1
    with pytest.raises(InputError, match="no examples"):
        Pool.texts(pairs, tokenizer, max_tokens=3)


def test_save_and_load(tmp_path: Path) -> None:
    pool = Pool.of([Example((1, 2, 3), 1), Example((4, 5), 1)])
    pool.save(tmp_path / "pool.npz")
    assert same(Pool.load(tmp_path / "pool.npz"), pool)
    assert [p.name for p in tmp_path.iterdir()] == ["pool.npz"]
    whole = (tmp_path / "pool.npz").read_bytes()
    (tmp_path / "pool.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("pool.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            Pool.load(tmp_path / name)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="example 1 has 2 tokens, 2 of them prompt"):
        Pool.of([Example((1, 2), 1), Example((1, 2), 2)])
    with pytest.raises(InputError, match="0 examples"):
        Pool.procedural("train", 0, tokenizer_dir=TINY)
    with pytest.raises(InputError, match="difficulty 11"):
        Pool.procedural("train", 5, tokenizer_dir=TINY, difficulties=(2, 11))
