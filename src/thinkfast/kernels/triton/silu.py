"""SiLU by the two approximations that a GPU has in hardware.

``tl.sigmoid`` guards both of its steps against ends of the range that cannot matter here: twelve instructions where
four do, and a product of gate and up has 4 million of them a layer at 512 rows (half a percent of a step, two at 256
rows, docs/lab.md). Both are right to 2 units in the last place of fp32; what overflows becomes inf, whose reciprocal is
the 0 that is wanted.

Usage: ``y = silu(x)``. The interpreter, which knows no instructions, takes ``x / (1 + exp(-x))``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkfast.kernels.available import interpreting

_COMPILED = tl.constexpr(not interpreting())


@triton.jit
def silu(x) -> tl.tensor:
    """x / (1 + exp(-x)) of x in fp32."""
    if _COMPILED:
        return x * tl.inline_asm_elementwise(
            """{
            .reg .f32 t;
            mul.f32 t, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 t, t;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 $0, t;
            }""",
            "=r,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        # Not tl.sigmoid: a function of Triton's own, each call of which takes the interpreter half a millisecond.
        return x / (1.0 + tl.exp(-x))
