"""The noise stream: Philox4x32-10 and Box-Muller, four normals per call.

The counter is the logical position (column // 4, row, sample) and the key a 64-bit seed. A normal
depends on nothing else: not on tiles, strides or dtypes, nor on which kernel draws it.
``fused_elbo.estimators.noise`` is the same stream in PyTorch.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Ten rounds. The widening product is one instruction where mulhi and mul are two."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def sqrt_minus_2_log(u, PTX: tl.constexpr):
    if PTX:
        log2_u = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        log2_u = tl.log2(u)
    # lg2.approx is off by up to 2**-22 near u = 1, and so may have the wrong sign there.
    return tl.sqrt(tl.maximum(-1.3862943611198906 * log2_u, 0.0))


@triton.jit
def cos_sin(angle, PTX: tl.constexpr):
    """(cos, sin). tl.cos and tl.sin would bring libdevice's slow path and its stack frame."""
    if PTX:
        return tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $2; sin.approx.ftz.f32 $1, $2;",
            "=f,=f,f",
            [angle],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        return tl.cos(angle), tl.sin(angle)


@triton.jit
def box_muller(a, b, PTX: tl.constexpr):
    """Two normals from two uint32 words: u = (a + 1) / 2**32 > 0 and an angle in [-pi, pi)."""
    u = a.to(tl.float32) * 2.3283064365386963e-10 + 2.3283064365386963e-10
    angle = b.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    cosine, sine = cos_sin(angle, PTX)
    radius = sqrt_minus_2_log(u, PTX)
    return radius * cosine, radius * sine


@triton.jit
def normal_tile(
    seed,
    row,
    col_tile,
    sample,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    PTX: tl.constexpr,
):
    """Float32 normals [BLOCK_ROWS, BLOCK_COLS] for these rows and this tile of columns."""
    group = col_tile * (BLOCK_COLS // 4) + tl.arange(0, BLOCK_COLS // 4)
    zero = tl.zeros((BLOCK_ROWS, BLOCK_COLS // 4), tl.uint32)
    c0 = zero + group.to(tl.uint32)[None, :]
    c1 = zero + row.to(tl.uint32)[:, None]
    c2 = zero + (row >> 32).to(tl.uint32)[:, None]
    c3 = zero + tl.full((), sample, tl.uint32)
    a, b, c, d = philox(c0, c1, c2, c3, seed.to(tl.uint64, bitcast=True))
    n0, n1 = box_muller(a, b, PTX)
    n2, n3 = box_muller(c, d, PTX)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK_ROWS, BLOCK_COLS))
