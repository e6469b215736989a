from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from thinkfast.errors import ModelError, OutputError
from thinkfast.models.checkpoint import UnfoldableError, from_stock, save_checkpoint, to_stock
from thinkfast.models.loading import ASSETS, load_model
from thinkfast.models.ragged import Ragged

KINDS = ["teacher", "hybrid", "pure"]


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"qkv_bias": True}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_stock_names_map_back_bit_for_bit(
    kind: str, group: int, changes: dict[str, Any], make_spec: Any, make_model: Any
) -> None:
    model = make_model(make_spec(kind, group, **changes))
    ours = dict(model.state_dict())
    back = from_stock(to_stock(ours, model.spec), model.spec)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], t) for name, t in ours.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same_bit_for_bit(
    kind: str, group: int, dtype: torch.dtype, make_spec: Any, make_model: Any, tmp_path: Path
) -> None:
    model = make_model(make_spec(kind, group, vocab_size=512), dtype=dtype)
    loaded = load_model(save_checkpoint(model, ASSETS / "tiny", tmp_path / "model", dtype), dtype)
    assert loaded.spec == model.spec  # compact again, GQA student included
    theirs = dict(loaded.model.state_dict())
    assert theirs.keys() == model.state_dict().keys()
    for name, t in model.state_dict().items():
        assert theirs[name].dtype == dtype
        assert torch.equal(theirs[name], t), name
    tokens, ragged = torch.arange(9), Ragged(torch.tensor([9]))
    assert torch.equal(loaded.model(tokens, ragged), model(tokens, ragged))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_saving_in_bf16_rounds_once(make_spec: Any, make_model: Any, tmp_path: Path) -> None:
    model = make_model(make_spec("hybrid", 2, vocab_size=512), dtype=torch.float32)
    loaded = load_model(save_checkpoint(model, ASSETS / "tiny", tmp_path / "m", torch.bfloat16))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, t in loaded.model.state_dict().items():
        assert torch.equal(t, model.state_dict()[name].bfloat16().float())


def test_exported_rows_repeat_x_and_b_per_query_group(make_spec: Any, make_model: Any) -> None:
    # in_proj split order is z, x, B, C, dt (FACTS.md, section 5): each part is checked where stock expects it.
    spec = make_spec("pure", 3)
    model = make_model(spec)
    stock = to_stock(dict(model.state_dict()), spec)["model.layers.0.mamba.in_proj.weight"]
    h, p, n, k = spec.n_heads, spec.head_dim, spec.d_state, spec.n_kv_heads
    z, x, b, c, dt = stock.split([h * p, h * p, h * n, h * n, h])
    ours = model.blocks[0].mixer.in_proj.weight.split([h * p, k * p, k * n, h * n, h])
    for head in range(h):
        assert torch.equal(x.view(h, p, -1)[head], ours[1].view(k, p, -1)[head // 3])
        assert torch.equal(b.view(h, n, -1)[head], ours[2].view(k, n, -1)[head // 3])
    assert torch.equal(z, ours[0])
    assert torch.equal(c, ours[3])
    assert torch.equal(dt, ours[4])


def test_weights_that_differ_within_a_group_load_wide(saved: Callable[..., Path]) -> None:
    folder = saved("hybrid", 2)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.2.mamba.in_proj.weight"
    tensors[name][48] += 1.0  # first row of x, of one head of its group
    before = load_model(folder)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UnfoldableError):
        from_stock(tensors, before.spec)
    loaded = load_model(folder)
    assert (before.spec.ssm_kv_heads, loaded.spec.ssm_kv_heads) == (3, 6)
    again = to_stock(dict(loaded.model.state_dict()), loaded.spec)
    assert all(torch.equal(again[key], t) for key, t in tensors.items())


def test_compact_and_wide_forms_compute_the_same(make_spec: Any, make_model: Any) -> None:
    from dataclasses import replace

    from thinkfast.models.decoder import Decoder

    spec = make_spec("hybrid", 2)
    model = make_model(spec)
    wide = Decoder(replace(spec, ssm_kv_heads=spec.n_heads)).double()
    wide.load_state_dict(from_stock(to_stock(dict(model.state_dict()), spec), wide.spec))
    tokens, ragged = torch.randint(0, 50, (80,)), Ragged(torch.tensor([70, 10]))
    # fp64 of order 1: the two differ in the order of sums only.
    torch.testing.assert_close(wide(tokens, ragged), model(tokens, ragged), rtol=0, atol=1e-10)


def test_tokenizer_and_special_tokens_travel_with_the_weights(saved: Callable[..., Path]) -> None:
    folder = saved("pure")
    tokenizer = load_model(folder).tokenizer
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] in tokenizer.eos_ids
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {p.name for p in folder.iterdir()}


def test_a_tied_head_may_be_stored_twice_but_not_differ(saved: Callable[..., Path]) -> None:
    path = saved("teacher") / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    load_model(path.parent)
    tensors["lm_head.weight"][3, 3] += 1e-3
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_model(path.parent)


def test_saving_over_another_model_never_mixes_the_two(
    make_spec: Any, make_model: Any, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("teacher", 2)
    model = make_model(make_spec("pure", 2, vocab_size=512), dtype=torch.float32)
    monkeypatch.setattr("thinkfast.models.checkpoint.to_stock", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # stopped between the config and the weights
        save_checkpoint(model, ASSETS / "tiny", folder)
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(folder)


def test_what_cannot_be_saved_leaves_nothing_behind(make_spec: Any, make_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="qk_norm"):
        save_checkpoint(make_model(make_spec(qk_norm=True)), ASSETS / "tiny", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_unwritable_place_is_named(make_spec: Any, make_model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        save_checkpoint(make_model(make_spec()), ASSETS / "tiny", tmp_path / "file" / "m")
