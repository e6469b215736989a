from __future__ import annotations

import pytest
import torch

from thinkfast.errors import ModelError
from thinkfast.models.loading import load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.shapes import SHAPES, random_decoder, random_spec

# Of the published models' cards; a tied embedding counts once.
PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_published_size(shape: str) -> None:
    assert random_spec(f"random:{shape}").n_params == PARAMETERS[shape]


def test_students_keep_layers_evenly_and_the_last() -> None:
    spec = random_spec("random:llama-3.2-1b/hybrid4-d16")
    assert [i for i, kind in enumerate(spec.layer_types) if kind == "attention"] == [3, 7, 11, 15]
    assert spec.d_state == 16
    assert random_spec("random:llama-3.2-1b/pure-d64").n_attention == 0


@pytest.mark.parametrize(
    "name",
    ["random:llama-9", "random:llama-3.2-1b/hybrid", "random:llama-3.2-1b/pure-d0", "random:llama-3.2-1b/hybrid16-d16"],
)
def test_other_names_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ModelError) as found:
        random_spec(name)
    assert found.value.remedy


@pytest.mark.parametrize("variant", ["", "/pure-d16", "/hybrid3-d16"])
def test_random_models_run_and_stay_finite(variant: str) -> None:
    spec = random_spec(f"random:smollm2-135m{variant}")
    model = random_decoder(spec, torch.float32, "cpu")
    with torch.inference_mode():
        hidden = model(torch.randint(0, spec.vocab_size, (40,)), Ragged(torch.tensor([25, 15])))
        assert model.logits(hidden[-1:]).isfinite().all()


def test_they_load_by_name() -> None:
    loaded = load_model("random:smollm2-135m", torch.bfloat16)
    assert loaded.model.embed.weight.dtype == torch.bfloat16
    assert loaded.tokenizer.decode([70_000]) == ""
