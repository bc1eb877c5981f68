"""Device functions shared by the kernels: tile indices and elementary functions.

``PTX`` is true where the kernels may use NVIDIA's approximate instructions. It is
false in Triton's interpreter, which runs no inline assembly, and on AMD.
"""

import triton
import triton.language as tl


@triton.jit
def tile(
    rows,
    cols,
    col_tiles,
    SAMPLES: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """(row, sample_row, col, cols, valid, mask) of this program's tile.

    Rows are int64, so that offsets past 2**31 elements hold. Columns come in vectors and are
    returned in elements. ``valid`` says which rows exist, ``mask`` which elements. With ``SAMPLES``
    the grid's second dimension counts the samples, and ``sample_row`` is the row in [samples *
    rows, cols].
    """
    cols *= VEC
    row = (tl.program_id(0) // col_tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    sample_row = row
    if SAMPLES:
        sample_row = row + tl.program_id(1).to(tl.int64) * rows
    valid = row < rows
    col = (tl.program_id(0) % col_tiles) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    return row, sample_row, col, cols, valid, valid[:, None] & (col < cols)[None, :]


@triton.jit
def load_tile(ptr, row, col, stride, mask, ACC: tl.constexpr):
    """The tile of a [rows, cols] tensor whose columns are contiguous, as ACC."""
    return tl.load(ptr + (row * stride)[:, None] + col[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(ptr, row, col, stride, mask, value):
    """Write a tile in the dtype of its tensor."""
    offset = (row * stride)[:, None] + col[None, :]
    tl.store(ptr + offset, narrowed(value, ptr), mask=mask)


@triton.jit
def narrowed(value, ptr):
    """The value in the pointer's dtype; the interpreter cannot make bfloat16 of float64."""
    if ptr.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(ptr.dtype.element_ty)


@triton.jit
def store_rows(ptr, value, row, valid, rows, col_tiles):
    """Write one number per row of the tile, into partial sums [col_tiles, rows]."""
    offset = (tl.program_id(0) % col_tiles).to(tl.int64) * rows + row
    tl.store(ptr + offset, value, mask=valid)


@triton.jit
def store_tile_sum(ptr, value, valid):
    """Write the sum over the rows of the tile, into partial sums [programs]."""
    program = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(ptr + program, tl.sum(tl.where(valid, value, 0.0), axis=0))


@triton.jit
def load_rows(ptr, row, valid, stride, ACC: tl.constexpr):
    """Load one number per row of the tile, as a column [BLOCK_ROWS, 1] of ACC."""
    return tl.load(ptr + row * stride, mask=valid, other=0.0).to(ACC)[:, None]


@triton.jit
def exp2_approx(x):
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def exp2(x, PTX: tl.constexpr):
    if PTX and x.dtype == tl.float32:
        return exp2_approx(x)
    else:
        return tl.exp2(x)


@triton.jit
def exp_scaled(x, SCALE: tl.constexpr, PTX: tl.constexpr):
    """exp(SCALE * x) to about one ulp at any finite x; SCALE is a power of two.

    ex2(x * log2(e)) alone is off by |x| ulp, 40 at logvar = 80, because the product is rounded. An
    FMA gives that rounding error exactly, and it is put back as a factor. At x = +-inf the error is
    NaN, which ``minimum`` drops; a NaN in x still reaches ex2.
    """
    if PTX and x.dtype == tl.float32:
        LOG2E: tl.constexpr = SCALE * 1.44269502162933349609375
        LOG2E_TAIL: tl.constexpr = SCALE * 1.9259629911266174e-08
        product = x * LOG2E
        error = tl.fma(x, LOG2E_TAIL, tl.fma(x, LOG2E, -product))
        return exp2_approx(product) * tl.fma(tl.minimum(error, 1.0), 0.6931471805599453, 1.0)
    else:
        return tl.exp(x * SCALE)


@triton.jit
def expm1_minus_x(x, exp_x):
    """exp(x) - 1 - x from x and exp(x): never negative, and accurate near zero.

    Near zero the difference cancels and a polynomial takes over: in float32 a Chebyshev
    fit with relative error 3e-8, in float64 the Taylor series.
    """
    if x.dtype == tl.float64:
        series = 1.0 + x * (1.0 / 19)
        for i in tl.static_range(16):
            series = 1.0 + series * x * (1.0 / (18 - i))
        series = 0.5 * series
    else:
        series = 0.00019944874 * x + 0.0013982186
        series = series * x + 0.0083332361
        series = series * x + 0.041665791
        series = series * x + 0.16666667
        series = series * x + 0.5
    return tl.where(tl.abs(x) < 0.5, x * x * series, (exp_x - 1.0) - x)


@triton.jit
def expm1(x, exp_x):
    """exp(x) - 1 from x and exp(x), accurate near zero."""
    return tl.where(tl.abs(x) < 0.5, x + expm1_minus_x(x, exp_x), exp_x - 1.0)


@triton.jit
def divide(a, b, PTX: tl.constexpr):
    """a / b for moderate b, without the rescaling that division spends on extreme ones."""
    if PTX and b.dtype == tl.float32:
        return a * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return a / b


@triton.jit
def square(x):
    """Return (x², half its derivative)."""
    return x * x, x


@triton.jit
def twice_atanh(s):
    """log((1 + s) / (1 - s)) for |s| <= 1/3: a Chebyshev fit with relative error 4e-9."""
    q = s * s
    series = 0.14078879 * q + 0.13982579
    series = series * q + 0.20012298
    series = series * q + 0.33333161
    series = series * q + 1.0
    return 2.0 * s * series


@triton.jit
def log1p_unit(x, PTX: tl.constexpr):
    """log(1 + x) for 0 <= x <= 1, accurate near zero."""
    if x.dtype == tl.float64:
        # Goldberg's identity: log(u) / (u - 1) forgives the rounding of u = 1 + x.
        u = 1.0 + x
        return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))
    return twice_atanh(divide(x, 2.0 + x, PTX))


@triton.jit
def log1m_half(x, PTX: tl.constexpr):
    """log(1 - x) for 0 <= x <= 1/2, accurate near zero."""
    if x.dtype == tl.float64:
        # Subtract what rounding added to u = 1 - x.
        u = 1.0 - x
        return tl.log(u) - ((u - 1.0) + x)
    return -twice_atanh(divide(x, 2.0 - x, PTX))


@triton.jit
def in_units_of_prior(
    mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col, mu_stride, logvar_stride, mask,
    ACC: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """(distance of the means, log of the ratio of variances, 1 / prior std); no prior is N(0, 1).

    The third is the root of the precision, whose square may overflow where products with it do not.
    """
    if prior_mu_ptr is not None:
        prior_mu = load_tile(prior_mu_ptr, row, col, mu_stride, mask, ACC)
        prior_logvar = load_tile(prior_logvar_ptr, row, col, logvar_stride, mask, ACC)
        root = exp_scaled(prior_logvar, -0.5, PTX)
        return (mu - prior_mu) * root, logvar - prior_logvar, root
    else:
        return mu, logvar, 1.0


@triton.jit
def kl_gradients(dkl, distance, logvar_ratio, variance, root):
    """(dmu, dlogvar) of the KL, from what ``in_units_of_prior`` returns.

    ``variance`` is that of q over that of the prior. The gradients of the prior are -dmu and
    -dlogvar - dkl distance^2 / 2.
    """
    return dkl * (distance * root), 0.5 * dkl * expm1(logvar_ratio, variance)
