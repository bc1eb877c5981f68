"""Negative binomial negative log-likelihood, row sums, of log means m and log dispersions a.

With the inverse dispersion theta = exp a, mu = exp m and s = m - a it is theta softplus(s) +
x softplus(-s) - log(Gamma(x + theta) / (Gamma(theta) x!)). A zero, which most counts are, has the
first term alone. Of whole counts up to FEW_COUNTS the last one is that of a product; all others
take Loader's saddle point (``counts``). Their turn comes after that of the zeros, gathered.

Zero-inflated it is the nll of pi [x = 0] + (1 - pi) NB(x), with pi = sigmoid(zero_logits).

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row.
"""

import math

import numpy as np
import torch
from numba import types
from numba.extending import overload

from ..rows import accumulator, empty_like_rows, padded
from .compiler import INTERNAL, LANES, elementwise, helper, inline, jit, kernel
from .counts import (
    HALF_LOG_2PI,
    count_constant,
    deviance,
    log1p,
    stirling_error,
    stirling_slope,
)
from .device import LOG1P, exp, exp_normal, expm1, fill, log, log1p_unit
from .launch import launch, samples_of
from .memory import (
    TILE,
    in_place,
    load,
    operand,
    present,
    rows_of_tile,
    sample_of,
    store,
    target,
    tiles,
    workspace,
)
from .pairs import whole_blocks
from .sums import add_rows, pieces_of_sums

FEW_COUNTS = 8  # whole counts up to here: a product


def bounded(value):
    """value, so that exp of it and of its negative are normal numbers; NaN stays."""
    raise NotImplementedError


@overload(bounded)
def _(value):
    most = 80.0 if value == types.float32 else 700.0

    def within(value):
        value = type(value)(most) if value > type(value)(most) else value
        return type(value)(-most) if value < type(value)(-most) else value

    return within


def log1p_parts(q):
    """(log(1 + q), the same over q, and less q / (1 + q)), for 0 <= q <= 1, accurate near zero."""
    raise NotImplementedError


@overload(log1p_parts)
def _(q):
    return (lambda q: log1p_parts_32(q)) if q == types.float32 else (lambda q: log1p_parts_64(q))


@inline
def log1p_parts_32(q):
    series = LOG1P(q)
    one = np.float32(1.0)
    return q + q * q * series, one + q * series, q * q * (series + one / (one + q))


@inline
def log1p_parts_64(q):
    value = math.log1p(q)
    quotient = value / q if q > 0.0 else 1.0
    return value, quotient, q * q / (1.0 + q) - deviance(q, value)


@inline
def zero_terms(m, a):
    """(theta softplus(s), its slopes in m and a; mu, theta, log(1 + q), sigmoid(s), sigmoid(-s)).

    q is exp(-|s|), the ratio of mu and theta.
    """
    real = type(m)
    low = m < a
    mu, theta = exp(bounded(m) if m > real(0.0) else m), exp(bounded(a))
    q = (mu if mu < theta else theta) / (theta if mu < theta else mu)
    log1p, quotient, less = log1p_parts(q)
    larger = real(1.0) / (real(1.0) + q)
    less_likely = q * larger
    sigmoid, sigmoid_less = (less_likely if low else larger), (larger if low else less_likely)
    # Where mu is the smaller one, theta log(1 + q) is mu times a quotient without theta.
    softplus = (m - a) + log1p
    value = mu * quotient if low else theta * softplus
    dm = mu * larger if low else theta * larger
    da = theta * (less if low else softplus - larger)
    return value, dm, da, mu, theta, log1p, sigmoid, sigmoid_less


@inline
def inflated_zero(value, z):
    """(-log(pi + (1 - pi) exp(-value)), its slopes in value and in z), with pi = sigmoid(z)."""
    real = type(z)
    one = real(1.0)
    odds, odds_after = exp_normal(-abs(z)), exp_normal(-abs(z + value))
    inverse, inverse_after = one / (one + odds), one / (one + odds_after)
    genuine = odds * inverse if z > real(0.0) else inverse
    lost = -genuine * expm1(-value)  # the probability is one less this
    below = z + value < real(0.0)
    smaller = odds_after * inverse_after
    dvalue, after = (inverse_after if below else smaller), (smaller if below else inverse_after)
    near = lost < real(0.5)
    # Else z < 0, and it is value + softplus(z) - softplus(z + value).
    ratio = (lost if near else odds - odds_after) / (one - lost if near else one + odds_after)
    base = real(0.0) if near else (value if below else -z)
    return base + log1p(ratio), dvalue, -after * lost


@inline
def softplus_terms(z):
    """(softplus(z), sigmoid(z))."""
    real = type(z)
    odds = exp_normal(-abs(z))
    inverse = real(1.0) / (real(1.0) + odds)
    positive = z > real(0.0)
    return log1p_unit(odds) + (z if positive else real(0.0)), (
        inverse if positive else odds * inverse
    )


@elementwise
def zeros_nll(m, a, nll):
    for i in range(nll.size):
        nll[i] = zero_terms(m[i], a[i])[0]


@elementwise
def zeros_gradients(grad, m, a, dm, da):
    for i in range(dm.size):
        terms = zero_terms(m[i], a[i])
        dm[i] = grad[i] * terms[1]
        da[i] = grad[i] * terms[2]


@elementwise
def zeros(grad, m, a, nll, dm, da):
    for i in range(nll.size):
        terms = zero_terms(m[i], a[i])
        nll[i] = terms[0]
        dm[i] = grad[i] * terms[1]
        da[i] = grad[i] * terms[2]


@elementwise
def inflated_zeros_nll(m, a, z, nll):
    for i in range(nll.size):
        nll[i] = inflated_zero(zero_terms(m[i], a[i])[0], z[i])[0]


@elementwise
def inflated_zeros_gradients(grad, m, a, z, dm, da, dz):
    for i in range(dm.size):
        terms = zero_terms(m[i], a[i])
        _, dvalue, slope = inflated_zero(terms[0], z[i])
        factor = grad[i] * dvalue
        dm[i] = factor * terms[1]
        da[i] = factor * terms[2]
        dz[i] = grad[i] * slope


@elementwise
def inflated_zeros(grad, m, a, z, nll, dm, da, dz):
    for i in range(nll.size):
        terms = zero_terms(m[i], a[i])
        nll[i], dvalue, slope = inflated_zero(terms[0], z[i])
        factor = grad[i] * dvalue
        dm[i] = factor * terms[1]
        da[i] = factor * terms[2]
        dz[i] = grad[i] * slope


@elementwise
def few_counts(x, m, a, nll, dm, da):
    """Whole counts from 1 to FEW_COUNTS: Gamma(x + theta) / Gamma(theta) is a product.

    Its factors theta + k are divided by theta where that is above 1, so that nothing overflows and
    no x log(theta) is there to cancel; else the first one, theta, is left to ``a``.
    """
    real = nll.dtype.type
    one, zero = real(1.0), real(0.0)
    for i in range(nll.size):
        value, _, slope, mu, theta, log1p, sigmoid, sigmoid_less = zero_terms(m[i], a[i])
        large = theta > one
        inverse = one / theta
        first, step = (one if large else theta), (inverse if large else one)
        dfirst, dstep = (zero if large else theta), (inverse if large else zero)
        product, slope_of_product, factorial = one, zero, one
        for k in range(1, FEW_COUNTS):
            more = real(k) < x[i]
            factor = first + real(k) * step
            steeper = slope_of_product * factor + product * (dfirst + real(k) * dstep)
            slope_of_product = steeper if more else slope_of_product
            product = product * factor if more else product
            factorial = factorial * real(k + 1) if more else factorial
        inverse_product = one / product
        ratio = slope_of_product * inverse_product
        low = m[i] < a[i]
        of_m = x[i] if low else zero
        of_a = of_m - (x[i] if large else one)
        nll[i] = (
            value + x[i] * log1p + (of_a * a[i] - of_m * m[i]) + log(factorial * inverse_product)
        )
        dm[i] = (mu - x[i]) * sigmoid_less
        da[i] = slope + (ratio - x[i] * sigmoid if large else x[i] * sigmoid_less - one - ratio)


@elementwise
def many_counts(x, m, a, nll, dm, da):
    """Other counts, large or fractional: the sum of two deviances, neither of which cancels."""
    real = nll.dtype.type
    one, half = real(1.0), real(0.5)
    for i in range(nll.size):
        count = x[i] if x[i] > real(0.0) else real(np.nan)
        log_mu, log_theta = bounded(m[i]), bounded(a[i])
        mu, theta = exp(log_mu), exp(log_theta)
        n = theta + count
        inverse = one / (theta + mu)
        t, u = (count - mu) * inverse, n * inverse
        log_x, log_u, log_n = log(count), log(u), log(n)
        opposite, ratio = -theta * t / count, mu / count * u
        log_ratio = log(ratio) if ratio > real(1e-20) else log_u + (log_mu - log_x)
        of_theta = theta * deviance(t, log_u)
        value = of_theta + count * deviance(opposite, log_ratio) + count_constant(count, log_x)
        whole = half * log_n - real(HALF_LOG_2PI) if n >= one else log_n
        value += half * log1p(count / theta) if theta >= one else whole - log_theta
        value += stirling_error(theta, log_theta) - stirling_error(n, log_n)
        # Linear beyond the bounds.
        value += (theta if m[i] > real(0.0) else -count) * (m[i] - log_mu)
        nll[i] = value + (log_theta - a[i] if log_theta > a[i] else real(0.0))
        dm[i] = -theta * t
        slope = stirling_slope(theta, log_theta) - theta / n * stirling_slope(n, log_n)
        da[i] = of_theta + (slope - half * count / n)


@elementwise
def inflate(z, nll, dz):
    """The term that zero inflation adds at a count above zero."""
    for i in range(nll.size):
        more, dz[i] = softplus_terms(z[i])
        nll[i] += more


@jit(**INTERNAL)
def sort_counts(x, few, many):
    """(how many, how many): where in x the counts are that are not zero, few or other ones."""
    real = x.dtype.type
    found = 0
    for i in range(x.size):
        few[found] = i
        found += x[i] != real(0.0)
    n, rest = 0, 0
    for j in range(found):
        i = few[j]
        is_few = x[i] > real(0.0) and x[i] <= real(FEW_COUNTS) and x[i] == np.floor(x[i])
        few[n], many[rest] = i, i
        n += is_few
        rest += not is_few
    return n, rest


@helper
def fill_in(of_few, where, inflated, given, results, work):
    """The terms of the elements that ``where`` lists, gathered for a loop over them alone."""
    count = where.size
    if count == 0:
        return
    x, m, a, z, grad = given
    nll, dm, da, dz = results
    # Whole registers: what a loop leaves over, to be done one by one, may round otherwise, and how
    # many are gathered depends on the number of threads.
    size = whole_blocks(count, LANES)
    xs, ms, logs, values = work[0][:size], work[1][:size], work[2][:size], work[3][:size]
    slopes_m, slopes_a, zs = work[4][:size], work[5][:size], work[6][:size]
    for j in range(size):
        i = where[min(j, count - 1)]
        xs[j], ms[j], logs[j] = x[i], m[i], a[i]
    if of_few:
        few_counts(xs, ms, logs, values, slopes_m, slopes_a)
    else:
        many_counts(xs, ms, logs, values, slopes_m, slopes_a)
    if inflated:
        for j in range(size):
            zs[j] = z[where[min(j, count - 1)]]
        inflate(zs, values, xs)
        for j in range(count):
            i = where[j]
            dz[i] = grad[i] * xs[j]
    for j in range(count):
        i = where[j]
        nll[i] = values[j]
        dm[i] = grad[i] * slopes_m[j]
        da[i] = grad[i] * slopes_a[j]


@helper
def write_terms(wanted, inflated, few, many, given, results, work):
    """The nll of each element and its slopes times ``grad``, as far as they are ``wanted``.

    ``few`` and ``many`` list the counts that are not zero.
    """
    _, m, a, z, grad = given
    nll, dm, da, dz = results
    values, gradients = wanted
    if inflated:
        if values and gradients:
            inflated_zeros(grad, m, a, z, nll, dm, da, dz)
        elif values:
            inflated_zeros_nll(m, a, z, nll)
        else:
            inflated_zeros_gradients(grad, m, a, z, dm, da, dz)
    elif values and gradients:
        zeros(grad, m, a, nll, dm, da)
    elif values:
        zeros_nll(m, a, nll)
    else:
        zeros_gradients(grad, m, a, dm, da)
    fill_in(True, few, inflated, given, results, work)
    fill_in(False, many, inflated, given, results, work)


@elementwise
def add(values, result):
    for i in range(result.size):
        result[i] += values[i]


@helper
def add_columns(values, tile, operand, part):
    """Add the rows of a tile to one row of an operand, which has the buffers' dtype."""
    _, count, col, width = tile
    result = in_place(operand[0], part * operand[1] + col, width, values)
    for line in range(count):
        add(values[line * width : (line + 1) * width], result)


@kernel
def negative_binomial_nll_kernel(
    queue, step, rows, cols, scratch, samples, gradients, part_rows, log_theta_value, scale,
    log_mean_ptr, x_ptr, log_theta_ptr, zero_logits_ptr, dnll_ptr, nll_ptr, dlog_mean_ptr,
    dzero_logits_ptr, dlog_theta_ptr, row_dlog_theta_ptr, col_dlog_theta_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    few, many = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    nll_pieces, dlog_theta_pieces = pieces_of_sums(queue), pieces_of_sums(queue, samples * rows)
    inflated = present(zero_logits_ptr)
    fill(scratch[0], scale)
    fill(scratch[1], log_theta_value)
    for tile in tiles(queue, step, rows, cols):
        x = load(x_ptr, tile, scratch[2])
        n_few, n_many = sort_counts(x, few, many)
        grad, a, z = scratch[0][: x.size], scratch[1][: x.size], x
        for k in range(samples):
            here = sample_of(tile, k, rows)
            m = load(log_mean_ptr, here, scratch[4])
            if present(log_theta_ptr):
                a = load(log_theta_ptr, here, scratch[5])
            if inflated:
                z = load(zero_logits_ptr, here, scratch[6])
            if present(dnll_ptr):
                grad = load(dnll_ptr, here, scratch[7])
            dm, da = (
                target(dlog_mean_ptr, here, scratch[8]),
                target(dlog_theta_ptr, here, scratch[9]),
            )
            dz = target(dzero_logits_ptr, here, scratch[10])
            nll = scratch[3][: x.size]
            if nll_ptr[2] != 0:
                nll = target(nll_ptr, here, scratch[3])
            wanted, given, results = (
                (present(nll_ptr), gradients),
                (x, m, a, z, grad),
                (nll, dm, da, dz),
            )
            write_terms(wanted, inflated, few[:n_few], many[:n_many], given, results, scratch[11:])
            if present(nll_ptr) and nll_ptr[2] == 0:  # one number a row
                add_rows(nll, here, cols, 1.0, nll_pieces, nll_ptr)
            else:
                store(nll_ptr, here, nll)
            store(dlog_mean_ptr, here, dm)
            store(dlog_theta_ptr, here, da)
            store(dzero_logits_ptr, here, dz)
            if present(row_dlog_theta_ptr):
                add_rows(da, here, cols, 1.0, dlog_theta_pieces, row_dlog_theta_ptr)
            if present(col_dlog_theta_ptr):
                add_columns(da, here, col_dlog_theta_ptr, tile[0] // part_rows)


PARTS, PART_ROWS = 32, 64


def rows_of_part(rows, cols):
    """Rows whose gradients of one log_theta [1, cols] are added up by one thread, in one order."""
    tile = rows_of_tile.py_func(cols)
    wanted = min(max(1, rows // PARTS), PART_ROWS)
    return -(-wanted // tile) * tile


class ThetaGradient:
    """Where a kernel writes the gradient of log_theta: elements, sums of rows, or parts of columns.

    ``log_theta`` is [rows, cols], [rows, 1], [1, cols] or None, for results of ``shape``, whose x
    has ``rows``.
    """

    def __init__(self, log_theta, shape, rows, acc, wanted):
        self.like = log_theta
        self.part_rows = rows_of_part(rows, shape[1])
        self.element = self.row = self.parts = None
        if wanted and log_theta.shape == shape:
            self.element = empty_like_rows(log_theta)
        elif wanted and log_theta.shape[1] == 1:
            self.row = torch.empty(shape[0], dtype=acc, device="cpu")
        elif wanted:
            parts = -(-rows // self.part_rows)
            self.parts = torch.zeros(parts, shape[1], dtype=acc, device="cpu")

    def operands(self):
        return [operand(t) for t in (self.element, self.row, self.parts)]

    def together(self):
        """Rows that one thread must take, for it alone writes their part."""
        return 1 if self.parts is None else self.part_rows

    def result(self):
        if self.row is not None:
            return self.row.to(self.like.dtype)[:, None]
        if self.parts is not None:
            total = np.add.reduce(self.parts.numpy(), 0, dtype=np.float64, keepdims=True)
            return torch.from_numpy(total).to(self.like.dtype)
        return self.element


def launch_negative_binomial_nll(
    log_mean, x, log_theta, zero_logits, log_theta_value, elementwise=False, *, dnll=None,
    scale=1.0, values=None, needs=(),
):  # fmt: skip
    needs_mean, needs_theta, needs_zeros = padded(needs, 3)
    samples, x = samples_of(log_mean, x, False)
    acc = accumulator(log_mean, x, log_theta, zero_logits)
    shape = log_mean.shape
    sums = shape if elementwise else shape[:1]
    nll = torch.empty(sums, dtype=acc, device="cpu") if values else None
    dlog_mean = empty_like_rows(log_mean, needs_mean)
    dzero_logits = empty_like_rows(zero_logits, needs_zeros)
    dlog_theta = ThetaGradient(log_theta, shape, len(x), acc, needs_theta)
    wide = None if log_theta is None else log_theta.expand(shape)
    tensors = log_mean, x, wide, zero_logits, dnll, nll, dlog_mean, dzero_logits
    launch(
        negative_binomial_nll_kernel,
        acc,
        *x.shape,
        samples,
        any(needs),
        dlog_theta.part_rows,
        log_theta_value,
        scale,
        *map(operand, tensors),
        *dlog_theta.operands(),
        cost=3.0 * samples,
        tile=TILE,
        sums=2 * len(log_mean),
        together=dlog_theta.together(),
    )
    return nll, [g for g in (dlog_mean, dlog_theta.result(), dzero_logits) if g is not None]
