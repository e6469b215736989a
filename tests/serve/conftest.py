"""Small random students and teachers as checkpoint folders, with the embedded teacher's tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers

from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder
from thinkfast.models.loading import ASSETS, Loaded, load_model
from thinkfast.models.spec import ModelSpec

Make = Callable[..., Loaded]
TINY = ASSETS / "tiny"


def random_model(spec: ModelSpec, seed: int = 0) -> Decoder:
    """Every parameter random, strong enough that a wrong group, order or decay shows at once."""
    model = Decoder(spec).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() < 2:
            # Decays of a few dozen tokens, so that a state matters for a while.
            p.copy_(0.3 * noise - 3 if "A_log" in name else p + 0.2 * noise)
        else:
            p.copy_(noise * (0.7 if "conv" in name or "embed" in name else p.shape[1] ** -0.5))
    return model


@pytest.fixture
def grouped_norm() -> None:
    """Fail where the installed transformers computes students wrongly: the dev extra asks for one that does not."""
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 23):
        pytest.fail(f"transformers {transformers.__version__} norms all heads together; pip install -e '.[dev]'")


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make("teacher" | "hybrid" | "pure", dtype, **spec changes): loaded from a folder it was saved to, in fp32."""

    def build(kind: str = "hybrid", dtype: torch.dtype = torch.float32, **changes: object) -> Loaded:
        sizes: dict[str, object] = {"vocab_size": 512, "d_model": 32, "n_heads": 4, "head_dim": 8, "d_ff": 48}
        sizes |= {"n_kv_heads": 2, "layer_types": ("attention",) * 3, "tie_embeddings": False}
        spec = ModelSpec(**(sizes | changes))  # type: ignore[arg-type]
        if kind != "teacher":
            spec = spec.as_student((1,) if kind == "hybrid" else (), 4)
        folder = tmp_path_factory.mktemp("model") / kind
        return load_model(save_checkpoint(random_model(spec), TINY, folder, dtype))

    return build
