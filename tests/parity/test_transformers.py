"""Our checkpoints in plain transformers, no code of ours: logits, greedy tokens, padding, and the way back.

Tolerance: transformers forms norms, softmax, rotary angles and dt in fp32 whatever the weights are in, so even fp64
models differ by fp32 rounding (6e-8) carried through three layers with gains above 1: 1e-5 of the largest logit in
practice, 2e-4 allowed. A wrong group, split order or decay shows at order 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.models.loading import Loaded, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import RopeScaling

transformers = pytest.importorskip("transformers")
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
needs_grouped_norm = pytest.mark.skipif(
    VERSION < (5, 23),
    reason=f"transformers {transformers.__version__} computes the gated norm without groups; 5.23 is right",
)
RELATIVE = 2e-4
SCALING = RopeScaling(8.0, 1.0, 4.0, 64)
TEACHERS: list[dict[str, Any]] = [
    {"group": 1},
    {"group": 2},
    {"group": 3, "tie_embeddings": False, "norm_eps": 1e-3},
    {"group": 2, "head_dim": 16},
    {"group": 2, "rope_theta": 500000.0, "rope_scaling": SCALING},
]
STUDENTS: list[dict[str, Any]] = [
    {"group": 1},
    {"group": 2},
    {"group": 3, "tie_embeddings": False, "norm_eps": 1e-3},
    {"group": 2, "d_state": 4},
    {"group": 3, "d_state": 16},
]
Save = Callable[..., Path]


def reference(folder: Path, dtype: torch.dtype) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def our_logits(loaded: Loaded, tokens: Tensor) -> Tensor:
    return loaded.model.logits(loaded.model(tokens, Ragged(torch.tensor([len(tokens)]))))


@torch.no_grad()
def assert_parity(folder: Path, dtype: torch.dtype, length: int = 90) -> None:
    theirs, ours = reference(folder, dtype), load_model(folder, dtype)
    # Folded back to the compact form: a wrong order of copies would load wide and agree with itself.
    assert ours.spec.ssm_kv_heads == (ours.spec.n_kv_heads if ours.spec.is_student else 0)
    tokens = torch.randint(0, 512, (length,))
    want = theirs(input_ids=tokens[None], use_cache=False).logits[0]
    found = our_logits(ours, tokens)
    assert want.dtype == found.dtype == dtype
    assert float((found - want).abs().max()) < RELATIVE * float(want.abs().max())
    assert float(want.std()) > 0.1  # logits that say something


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", TEACHERS, ids=str)
def test_teacher_logits(case: dict[str, Any], dtype: torch.dtype, save_model: Save) -> None:
    assert_parity(save_model("teacher", **case), dtype)


@needs_grouped_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", STUDENTS, ids=str)
@pytest.mark.parametrize("kind", ["hybrid", "pure"])
def test_student_logits(kind: str, case: dict[str, Any], dtype: torch.dtype, save_model: Save) -> None:
    # Longer than a chunk of ours (64): their scan has chunks of 256.
    assert_parity(save_model(kind, **case), dtype)


@needs_grouped_norm
def test_student_with_projection_bias(save_model: Save) -> None:
    assert_parity(save_model("pure", group=2, qkv_bias=True), torch.float64)


@torch.no_grad()
def greedy(loaded: Loaded, prompt: Tensor, count: int) -> list[int]:
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat((tokens, our_logits(loaded, tokens)[-1:].argmax(-1)))
    return tokens[len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("kind", "cached"),
    [
        ("teacher", True),
        pytest.param("hybrid", True, marks=needs_grouped_norm),
        # A cached forward of a pure student raises in transformers: its cache wants one attention layer.
        pytest.param("pure", False, marks=needs_grouped_norm),
    ],
)
def test_greedy_tokens(kind: str, cached: bool, save_model: Save) -> None:
    folder = save_model(kind)
    theirs, ours = reference(folder, torch.float64), load_model(folder, torch.float64)
    count = 20 if cached else 8  # without a cache every token costs a whole forward
    for length in (1, 3, 4, 9):
        prompt = torch.randint(5, 512, (length,))
        out = theirs.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            use_cache=cached,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out[0, length:].tolist() == greedy(ours, prompt, count)


@needs_grouped_norm
@torch.no_grad()
def test_left_padding_there_is_no_padding_here(save_model: Save) -> None:
    folder = save_model("hybrid")
    theirs, ours = reference(folder, torch.float64), load_model(folder, torch.float64)
    long, short = torch.randint(0, 512, (12,)), torch.randint(0, 512, (7,))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    tokens = torch.stack((long, torch.cat((torch.zeros(5, dtype=torch.long), short))))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = theirs(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    packed = ours.model.logits(ours.model(torch.cat((long, short)), Ragged(torch.tensor([12, 7]))))
    want = torch.cat((out[0], out[1, 5:]))
    assert float((packed - want).abs().max()) < RELATIVE * float(want.abs().max())


@pytest.mark.parametrize("kind", ["teacher", pytest.param("hybrid", marks=needs_grouped_norm)])
@torch.no_grad()
def test_what_transformers_saves_comes_back(kind: str, save_model: Save, tmp_path: Path) -> None:
    folder = save_model(kind)
    theirs = reference(folder, torch.float32)
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (again / name).write_bytes((folder / name).read_bytes())
    first, second = load_model(folder), load_model(again)
    assert first.spec == second.spec
    weights = second.model.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in first.model.state_dict().items())
