"""KL between diagonal Gaussians, KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)).

Row sums of 0.5 ((mu - prior_mu)^2 exp(-prior_logvar) + expm1(d) - d), with
d = logvar - prior_logvar; no prior means the standard one.
"""

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, helper, inline, kernel
from .device import exp, expm1, expm1_given, expm1_minus_x, expm1_minus_x_given
from .launch import launch
from .memory import TILE, load, operand, present, store, target, tiles, workspace
from .sums import pieces_of_sums, row_sums


@row_sums
def standard_kl(tensors, i):
    mu, logvar = tensors
    return mu[i] * mu[i] + expm1_minus_x(logvar[i])


@elementwise
def standard_kl_gradients(dkl, mu, logvar, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] = dkl[i] * mu[i]
        dlogvar[i] = real(0.5) * dkl[i] * expm1(logvar[i])


@inline
def in_units_of_prior(mu, logvar, prior_mu, prior_logvar):
    """(distance of the means, log of the ratio of variances, that ratio, 1 / prior std) of q.

    The ratio is not the exponential of the difference, which would blow up its rounding error; the
    root of the precision, not the precision, for its square may overflow where products do not.
    """
    real = type(mu)
    root = exp(real(-0.5) * prior_logvar)
    ratio = exp(real(0.5) * logvar) * root
    return (mu - prior_mu) * root, logvar - prior_logvar, ratio * ratio, root


@row_sums
def kl_to_prior(tensors, i):
    mu, logvar, prior_mu, prior_logvar = tensors
    distance, logvar_ratio, ratio, _ = in_units_of_prior(
        mu[i], logvar[i], prior_mu[i], prior_logvar[i]
    )
    return distance * distance + expm1_minus_x_given(logvar_ratio, ratio)


@elementwise
def kl_gradients(dkl, mu, logvar, prior_mu, prior_logvar, dmu, dlogvar, dprior_mu, dprior_logvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        distance, logvar_ratio, ratio, root = in_units_of_prior(
            mu[i], logvar[i], prior_mu[i], prior_logvar[i]
        )
        dmu[i] = dkl[i] * (distance * root)
        dlogvar[i] = real(0.5) * dkl[i] * expm1_given(logvar_ratio, ratio)
        dprior_mu[i] = -dmu[i]
        dprior_logvar[i] = -dlogvar[i] - real(0.5) * dkl[i] * (distance * distance)


@helper
def add_kl(mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, cols, pieces, kl_ptr, scratch):
    """Add the KL of a tile's rows; without a prior it is to N(0, I)."""
    if not present(prior_mu_ptr):
        standard_kl((mu, logvar), tile, cols, 0.5, pieces, kl_ptr, scratch[0])
        return
    prior_mu = load(prior_mu_ptr, tile, scratch[1])
    prior_logvar = load(prior_logvar_ptr, tile, scratch[2])
    q = mu, logvar, prior_mu, prior_logvar
    kl_to_prior(q, tile, cols, 0.5, pieces, kl_ptr, scratch[0])


@helper
def write_kl_gradients(
    dkl, mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, dmu, dlogvar, dprior_mu_ptr,
    dprior_logvar_ptr, scratch,
):  # fmt: skip
    """Gradients in q go into arrays; those in the prior, if there is one, to their tensors."""
    if not present(prior_mu_ptr):
        standard_kl_gradients(dkl, mu, logvar, dmu, dlogvar)
        return
    prior_mu = load(prior_mu_ptr, tile, scratch[0])
    prior_logvar = load(prior_logvar_ptr, tile, scratch[1])
    dprior_mu = target(dprior_mu_ptr, tile, scratch[2])
    dprior_logvar = target(dprior_logvar_ptr, tile, scratch[3])
    q = mu, logvar, prior_mu, prior_logvar
    kl_gradients(dkl, *q, dmu, dlogvar, dprior_mu, dprior_logvar)
    store(dprior_mu_ptr, tile, dprior_mu)
    store(dprior_logvar_ptr, tile, dprior_logvar)


@kernel
def gaussian_kl_kernel(
    queue, step, rows, cols, scratch, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, kl_ptr
):
    scratch = workspace(scratch, queue)
    pieces = pieces_of_sums(queue)
    prior = prior_mu_ptr, prior_logvar_ptr
    for tile in tiles(queue, step, rows, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        add_kl(mu, logvar, *prior, tile, cols, pieces, kl_ptr, scratch[2:])


@kernel
def gaussian_kl_backward_kernel(
    queue, step, rows, cols, scratch, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, dkl_ptr,
    dmu_ptr, dlogvar_ptr, dprior_mu_ptr, dprior_logvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    prior, dprior = (prior_mu_ptr, prior_logvar_ptr), (dprior_mu_ptr, dprior_logvar_ptr)
    for tile in tiles(queue, step, rows, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        dkl = load(dkl_ptr, tile, scratch[2])
        dmu, dlogvar = target(dmu_ptr, tile, scratch[3]), target(dlogvar_ptr, tile, scratch[4])
        write_kl_gradients(dkl, mu, logvar, *prior, tile, dmu, dlogvar, *dprior, scratch[5:])
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)


def gaussian_kl(mu, logvar, prior_mu, prior_logvar):
    """The KL of each row of mu, logvar, prior_mu and prior_logvar, [rows, cols] or None."""
    inputs = mu, logvar, prior_mu, prior_logvar
    acc = accumulator(*inputs)
    kl = mu.new_empty(mu.shape[0], dtype=acc)
    launch(
        gaussian_kl_kernel,
        acc,
        *mu.shape,
        *map(operand, (*inputs, kl)),
        cost=0.25,
        tile=TILE,
        sums=mu.shape[0],
    )
    return kl


def gaussian_kl_backward(dkl, mu, logvar, prior_mu, prior_logvar, needs):
    """The wanted gradients, from dkl [rows]."""
    inputs = mu, logvar, prior_mu, prior_logvar
    gradients = [*map(empty_like_rows, inputs, needs)]
    launch(
        gaussian_kl_backward_kernel,
        accumulator(*inputs),
        *mu.shape,
        *map(operand, (*inputs, dkl, *gradients)),
        cost=0.35,
        tile=TILE,
    )
    return [g for g in gradients if g is not None]
