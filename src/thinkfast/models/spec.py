"""ModelSpec: the sizes that define a teacher or a student, and what they cost per sequence.

One spec describes both families: a layer is ``"attention"`` or ``"mamba"``, so a teacher, a hybrid and a pure
student differ in data (``layer_types``), not in class.

Usage: ``spec.as_student(keep=(1,), d_state=32).state_bytes(itemsize=4)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thinkfast.errors import ModelError

LAYER_KINDS = ("attention", "mamba")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama-3's frequency scaling (arXiv 2407.21783, section 3.4.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of one decoder. Widths in channels; ``layer_types`` has one entry a layer.

    A Mamba layer has ``n_heads`` heads of ``head_dim`` channels and ``d_state`` states a head; its x and B are kept
    compact, at ``ssm_kv_heads`` heads, and shared by the query group (DESIGN.md, section 3).
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    layer_types: tuple[str, ...]
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    d_state: int = 0
    d_conv: int = 4
    ssm_kv_heads: int = 0
    ssm_bias: bool = False
    max_positions: int = 2048
    family: str = "llama"

    def __post_init__(self) -> None:
        if bad := [kind for kind in self.layer_types if kind not in LAYER_KINDS]:
            raise ModelError(f"unknown layer kind {bad[0]!r}", remedy=f"use one of {', '.join(LAYER_KINDS)}")
        for name in ("vocab_size", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "d_conv", "max_positions"):
            if getattr(self, name) <= 0:
                raise ModelError(f"{name} is {getattr(self, name)}", remedy=f"{name} must be at least 1")
        if not self.layer_types:
            raise ModelError("the model has no layers", remedy="give at least one entry in layer_types")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads",
                remedy="n_heads must be a multiple of n_kv_heads",
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}", remedy="rotary positions need an even head_dim")
        if self.is_student:
            if self.d_conv < 2:
                raise ModelError(f"d_conv is {self.d_conv}", remedy="a Mamba layer convolves at least 2 tokens")
            if self.d_state <= 0 or self.ssm_kv_heads <= 0:
                raise ModelError("a Mamba layer needs d_state and ssm_kv_heads", remedy="use ModelSpec.as_student")
            if self.n_heads % self.ssm_kv_heads:
                raise ModelError("n_heads is no multiple of ssm_kv_heads", remedy="use n_heads or n_kv_heads")

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layer_types)

    @property
    def is_student(self) -> bool:
        """Whether any layer carries an SSM state."""
        return "mamba" in self.layer_types

    @property
    def n_attention(self) -> int:
        """Number of attention layers."""
        return self.layer_types.count("attention")

    @property
    def group(self) -> int:
        """Query heads per key-value head in attention layers."""
        return self.n_heads // self.n_kv_heads

    @property
    def ssm_group(self) -> int:
        """Heads that share one x and B in Mamba layers."""
        return self.n_heads // self.ssm_kv_heads

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: x and B at KV width, C at full width."""
        return self.ssm_kv_heads * (self.head_dim + self.d_state) + self.n_heads * self.d_state

    @property
    def in_proj_rows(self) -> int:
        """Rows of a Mamba layer's input projection: z, x, B, C, dt."""
        return self.n_heads * self.head_dim + self.conv_channels + self.n_heads

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """KV cache bytes that one token of one sequence adds over all attention layers."""
        return self.n_attention * 2 * self.n_kv_heads * self.head_dim * itemsize

    def state_bytes(self, itemsize: int) -> int:
        """SSM and convolution state bytes of one sequence over all Mamba layers."""
        mamba = self.n_layers - self.n_attention
        ssm = self.n_heads * self.head_dim * self.d_state
        return mamba * (ssm + (self.d_conv - 1) * self.conv_channels) * itemsize if mamba else 0

    @property
    def n_params(self) -> int:
        """Parameters, a tied embedding counted once."""
        inner, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        mlp = 3 * self.d_model * self.d_ff + 2 * self.d_model
        attention = self.d_model * (2 * inner + 2 * kv)
        attention += (inner + 2 * kv if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        total = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2) + self.d_model
        total += self.n_layers * mlp + self.n_attention * attention
        if mamba := self.n_layers - self.n_attention:
            mixer = self.d_model * (self.in_proj_rows + inner) + self.conv_channels * (self.d_conv + 1)
            mixer += 3 * self.n_heads + inner + (self.in_proj_rows + self.d_model if self.ssm_bias else 0)
            total += mamba * mixer
        return total

    def as_student(self, keep: tuple[int, ...], d_state: int | None = None) -> ModelSpec:
        """The spec of a student that keeps attention in the layers ``keep`` and has Mamba in all others.

        Errors: ModelError where ``keep`` names a layer that does not exist or leaves nothing to replace.
        """
        if bad := [i for i in keep if not 0 <= i < self.n_layers]:
            raise ModelError(f"layer {bad[0]} does not exist", remedy=f"keep layers 0 to {self.n_layers - 1}")
        kinds = tuple("attention" if i in set(keep) else "mamba" for i in range(self.n_layers))
        if "mamba" not in kinds:
            raise ModelError("every layer is kept, so there is no student", remedy="keep fewer layers")
        return replace(
            self,
            layer_types=kinds,
            d_state=self.head_dim if d_state is None else d_state,
            ssm_kv_heads=self.n_kv_heads,
            ssm_bias=self.qkv_bias,
            qkv_bias=self.qkv_bias and "attention" in kinds,
            family="granitemoehybrid",
        )
