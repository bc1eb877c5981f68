"""The kernels of posteriors in other parametrisations than mu and logvar."""

import torch

from fused_elbo.kernels.triton.posterior import (
    posterior_kl,
    posterior_kl_backward,
    posterior_sample_kl,
    posterior_sample_kl_backward,
)

from .operands import OF_ALL, OF_Q, ROWS, StaticCase

# Each as the literature has it: (name, soft clamp, offset of the standard deviation).
CLAMPED = ("clamped_logvar", 0.0, 0.0)
LOG_STD = ("log_std", 0.0, 0.0)
SOFT_CLAMP = ("log_std", 5.0, 0.01)
VARIANCE = ("variance", 0.0, 0.0)


def cases(t):
    return [*sampled(t), *of_elements(t), *of_variances(t)]


def sampled(t):
    parameters = t.empty(ROWS, 2 * t.cols), None, None, None
    found = [
        *sampled_in("clamped logvar", 3, 5, parameters, CLAMPED, t),
        *sampled_in("log std", 5, 9, t.q_and_prior, LOG_STD, t),
    ]
    # In float64 its backward takes 96 bytes of stack per thread. Nobody trains in float64.
    if t.dtype != torch.float64:
        found += sampled_in("soft clamp", 5, 9, t.q_and_prior, SOFT_CLAMP, t)
    return found


def sampled_in(name, forward, backward, inputs, form, t):
    """The two passes of a parametrisation; ``forward`` and ``backward`` count operands."""
    options = *inputs, None, t.seed, *form, False
    needs = [tensor is not None for tensor in inputs]
    return [
        StaticCase(
            f"posterior_sample_kl {name} forward", forward, lambda: posterior_sample_kl(*options)
        ),
        StaticCase(
            f"posterior_sample_kl {name} backward",
            backward,
            lambda: posterior_sample_kl_backward(t.full(), t.rows, *options, None, needs),
        ),
    ]


def of_elements(t):
    """A KL per element, which is written in the dtype of sums."""
    options = *t.q_and_prior, *LOG_STD, True
    return [
        StaticCase(
            "posterior_kl of elements forward",
            4 + t.acc.itemsize // t.dtype.itemsize,
            lambda: posterior_kl(*options),
        ),
        StaticCase(
            "posterior_kl of elements backward",
            9,
            lambda: posterior_kl_backward(t.full(), *options, OF_ALL),
        ),
    ]


def of_variances(t):
    """Not in float64, whose logarithm takes 16 bytes of stack per thread."""
    if t.dtype == torch.float64:
        return []
    options = *t.q, *VARIANCE, False
    return [
        StaticCase("posterior_kl of variances forward", 2, lambda: posterior_kl(*options)),
        StaticCase(
            "posterior_kl of variances backward",
            4,
            lambda: posterior_kl_backward(t.rows, *options, OF_Q),
        ),
    ]
