"""Small random models in fp64, where a wrong formula stands out from rounding, and a cache that is plainly right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkfast.models.attention import KVState
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, LayerState, StepCache
from thinkfast.models.loading import ASSETS
from thinkfast.models.mixers import SSMState
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec

# pytest's importlib mode puts no folder on the path, and the tests below share gguf_files.py.
sys.path.append(str(Path(__file__).parent))

MakeSpec = Callable[..., ModelSpec]
MakeModel = Callable[..., Decoder]
MakeCaches = Callable[[Sequence[LayerState], Ragged], list[StepCache]]


@pytest.fixture
def make_spec() -> MakeSpec:
    """make_spec("teacher" | "hybrid" | "pure", group, **changes): 3 layers of 6 heads x 8 at d_state 8."""

    def make(kind: str = "teacher", group: int = 1, d_state: int = 8, **changes: object) -> ModelSpec:
        sizes: dict[str, object] = {"vocab_size": 50, "d_model": 48, "n_heads": 6, "head_dim": 8, "d_ff": 40}
        sizes |= {"n_kv_heads": 6 // group, "layer_types": ("attention",) * 3}
        spec = ModelSpec(**(sizes | changes))  # type: ignore[arg-type]
        return spec if kind == "teacher" else spec.as_student((1,) if kind == "hybrid" else (), d_state)

    return make


@pytest.fixture
def make_model() -> MakeModel:
    """make_model(spec, seed, dtype): every parameter random, norms, decays, skips and biases included."""

    def make(spec: ModelSpec, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
        model = Decoder(spec).to(dtype).requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.dim() < 2:
                p.copy_(p + 0.5 * noise)
            else:
                p.copy_(noise * (1.0 if "embed" in name or "conv" in name else 1.5 * p.shape[1] ** -0.5))
        return model

    return make


class GrowingKV:
    """An AttentionCache that keeps each row's context in a list: slow and obvious."""

    def __init__(self, state: KVState, ragged: Ragged) -> None:
        lens = ragged.lens.tolist()
        self.rows = list(zip(state.k.split(lens), state.v.split(lens), strict=True))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = []
        for i, (keys, values) in enumerate(self.rows):
            keys, values = torch.cat((keys, k[i : i + 1])), torch.cat((values, v[i : i + 1]))
            self.rows[i] = keys, values
            per_head = (q[i][:, None], keys.transpose(0, 1), values.transpose(0, 1))
            out.append(F.scaled_dot_product_attention(*per_head, scale=scale, enable_gqa=True)[:, 0])
        return torch.stack(out)


@pytest.fixture
def make_caches() -> MakeCaches:
    """make_caches(states of a prefill, its ragged): one step cache a layer."""

    def make(states: Sequence[LayerState], ragged: Ragged) -> list[StepCache]:
        return [
            SSMState(s.conv.clone(), s.ssm.clone()) if isinstance(s, SSMState) else GrowingKV(s, ragged) for s in states
        ]

    return make


@pytest.fixture
def saved(make_spec: MakeSpec, make_model: MakeModel, tmp_path: Path) -> Callable[..., Path]:
    """saved("hybrid", 2): a checkpoint folder of a small random fp32 model with tiny's tokenizer."""

    def save(kind: str = "teacher", group: int = 2, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
        model = make_model(make_spec(kind, group, **({"vocab_size": 512} | changes)), dtype=dtype)
        return save_checkpoint(model, ASSETS / "tiny", tmp_path / f"{kind}-{group}", dtype)

    return save


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for the test; the folder that holds the models."""
    monkeypatch.setenv("THINKFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"
