from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.models.spec import ModelSpec
from thinkfast.report.breakeven import (
    Bound,
    Curve,
    Measured,
    Model,
    Run,
    break_even,
    chain_break_even,
    step_break_even,
)
from thinkfast.report.roofline import ItemSizes, Machine

TEACHER = ModelSpec(96, 32, 4, 4, 8, 48, ("attention",) * 4, max_positions=1024)
PURE = TEACHER.as_student((), 8)
FP32 = ItemSizes(4, 4, 4, 4)
MACHINE = Machine("made up", 1e11, ((1.0, 1e10),))
CONTEXTS = (10.0, 100.0, 300.0, 500.0)


def line(fixed: float, slope: float) -> Curve:
    return Curve(CONTEXTS, tuple(fixed + slope * c for c in CONTEXTS))


@given(st.floats(1.0, 5.0), st.floats(0.01, 0.02), st.floats(-2.0, 8.0))
def test_two_lines_cross_where_they_do(fixed: float, slope: float, more: float) -> None:
    """A student with `more` fixed cost and a tenth of the slope."""
    teacher, student = line(fixed, slope), line(fixed + more, slope / 10)
    crossing = more / (0.9 * slope)
    found = step_break_even(teacher, student, CONTEXTS)
    if crossing >= 500:
        assert found is None
    elif crossing < 10:
        assert found == 10.0
    else:
        assert found == pytest.approx(crossing)
    assert teacher.slope == pytest.approx(slope)


def test_a_lead_that_is_lost_again_does_not_count() -> None:
    teacher, student = Curve(CONTEXTS, (3, 1, 3, 3)), Curve(CONTEXTS, (2, 2, 2, 2))
    assert step_break_even(teacher, student, CONTEXTS) == pytest.approx(200.0)
    assert step_break_even(student, teacher, CONTEXTS) is None


@pytest.mark.parametrize("head_start", [-50.0, 0.3, 20.0, 200.0])
def test_chains_cross_where_the_sums_do(head_start: float) -> None:
    """Against brute force, token by token."""
    teacher, student = Run(100.0, line(1.0, 0.01)), Run(100.0 + head_start, line(2.0, 0.0))
    found = chain_break_even(teacher, student, 50, 400)
    totals = [100.0, 100.0 + head_start]
    behind = [totals[1] >= totals[0]]
    for token in range(1, 400):
        totals[0] += 1.0 + 0.01 * (50 + token)
        totals[1] += 2.0
        behind.append(totals[1] >= totals[0])
    expected = None if behind[-1] else max((n for n, b in enumerate(behind, 1) if b), default=0) + 1
    assert found == expected


def test_one_token_chains_are_prefill_alone() -> None:
    step = line(1.0, 0.0)
    assert chain_break_even(Run(2.0, step), Run(1.0, step), 50, 1) == 1
    assert chain_break_even(Run(1.0, step), Run(2.0, step), 50, 1) is None


def test_the_model_grows_by_kv_bytes_over_bandwidth() -> None:
    """4 layers x 2 x 32 channels x 4 bytes, 64 rows, 10 GB/s: 6.5536 us a context token."""
    model = Model(TEACHER, 64, FP32, MACHINE, context=20.0, seconds=1e-3)
    assert model(np.array([20.0, 120.0, 1020.0])) == pytest.approx(
        [1e-3, 1e-3 + 100 * 6.5536e-6, 1e-3 + 1000 * 6.5536e-6]
    )
    assert (Model(PURE, 64, FP32, MACHINE, 20.0, 1e-3)(np.array([1.0, 5000.0])) == 1e-3).all()


def test_predicted_and_measured_meet_when_the_machine_keeps_to_the_roofline() -> None:
    teacher_step = Model(TEACHER, 64, FP32, MACHINE, 16.0, 1e-3)
    curve = Curve(CONTEXTS, tuple(teacher_step(np.array(CONTEXTS)).tolist()))
    flat = Curve(CONTEXTS, (2e-3,) * 4)
    found = break_even(Measured(TEACHER, 0.1, curve), Measured(PURE, 0.1, flat), 64, 64, 512, FP32, MACHINE)
    # 1 ms at context 16, so 2 ms at 16 + 1 / 6.5536e-3 = 168.6; whole chains later than single steps.
    assert found["predicted_context"] == pytest.approx(168.6, abs=0.1)
    assert found["measured_context"] == pytest.approx(168.6, abs=0.1)
    assert found["predicted_tokens"] == found["measured_tokens"] == pytest.approx(2 * (168.6 - 64), abs=2)


def test_the_bound_alone_has_a_break_even_too() -> None:
    """The state is 2 x (32 x 8 + 4 x 96) floats a row and layer, a token's KV 64."""
    bounds = [Bound(spec, 64, FP32, MACHINE) for spec in (TEACHER, PURE)]
    contexts = np.linspace(1, 200, 400)
    found = step_break_even(bounds[0], bounds[1], contexts.tolist())
    assert found is not None
    near = np.array([found - 1, found + 1])
    assert (np.sign(bounds[0](near) - bounds[1](near)) == [-1, 1]).all()
