"""Against transformers: it agrees, a changed weight is seen, and its wrong norm is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from thinkfast.errors import ParityError
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.serve.parity.conditioning import Noise
from thinkfast.serve.parity.hf import REMEDY, against_transformers, require_grouped_norm
from thinkfast.serve.parity.sample import draw_sample

granite = pytest.importorskip("transformers.models.granitemoehybrid.modeling_granitemoehybrid")
PROMPTS = [[7, 9, 11, 200, 31, 6], [5, 6, 7]]


@pytest.mark.usefixtures("grouped_norm")
@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_it_agrees(kind: str, make: Any) -> None:
    loaded = make(kind)
    logits, tokens, cached = against_transformers(
        loaded, loaded.path, draw_sample(loaded, PROMPTS, 8), 1, Noise(loaded)
    )
    assert (logits.status, tokens.status) == ("passed", "passed"), (logits, tokens)
    # On some machines both add up in the same order, and nothing differs: a thousandth of one weight then does.
    weight = loaded.model.norm.weight
    kept = weight.clone()
    weight[3] *= 1.001
    other = against_transformers(loaded, loaded.path, draw_sample(loaded, PROMPTS, 8), 1, Noise(loaded))[0]
    weight.copy_(kept)
    assert logits.value is not None
    assert other.value is not None
    assert 0 <= logits.value < other.value
    assert "25 positions of 2 sequences" in logits.detail
    assert logits.against.startswith("transformers 5.")
    assert cached.status == ("not run" if kind == "pure" else "passed"), cached
    assert ("use_cache=False" in cached.detail) == (kind == "pure")


@pytest.mark.usefixtures("grouped_norm")
def test_a_changed_weight_is_seen(make: Any, tmp_path: Any) -> None:
    loaded = make("hybrid")
    chains = draw_sample(loaded, PROMPTS, 8)
    folder = save_checkpoint(loaded.model, loaded.tokenizer.path, tmp_path / "other")
    loaded.model.blocks[0].mixer.norm_weight[3] += 0.5
    logits, _, _ = against_transformers(loaded, folder, chains, 1, Noise(loaded))
    loaded.model.blocks[0].mixer.norm_weight[3] -= 0.5
    assert logits.status == "broken"


@pytest.mark.usefixtures("grouped_norm")
def test_weights_it_does_not_use_are_an_error(make: Any, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    loaded = make("hybrid")
    folder = save_checkpoint(loaded.model, loaded.tokenizer.path, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mamba.extra"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match=r"did not use every weight: model.layers.0.mamba.extra"):
        against_transformers(loaded, folder, draw_sample(loaded, PROMPTS, 4), 1, Noise(loaded))


@pytest.mark.usefixtures("grouped_norm")
def test_a_norm_over_all_heads_is_refused_with_the_remedy(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make("hybrid")
    require_grouped_norm(loaded.spec)

    def together(self: Any, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """As 5.17 to 5.22 have it."""
        x = x if gate is None else x * torch.nn.functional.silu(gate)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(granite.GraniteMoeHybridRMSNormGated, "forward", together)
    with pytest.raises(ParityError, match="norms all heads") as caught:
        against_transformers(loaded, loaded.path, draw_sample(loaded, PROMPTS, 4), 1, Noise(loaded))
    assert caught.value.remedy == REMEDY == "pip install 'transformers>=5.23'"
    teacher = make("teacher")  # has no such norm, and is compared all the same
    assert (
        against_transformers(teacher, teacher.path, draw_sample(teacher, PROMPTS, 4), 1, Noise(teacher))[0].status
        == "passed"
    )
