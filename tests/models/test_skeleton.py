from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from thinkfast.models.decoder import Decoder
from thinkfast.models.skeleton import skeleton


@pytest.mark.parametrize("kind", ["teacher", "hybrid", "pure"])
def test_names_and_shapes_without_memory(kind: str, make_spec: Any) -> None:
    spec = make_spec(kind, 2, qkv_bias=kind == "pure")
    bare, whole = skeleton(spec), Decoder(spec)
    assert {n: p.shape for n, p in bare.state_dict().items()} == {n: p.shape for n, p in whole.state_dict().items()}
    assert all(p.is_meta for n, p in bare.named_parameters() if p.dim() > 1)
    assert torch.equal(bare.frequencies, whole.frequencies)


def test_torchs_compiler_stays_out() -> None:
    """It takes seconds to import, which is most of what loading a model may take."""
    code = (
        "import sys; from thinkfast.models.loading import load_model; load_model('tiny');"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
